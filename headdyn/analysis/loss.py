"""The model's loss beside what is possible: random guessing, the topic-blind mixture, and the exact Bayes floor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from headdyn.core.figures import Curve, curves
from headdyn.core.records import Findings, HeadTable, Metric
from headdyn.core.statistics import bootstrap_interval
from headdyn.data.corpus import Corpus
from headdyn.models.decoder import Decoder

_BATCH_TOKENS = 2**14


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """Next-token loss on the first `sequences` (or all) of the validation split, paired with the Bayes filter's.

    Intervals (95 %, BCa) take sequences as units. The Bayes filter runs on the same sequences, so `excess_nats`, the
    model's loss above it, is a paired difference; where the corpus has no exact law, `excess_nats` and `gap_closed`
    are absent. A smaller validation split is taken whole.
    """

    sequences: int = 256
    bootstrap_draws: int = 2_000

    rows: ClassVar[Literal["model"]] = "model"
    needs: ClassVar[frozenset[str]] = frozenset({"corpus"})
    metrics: ClassVar[Mapping[str, Metric]] = {
        "loss_nats": Metric(
            meaning="mean next-token loss on held-out sequences; null: uniform guessing", low=0, unit="nats"
        ),
        "excess_nats": Metric(meaning="loss above the exact Bayes filter's on the same sequences", unit="nats"),
        "gap_closed": Metric(meaning="(ln V − loss)/(ln V − Bayes loss), on the same sequences", high=1.05),
    }

    def __post_init__(self) -> None:
        if self.sequences < 2:
            raise ValueError(f"analysis.loss.sequences={self.sequences} must be at least 2")
        if self.bootstrap_draws < 100:
            raise ValueError(f"analysis.loss.bootstrap_draws={self.bootstrap_draws} must be at least 100")

    def __call__(self, decoder: Decoder, corpus: Corpus, generator: np.random.Generator) -> Findings:
        """Model rows, and the loss by position in the sequence: how topics are inferred in context."""
        loss_NT = token_losses(decoder, corpus, self.sequences)
        model_N, random = np.nanmean(loss_NT, axis=1), math.log(corpus.vocab_size)
        rows = [self._row("loss_nats", model_N, generator, null=random)]
        lines = [Curve(label="model", x=np.arange(1, loss_NT.shape[1] + 1), y=np.nanmean(loss_NT, axis=0))]
        if corpus.oracle is None:
            reason = "the corpus has no exact law to compare with"
            rows += [{"metric": name, "reason": reason} for name in ("excess_nats", "gap_closed")]
        else:
            bayes_NT, _ = corpus.oracle.filter(np.asarray(corpus.val.tokens_NT[: self.sequences]))
            bayes_N = bayes_NT.mean(axis=1)
            rows.append(self._row("excess_nats", model_N - bayes_N, generator, null=0.0))
            both_N2 = np.stack([random - model_N, random - bayes_N], axis=1)
            closed = both_N2[:, 0].mean() / both_N2[:, 1].mean()
            # The ratio's own linearisation gives its interval (science.md §0: the unit is a sequence).
            influence_N = closed + (both_N2[:, 0] - closed * both_N2[:, 1]) / both_N2[:, 1].mean()
            rows.append(self._row("gap_closed", influence_N, generator, null=0.0))
            lines.append(Curve(label="Bayes filter", x=lines[0].x, y=bayes_NT.mean(axis=0)))
        figure = _by_position(lines, corpus)
        return Findings(table=HeadTable.from_rows(rows), figures={"by_position": figure})

    def _row(self, metric: str, values_N: np.ndarray, generator: np.random.Generator, null: float) -> dict[str, Any]:
        low, high = bootstrap_interval(values_N[:, None], generator, draws=self.bootstrap_draws)
        return {
            "metric": metric,
            "value": float(values_N.mean()),
            "ci_low": float(low[0]),
            "ci_high": float(high[0]),
            "null": null,
            "n": len(values_N),
            "unit": "sequence",
        }


@torch.no_grad()
def token_losses(decoder: Decoder, corpus: Corpus, sequences: int) -> np.ndarray:
    """Held-out loss in nats of predicting token t + 1 from tokens 0..t, [N, T-1].

    Where attention is to stay inside documents, a document's first token cannot be predicted: NaN there.
    """
    split = corpus.val
    tokens_NT = np.asarray(split.tokens_NT[:sequences]).astype(np.int64)
    documents_NT = None
    if corpus.mask_documents:
        assert split.documents_NT is not None
        documents_NT = np.asarray(split.documents_NT[:sequences]).astype(np.int64)
    batch = max(1, _BATCH_TOKENS // tokens_NT.shape[1])
    device = decoder.embed.weight.device
    parts = []
    for start in range(0, len(tokens_NT), batch):
        tokens_BT = torch.from_numpy(tokens_NT[start : start + batch]).to(device)
        documents_BT = (
            None if documents_NT is None else torch.from_numpy(documents_NT[start : start + batch]).to(device)
        )
        logits_BTV = decoder(tokens_BT, documents_BT)[:, :-1].float()
        loss_BT = F.cross_entropy(logits_BTV.mT, tokens_BT[:, 1:], reduction="none").double()
        if documents_BT is not None:
            loss_BT[documents_BT[:, 1:] != documents_BT[:, :-1]] = torch.nan
        parts.append(loss_BT.cpu().numpy())
    return np.concatenate(parts)


def _by_position(lines: list[Curve], corpus: Corpus) -> Figure:
    return curves(
        lines,
        xlabel="position in the sequence (tokens)",
        ylabel="loss (nats)",
        title="Loss by position",
        references={name: level for name, level in corpus.reference_nats.items() if name != "floor"},
    )
