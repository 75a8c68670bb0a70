"""What every analysis is: a frozen dataclass of settings (`core.settings.settings`), called on what it is about.

Settings are checked by importing the class, so its module imports nothing heavy (torch, scipy, scikit-learn): it states
settings and metrics, and `__call__` imports the sibling module that measures (`measured_in`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from headdyn.core.records import Findings, Metric

if TYPE_CHECKING:
    import numpy as np

    from headdyn.analysis.series.points import SeriesPoint
    from headdyn.models.decoder import Decoder


@runtime_checkable
class Analysis(Protocol):
    """One file and one YAML (`_target_`) each; there is no registry, so another package can add its own.

    `rows` is the unit of a row, `needs` what the analysis must be given beside the decoder ("corpus" or "prompts"),
    `metrics` every metric it may put into its table with the range its values lie in. It leaves the decoder unchanged
    and draws every random number from the generator it is given.
    """

    rows: ClassVar[Literal["model", "layer", "head", "split", "order"]]
    needs: ClassVar[frozenset[str]]
    metrics: ClassVar[Mapping[str, Metric]]

    def __call__(self, decoder: Decoder, material: Any, generator: np.random.Generator, /) -> Findings:
        """`material` is what `needs` says: a Corpus or Prompts, and either of them where it needs neither."""
        ...


def measured_in(module: str) -> Callable[..., Any]:
    """The `__call__` of an analysis whose work is done by `measure(analysis, *arguments)` of another module.

    That module is imported at the first call, so that stating the settings costs no import of torch.
    """

    def call(analysis: Any, *arguments: Any) -> Any:
        return importlib.import_module(module).measure(analysis, *arguments)

    return call


@dataclass(frozen=True, kw_only=True)
class SeriesFindings(Findings):
    """Findings on a whole series; `verdict` holds plain values for verdict.json."""

    verdict: Mapping[str, Any]


class SeriesAnalysis(Protocol):
    """An analysis of a whole series of checkpoints, called once when the runs of the series have ended.

    `needs` holds "series". Where it also holds "circuits", every run of the series keeps the QK and OV circuits of the
    layer that the attribute `layer` names (None: the middle one, see `patch.chosen_layer`), as `SeriesPoint.circuits`.
    """

    needs: ClassVar[frozenset[str]]
    metrics: ClassVar[Mapping[str, Metric]]

    def __call__(self, points: Sequence[SeriesPoint], generator: np.random.Generator, /) -> SeriesFindings:
        """`points` are the series' checkpoints in any order, failed ones among them."""
        ...
