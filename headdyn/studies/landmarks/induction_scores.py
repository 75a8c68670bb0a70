"""Prefix matching by head on repeated random tokens, and the in-context learning score (Olsson et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from headdyn.analysis.contract import measured_in
from headdyn.analysis.metrics import BootstrapDraws, nats, share
from headdyn.core.records import Metric
from headdyn.core.settings import settings

if TYPE_CHECKING:
    from headdyn.data.corpus import Corpus

AtLeastTwo = Annotated[int, Field(ge=2)]


@settings
class InductionScores:
    """Heads on `sequences` sequences of `block` different random tokens, repeated `repeats` times, drawn here.

    Prefix matching: a query's attention to all earlier tokens that followed its own token. The in-context score is of
    the corpus's validation split: the loss of the last `late` tokens less that of the first `early` predicted ones.
    Intervals (95 %, BCa) take sequences as units; the null of a head is uniform attention.
    """

    sequences: AtLeastTwo = 64
    block: AtLeastTwo = 16
    repeats: AtLeastTwo = 3
    early: Annotated[int, Field(ge=1)] = 7
    late: Annotated[int, Field(ge=1)] = 16
    held_out: AtLeastTwo = 256  # validation sequences behind the in-context score
    bootstrap_draws: BootstrapDraws = 2_000

    rows: ClassVar[Literal["head"]] = "head"
    needs: ClassVar[frozenset[str]] = frozenset({"corpus"})
    metrics: ClassVar[Mapping[str, Metric]] = {
        "prefix_matching": share(
            "prefix matching", "attention to tokens that followed the query's own token in earlier blocks"
        ),
        "previous_token": share("attention to the previous token", "attention from a token to the one before it"),
        "best_prefix_matching": share(
            "prefix matching of the best head", "prefix_matching of the head that has most", outcome=True
        ),
        "in_context_nats": nats(
            "in-context score",
            "loss of the last tokens less loss of the first; negative where the context is used",
            outcome=True,
        ),
    }

    def check(self, corpus: Corpus) -> None:
        """Raise ValueError where the corpus has too few symbols for a block, or too short sequences."""
        length = corpus.val.tokens_NT.shape[1]
        if self.block > corpus.vocab_size:
            raise ValueError(
                f"analysis.induction_scores.block={self.block} different tokens need as many, and the corpus has "
                f"{corpus.vocab_size}; lower block"
            )
        if self.early + self.late >= length:
            raise ValueError(
                f"analysis.induction_scores.early={self.early} and late={self.late} overlap in sequences of {length} "
                "tokens; lower one"
            )

    __call__ = measured_in("headdyn.studies.landmarks.induction_scores_measure")
