"""Prefix matching and attention to the previous token, by head, on repeated random tokens (Olsson et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from headdyn.analysis.contract import measured_in
from headdyn.analysis.metrics import BootstrapDraws, share
from headdyn.core.records import Metric
from headdyn.core.settings import settings

if TYPE_CHECKING:
    from headdyn.data.corpus import Corpus

AtLeastTwo = Annotated[int, Field(ge=2)]


@settings
class InductionScores:
    """Scores of heads on `sequences` random sequences, each a block of `block` different tokens, `repeats` times over.

    Prefix matching: a query's attention to all earlier tokens that followed its own token. Tokens are drawn from the
    corpus's vocabulary; the corpus's sequences are not read. Intervals (95 %, BCa) take sequences as units; the null of
    a head is uniform attention.
    """

    sequences: AtLeastTwo = 64
    block: AtLeastTwo = 16
    repeats: AtLeastTwo = 3
    bootstrap_draws: BootstrapDraws = 2_000

    needs: ClassVar[frozenset[str]] = frozenset({"corpus"})
    metrics: ClassVar[Mapping[str, Metric]] = {
        "prefix_matching": share(
            "prefix matching", "attention to tokens that followed the query's own token in earlier blocks"
        ),
        "previous_token": share("attention to the previous token", "attention from a token to the one before it"),
        "best_prefix_matching": share(
            "prefix matching of the best head", "prefix_matching of the head that has most", outcome=True
        ),
    }

    def check(self, corpus: Corpus) -> None:
        """Raise ValueError where the corpus's vocabulary is too small for a block."""
        if self.block > corpus.vocab_size:
            raise ValueError(
                f"analysis.induction_scores.block={self.block} needs as many different tokens, and the corpus has "
                f"{corpus.vocab_size}; lower block"
            )

    __call__ = measured_in("headdyn.studies.landmarks.induction_scores_measure")
