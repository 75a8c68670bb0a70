"""Kinds of metrics that several analyses measure, and bounds that their settings share. Nothing heavy is imported."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from headdyn.core.records import Metric
from headdyn.core.settings import settings
from headdyn.data.corpus import Corpus


def share(label: str, meaning: str, **more: Any) -> Metric:
    """A share of attention, tokens, prompts …; a reader sees it in percent."""
    percent = {"unit": "%", "scale": 100, "digits": 1, "difference_unit": "points"}
    return Metric(label=label, meaning=meaning, **{"low": 0, "high": 1, **percent, **more})


def share_difference(label: str, meaning: str, **more: Any) -> Metric:
    """One share less another; a reader sees it in points."""
    points = {"unit": "points", "scale": 100, "digits": 2}
    return Metric(label=label, meaning=meaning, **{"low": -1, "high": 1, **points, **more})


def nats(label: str, meaning: str, **more: Any) -> Metric:
    """An entropy, a loss or a logit."""
    return Metric(label=label, meaning=meaning, unit="nats", **more)


def steps(label: str, meaning: str) -> Metric:
    """A step of training."""
    return Metric(label=label, meaning=meaning, low=0, unit="steps", digits=0)


BootstrapDraws = Annotated[int, Field(ge=100)]  # resamples of the units behind an interval
SignFlips = Annotated[int, Field(ge=9_999)]  # draws behind a p; fewer cannot resolve q-values over many heads
LabelSwaps = Annotated[int, Field(ge=20)]  # how many other sequences lend their labels to a sequence's null


@settings
class LabelSwapSettings:
    """Settings of an analysis of `sequences` sequences; the null of each takes the labels of `label_swaps` others."""

    sequences: int
    label_swaps: LabelSwaps = 20
    sign_flips: SignFlips = 9_999
    bootstrap_draws: BootstrapDraws = 2_000

    name: ClassVar[str]  # the analysis's name in messages
    needs: ClassVar[frozenset[str]] = frozenset({"corpus"})

    def __post_init__(self) -> None:
        if self.sequences <= self.label_swaps:
            raise ValueError(
                f"analysis.{self.name}.sequences={self.sequences} must exceed label_swaps={self.label_swaps}: "
                "the null takes the labels of that many other sequences"
            )

    def check(self, corpus: Corpus) -> None:
        """Raise ValueError where the corpus has too few validation sequences for the label-swap null."""
        if len(corpus.val) <= self.label_swaps:
            raise ValueError(
                f"analysis.{self.name}.label_swaps={self.label_swaps} needs more validation sequences than that, but "
                f"the corpus has {len(corpus.val)}; bring more text, or leave {self.name} out of analysis=[...]"
            )
