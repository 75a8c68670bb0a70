"""The seed studies' causal and statistical checks of weight clusters, with the nulls they lacked (science.md §13).

Everything acts on the two k-means clusters of one layer's misread pieces (clusters/seed_weights.py says what those are
and why none of this is evidence). KL is read at the last token of the study's one prompt: one unit, whatever was
printed of it. In the study's public code the swap wrote through a view of the matrix that was kept to be restored, so
that what it tried afterwards ("8 of 8 prompts differ") ran on the swapped model; here nothing changes a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headdyn.analysis.clusters import clusterings
from headdyn.analysis.clusters.seed_weights import PARTS, entry_test, misread, packed, swapped
from headdyn.core.records import Metric
from headdyn.data.comparisons import PromptGroup
from headdyn.models.decoder import Decoder, Edit

Row = dict[str, Any]

METRICS: Mapping[str, Metric] = {
    "seed_swap_kl_nats": Metric(
        meaning="KL on the seed's prompt, each query piece replaced by the other cluster's mean", low=0, unit="nats"
    ),
    "seed_only_cluster_kl_nats": Metric(
        meaning="KL on the seed's prompt, slices behind W_O set to 0 but those of the smaller query cluster",
        low=0,
        unit="nats",
    ),
} | {
    f"seed_{part}_ks_log10_p": Metric(
        meaning=f"log10 p of the seed's KS test on the entries of two clusters of {part} pieces (−300: or less); null: "
        "its mean over random splits of the pieces; p: rank among those",
        low=-300,
        high=0,
    )
    for part in PARTS
}


def seed_ablation(
    decoder: Decoder,
    model: Decoder,
    prompt: PromptGroup | None,
    layer: int,
    swaps: int,
    generator: np.random.Generator,
) -> list[Row]:
    """Rows of every metric here, with `swaps` random clusters behind each KL.

    Weights are read from `decoder`, the prompt is run by `model`, the same in the dtype of the ablation. Rows are
    absent with a reason under grouped keys, and those of KL without a prompt.
    """
    c = decoder.config
    if c.num_kv_heads != c.num_heads:
        reason = f"{c.num_heads} query heads share {c.num_kv_heads} keys: no [3, heads, …] matrix to misread"
        return [{"metric": name, "reason": reason} for name in METRICS]
    rows: list[Row] = []
    labels: dict[str, np.ndarray] = {}
    for part, pieces_HX in zip(PARTS, misread(packed(decoder, layer), c.num_heads).double(), strict=True):
        gram_HH = (pieces_HX @ pieces_HX.T).cpu().numpy()
        labels[part] = clusterings.kmeans(gram_HH[None], 2, generator)[0]
        test = entry_test(pieces_HX, labels[part], generator)
        row: Row = {"metric": f"seed_{part}_ks_log10_p", "value": test.log10_p, "null": test.null_log10_p}
        rows.append(row | {"p": test.p_log10_p, "n": c.num_heads, "unit": "piece"})
    names = ("seed_swap_kl_nats", "seed_only_cluster_kl_nats")
    if prompt is None:
        reason = "the seed's prompt is a comparison of numbers; use data=comparisons"
        return rows + [{"metric": name, "reason": reason} for name in names]
    changes = (
        lambda labels_H: law(swapped(model, layer, labels_H), prompt),
        lambda labels_H: law(model, prompt, [slices_kept(model, layer, smaller(labels_H))]),
    )
    dealt_RH = np.concatenate((labels["query"][None], clusterings.relabellings(labels["query"], swaps, generator)))
    return rows + [
        _kl_row(name, law(model, prompt), change, dealt_RH) for name, change in zip(names, changes, strict=True)
    ]


def _kl_row(metric: str, plain_V: Tensor, change: Callable[[np.ndarray], Tensor], dealt_RH: np.ndarray) -> Row:
    """The first labelling's KL against that of the same labels dealt to other pieces."""
    laws = (change(labels_H) for labels_H in dealt_RH)
    kl_R = np.array([(plain_V.exp() * (plain_V - law_V)).sum().clamp_min(0).item() for law_V in laws])
    p = float((kl_R >= kl_R[0] * (1 - 1e-9)).mean())
    return {"metric": metric, "value": float(kl_R[0]), "null": float(kl_R[1:].mean()), "p": p, "n": 1, "unit": "prompt"}


@torch.no_grad()
def law(decoder: Decoder, prompt: PromptGroup, edits: list[Edit] | None = None) -> Tensor:
    """Log-probabilities of the token after the corrupted prompt, float64 [V]."""
    tokens_1T = torch.from_numpy(prompt.corrupted_NT).to(decoder.embed.weight.device)
    logits = decoder.trace(tokens_1T, layers=(), edits=edits or (), logits="last").logits
    assert logits is not None
    return logits[0, -1].double().log_softmax(-1)


def slices_kept(decoder: Decoder, layer: int, kept_H: np.ndarray) -> Edit:
    """The study's "only these heads": of the D numbers behind W_O all are set to 0 but the kept heads' D/H each."""
    width, device = decoder.config.d_model, decoder.embed.weight.device
    owner_D = np.arange(width) * len(kept_H) // width
    where_D = torch.from_numpy(~kept_H[owner_D]).to(device)
    return Edit(site="attn_out", layer=layer, value=torch.zeros((), device=device), where=where_D)


def smaller(labels_H: np.ndarray) -> np.ndarray:
    """The smaller of two clusters as a mask; of equal ones, that of the first head."""
    first_H = labels_H == labels_H[0]
    return first_H if 2 * first_H.sum() <= len(labels_H) else ~first_H
