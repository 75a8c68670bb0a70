"""The study's misread pieces of weights, and its measures of two clusters of such pieces (science.md §12 and §13).

Letters as in models/decoder.py; X rows of a packed matrix, E entries of all pieces, R splits.

What the study did, and why none of it is evidence about heads:
- It read the rows of GPT-NeoX's packed matrix [H, 3, d, D] as [3, H, d, D]. Piece 3h + i of the matrix is part i of
  head h; read so, it became "head" (3h + i) mod H of part ⌊(3h + i)/H⌋. The "query heads" are the q, k and v blocks of
  the first third of the heads, so what sets queries apart from keys and values looks like clusters of heads.
- It flattened the pieces. W_Q → W_Q R, W_K → W_K R⁻ᵀ leaves a head as it is and moves the flattened W_Q anywhere.
  Clusters then show mostly norms: one large norm alone gives a k = 2 silhouette of 0.6. So the null is random heads of
  the same norms.
- It tested two clusters with Kolmogorov–Smirnov on 10⁵ entries. Entries of a matrix share its scale, so any two groups
  of heads whose scales differ by a few percent give p < 1e-6. Here the same statistic is also ranked among random
  splits of the pieces into groups of the same sizes, so that pieces are the units.
- It replaced every piece of a cluster by the mean of the other cluster and called the damage causal. Random clusters of
  the same sizes are the null.
- Its separation ratio divides a distance by a variance per entry, so it has a unit and depends on the weights' scale.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import special
from torch import Tensor

from headdyn.analysis.clusters.clusterings import spread
from headdyn.core.statistics import at_least_as_high
from headdyn.models.decoder import Decoder
from headdyn.models.family_table import HEAD_BY_HEAD

ENTRY_SPLITS = 200  # random splits behind an entry test; each costs 11 ms on Pythia-160m's pieces
_LEAST_LOG10_P = -300.0  # below it a float holds no p


def no_pieces(decoder: Decoder) -> str | None:
    """Why the matrix of a model with grouped keys and values cannot be misread (it has too few rows); else None."""
    heads, keys = decoder.config.num_heads, decoder.config.num_kv_heads
    return None if keys == heads else f"{heads} query heads share {keys} keys: no [3, heads, …] matrix to misread"


def packed(decoder: Decoder, layer: int) -> Tensor:
    """The layer's query_key_value matrix as GPT-NeoX stores it, [3·H·d, D]: head by head, q, k and v of each."""
    w = decoder.head_weights(layer)
    parts = [part_HDd.detach().mT.flatten(0, 1) for part_HDd in (w.q_HDd, w.k_GDd, w.v_GDd)]
    return HEAD_BY_HEAD.pack(parts, decoder.config.num_heads)


def misread(packed_XD: Tensor, heads: int) -> Tensor:
    """The pieces that the study took for the heads' query, key and value weights, in this order: [3, H, d·D]."""
    return packed_XD.unflatten(0, (3, heads, -1)).flatten(2)


def swapped(decoder: Decoder, layer: int, labels_H: np.ndarray) -> Decoder:
    """The model after the study's cluster swap: each "query" piece becomes the mean piece of the other cluster.

    All other tensors are shared with the model. Raises ValueError unless the labels are 0 and 1.
    """
    if set(labels_H.tolist()) != {0, 1}:
        raise ValueError(f"a swap needs two clusters labelled 0 and 1; got labels {sorted(set(labels_H.tolist()))}")
    pieces_3HdD = packed(decoder, layer).clone().unflatten(0, (3, len(labels_H), -1))
    means = [pieces_3HdD[0, torch.from_numpy(labels_H == label)].mean(0) for label in (0, 1)]
    pieces_3HdD[0] = torch.stack([means[1 - label] for label in labels_H.tolist()])
    parts = HEAD_BY_HEAD.unpack(pieces_3HdD.flatten(0, 2), 3, len(labels_H))
    names = [f"blocks.{layer}.attention.{part}.weight" for part in "qkv"]
    return Decoder.from_state(decoder.config, decoder.state_dict() | dict(zip(names, parts, strict=True)))


def original_spread(gram_RHH: np.ndarray, labels_RH: np.ndarray, width: int) -> dict[str, np.ndarray]:
    """The study's centre distance, variance within clusters (per entry, clusters equally weighted) and their ratio."""
    between_R, within_Rk = spread(gram_RHH, labels_RH)
    known_Rk = np.isfinite(within_Rk)
    variance_R = np.where(known_Rk, within_Rk, 0).sum(-1) / known_Rk.sum(-1) / width
    ratio_R = np.divide(between_R, variance_R, out=np.full(len(between_R), np.nan), where=variance_R > 0)
    return {"centre_distance": between_R, "within_variance": variance_R, "separation": ratio_R}


class Tested(NamedTuple):
    """A statistic, its mean over random splits, and p = (1 + splits at least as far apart) / (1 + splits)."""

    value: float
    null: float
    p: float


def entry_test(pieces_HX: Tensor, labels_H: np.ndarray, generator: np.random.Generator) -> tuple[Tested, Tested]:
    """The entries of cluster 0 against all others, with random splits of the pieces into the same sizes as null.

    Returns W₁ between the two sets of entries, and log10 p of the asymptotic Kolmogorov–Smirnov test with entries as
    units, −300 for anything below. The entries are sorted once; a split then costs one pass. The study drew 1,000
    entries for W₁, here all are taken.
    """
    width = pieces_HX.shape[1]
    entries_E, order_E = pieces_HX.flatten().double().sort()
    piece_E = (order_E // width).cpu().numpy()
    gaps_E = np.diff(entries_E.cpu().numpy())
    splits = [labels_H == 0, *(generator.permutation(labels_H == 0) for _ in range(ENTRY_SPLITS))]
    results = np.array([_entry_statistics(gaps_E, piece_E, first_H) for first_H in splits])
    wasserstein_R, ks_R = results.T
    sizes = [width * int((labels_H == 0).sum()), width * int((labels_H != 0).sum())]
    root = np.sqrt(sizes[0] * sizes[1] / sum(sizes))
    with np.errstate(divide="ignore"):
        log10_p_R = np.maximum(np.log10(special.kolmogorov(root * ks_R)), _LEAST_LOG10_P)
    return (
        Tested(float(wasserstein_R[0]), float(wasserstein_R[1:].mean()), at_least_as_high(wasserstein_R)),
        Tested(float(log10_p_R[0]), float(log10_p_R[1:].mean()), at_least_as_high(ks_R)),
    )


def _entry_statistics(gaps_E: np.ndarray, piece_E: np.ndarray, first_H: np.ndarray) -> Sequence[float]:
    """∫ |F − G| and max |F − G| for the distribution functions of the first pieces' entries and of the others'."""
    first_E = first_H[piece_E]
    step_E = np.where(first_E, 1 / first_E.sum(), -1 / (~first_E).sum())
    apart_E = np.abs(step_E.cumsum()[:-1])
    return float(apart_E @ gaps_E), float(apart_E[gaps_E > 0].max(initial=0.0))
