"""The study's causal and statistical checks of its weight clusters, with the nulls they lacked (science.md §13).

Everything acts on the two k-means clusters of one layer's misread pieces (pieces.py says what those are and why none of
this is evidence). KL is read at the last token of the study's one prompt, which is one unit. In the study's public code
the swap also changed the matrix that was saved for restoring, through a view, so that its later tests ("8 of 8 prompts
differ") ran on the swapped model; here no model is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from headdyn.analysis.interventions.patch import Dtype, Layer, chosen_layer
from headdyn.analysis.metrics import nats
from headdyn.core.records import Findings, HeadTable, Metric
from headdyn.core.settings import settings
from headdyn.core.statistics import at_least_as_high
from headdyn.data.prompts import Prompts
from headdyn.studies.weight_clusters.clusters import PARTS, Row

if TYPE_CHECKING:
    from torch import Tensor

    from headdyn.data.corpus import Corpus
    from headdyn.data.prompts import PromptGroup
    from headdyn.models.decoder import Decoder, Edit

KLS = ("original_swap_kl_nats", "original_only_cluster_kl_nats")


@settings
class OriginalAblation:
    """The study's cluster swap, its "only these heads" run and its KS tests, each beside random clusters.

    Each KL has a null of `swaps` random clusters; `dtype` is that of the changed model. For a model with grouped keys
    all rows are absent, with a reason; without the study's prompt those of KL are.
    """

    layer: Layer = None
    dtype: Dtype = "float32"
    swaps: Annotated[int, Field(ge=19)] = 50

    needs: ClassVar[frozenset[str]] = frozenset()
    metrics: ClassVar[Mapping[str, Metric]] = {
        KLS[0]: nats(
            label="KL, the study's cluster swap",
            meaning="KL on the study's prompt, each query piece replaced by the other cluster's mean",
            low=0,
        ),
        KLS[1]: nats(
            label="KL, only the study's smaller cluster",
            meaning="KL on the study's prompt, slices behind W_O set to 0 but those of the smaller query cluster",
            low=0,
        ),
        **{
            f"original_{part}_ks_log10_p": Metric(
                label=f"log10 p of the study's KS test, {part} pieces",
                meaning=f"log10 p of the study's KS test on the entries of two clusters of {part} pieces (−300: or "
                "less); null: its mean over random splits of the pieces; p: rank among those",
                low=-300,
                high=0,
            )
            for part in PARTS
        },
    }

    def __call__(self, decoder: Decoder, corpus: Prompts | Corpus, generator: np.random.Generator) -> Findings:
        from headdyn.analysis.clusters import clusterings
        from headdyn.analysis.interventions.patching import in_dtype
        from headdyn.studies.weight_clusters.pieces import entry_test, misread, no_pieces, packed, swapped

        layer, heads = chosen_layer(self.layer, decoder.config.num_layers), decoder.config.num_heads
        if reason := no_pieces(decoder):
            return Findings(table=HeadTable.from_rows({"metric": m, "reason": reason} for m in self.metrics))
        rows: list[Row] = []
        labels: dict[str, np.ndarray] = {}
        for part, pieces_HX in zip(PARTS, misread(packed(decoder, layer), heads).double(), strict=True):
            gram_HH = (pieces_HX @ pieces_HX.T).cpu().numpy()
            labels[part] = clusterings.kmeans(gram_HH[None], 2, generator)[0]
            _, log10_p = entry_test(pieces_HX, labels[part], generator)
            row: Row = {"metric": f"original_{part}_ks_log10_p", "n": heads, "unit": "piece"}
            rows.append(row | log10_p._asdict())
        if not isinstance(corpus, Prompts):
            reason = "the study's prompt is a comparison of numbers; use data=comparisons"
            return Findings(table=HeadTable.from_rows([*rows, *({"metric": m, "reason": reason} for m in KLS)]))
        model, prompt = in_dtype(decoder, self.dtype), corpus.original_prompt
        changes = (
            lambda labels_H: law(swapped(model, layer, labels_H), prompt),
            lambda labels_H: law(model, prompt, [other_slices_zero(model, layer, clusterings.smaller(labels_H))]),
        )
        labels_RH = clusterings.relabellings(labels["query"], self.swaps, generator)
        plain_V = law(model, prompt)
        kls = (_kl_row(metric, plain_V, change, labels_RH) for metric, change in zip(KLS, changes, strict=True))
        return Findings(table=HeadTable.from_rows([*rows, *kls]))


def _kl_row(metric: str, plain_V: Tensor, change: Callable[[np.ndarray], Tensor], labels_RH: np.ndarray) -> Row:
    """The first labelling's KL, against the KL of the other labellings."""
    laws = (change(labels_H) for labels_H in labels_RH)
    kl_R = np.array([(plain_V.exp() * (plain_V - law_V)).sum().clamp_min(0).item() for law_V in laws])
    value, null = float(kl_R[0]), float(kl_R[1:].mean())
    return {"metric": metric, "value": value, "null": null, "p": at_least_as_high(kl_R), "n": 1, "unit": "prompt"}


def law(decoder: Decoder, prompt: PromptGroup, edits: Sequence[Edit] = ()) -> Tensor:
    """Log-probabilities of the token after the corrupted prompt, float64 [V]."""
    import torch

    tokens_1T = torch.from_numpy(prompt.corrupted_NT).to(decoder.embed.weight.device)
    with torch.no_grad():
        logits = decoder.trace(tokens_1T, layers=(), edits=edits, logits="last").logits
    assert logits is not None
    return logits[0, -1].double().log_softmax(-1)


def other_slices_zero(decoder: Decoder, layer: int, heads_H: np.ndarray) -> Edit:
    """The study's "only these heads": what W_O writes becomes 0 but for the D/H numbers of each head in the mask."""
    import torch

    from headdyn.models.decoder import Edit

    width, device = decoder.config.d_model, decoder.embed.weight.device
    owner_D = np.arange(width) * len(heads_H) // width
    where_D = torch.from_numpy(~heads_H[owner_D]).to(device)
    return Edit(site="attn_out", layer=layer, value=torch.zeros((), device=device), where=where_D)
