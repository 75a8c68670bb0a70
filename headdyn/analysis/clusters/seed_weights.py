"""The seed studies' weight clusters as they were computed, for comparison (science.md §12 and §13, protocol=seed).

Letters as in models/decoder.py; X rows of a packed matrix, E entries of all pieces, R splits.

What they did, and why none of it is evidence about heads:
- They read the rows of GPT-NeoX's packed matrix [H, 3, d, D] as [3, H, d, D]. Piece 3h + i of the matrix is part i of
  head h; read so, it became "head" (3h + i) mod H of part ⌊(3h + i)/H⌋. The "query heads" are the q, k and v blocks of
  the first third of the heads, so what sets queries apart from keys and values looks like clusters of heads.
- They flattened the pieces. W_Q → W_Q R, W_K → W_K R⁻ᵀ leaves a head as it is and moves the flattened W_Q anywhere;
  what is left is mostly norms, and one large norm alone gives a k = 2 silhouette of 0.6: random heads of the same norms
  are the null.
- They tested two clusters with Kolmogorov–Smirnov on 10⁵ entries. Entries of a matrix share its scale, so any two
  groups of heads whose scales differ by a few percent give p < 1e-6; here the same statistic is also ranked among all
  splits of the pieces into groups of those sizes, which takes pieces as units.
- They replaced every piece of a cluster by the mean of the other's and called the damage causal. Random clusters of the
  same sizes are the null.
- Their separation ratio divides a distance by a variance per entry, so it has a unit and depends on the weights' scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special
from torch import Tensor

from headdyn.analysis.clusters.clusterings import spread
from headdyn.models.decoder import Decoder
from headdyn.models.family_table import HEAD_BY_HEAD

PARTS = ("query", "key", "value")
SEED_EPS = (0.5, 1.0, 1.5, 2.0)  # DBSCAN's radii, in units of the weights
ENTRY_SPLITS = 200  # random splits behind an entry test; each costs 11 ms on Pythia-160m's pieces
_LEAST_LOG10_P = -300.0  # below it a float holds no p


def packed(decoder: Decoder, layer: int) -> Tensor:
    """The layer's query_key_value matrix as GPT-NeoX stores it, [3·H·d, D]: head by head, q, k and v of each.

    Raises ValueError for grouped keys and values, of which there are too few for such a matrix.
    """
    c, w = decoder.config, decoder.head_weights(layer)
    if c.num_kv_heads != c.num_heads:
        raise ValueError(
            f"{c.num_heads} query heads share {c.num_kv_heads} key/value heads, so there is no [3, heads, …] matrix to "
            "misread; use protocol=corrected"
        )
    parts = [part_HDd.detach().mT.flatten(0, 1) for part_HDd in (w.q_HDd, w.k_GDd, w.v_GDd)]
    return HEAD_BY_HEAD.pack(parts, c.num_heads)


def misread(packed_XD: Tensor, heads: int) -> Tensor:
    """What the seed took for the heads' query, key and value weights, in this order: [3, H, d·D]."""
    return packed_XD.unflatten(0, (3, heads, -1)).flatten(2)


def misread_blocks(heads: int) -> dict[str, list[tuple[int, str]]]:
    """The true head and part of each of the seed's pieces: for 12 heads its "query head 6" is head 2's query block."""
    pieces = [(number // 3, PARTS[number % 3]) for number in range(3 * heads)]
    return {part: pieces[i * heads : (i + 1) * heads] for i, part in enumerate(PARTS)}


def with_packed(decoder: Decoder, layer: int, packed_XD: Tensor) -> Decoder:
    """The same model, all other tensors shared, with this query_key_value matrix in one layer."""
    names = [f"blocks.{layer}.attention.{part}.weight" for part in "qkv"]
    parts = HEAD_BY_HEAD.unpack(packed_XD, 3, decoder.config.num_heads)
    return Decoder.from_state(decoder.config, decoder.state_dict() | dict(zip(names, parts, strict=True)))


def swapped(decoder: Decoder, layer: int, labels_H: np.ndarray) -> Decoder:
    """The model after the seed's cluster swap: each "query" piece becomes the mean piece of the other of two clusters.

    Raises ValueError unless the labels are 0 and 1.
    """
    if set(labels_H.tolist()) != {0, 1}:
        raise ValueError(f"a swap needs two clusters labelled 0 and 1; got labels {sorted(set(labels_H.tolist()))}")
    matrix_XD = packed(decoder, layer)
    pieces_3HdD = matrix_XD.clone().unflatten(0, (3, len(labels_H), -1))
    means = [pieces_3HdD[0, torch.from_numpy(labels_H == label)].mean(0) for label in (0, 1)]
    pieces_3HdD[0] = torch.stack([means[1 - label] for label in labels_H.tolist()])
    return with_packed(decoder, layer, pieces_3HdD.flatten(0, 2))


def seed_spread(gram_RHH: np.ndarray, labels_RH: np.ndarray, width: int) -> dict[str, np.ndarray]:
    """The study's centre distance, variance within clusters (per entry, clusters counting alike) and their ratio."""
    between_R, within_Rk = spread(gram_RHH, labels_RH)
    known_Rk = np.isfinite(within_Rk)
    variance_R = np.where(known_Rk, within_Rk, 0).sum(-1) / known_Rk.sum(-1) / width
    ratio_R = np.divide(between_R, variance_R, out=np.full(len(between_R), np.nan), where=variance_R > 0)
    return {"centre_distance": between_R, "within_variance": variance_R, "separation": ratio_R}


@dataclass(frozen=True, kw_only=True)
class EntryTest:
    """Two clusters of pieces compared entry by entry, and the same for random splits of the pieces (of equal sizes).

    `p` ranks a statistic among the splits: (1 + splits at least as far apart) / (1 + splits).
    """

    wasserstein: float  # W₁ between the two sets of entries
    log10_p: float  # of the Kolmogorov–Smirnov test, entries as units; −300 stands for anything below
    null_wasserstein: float  # means over the splits
    null_log10_p: float
    p_wasserstein: float
    p_log10_p: float


def entry_test(
    pieces_HX: Tensor, labels_H: np.ndarray, generator: np.random.Generator, draws: int = ENTRY_SPLITS
) -> EntryTest:
    """Kolmogorov–Smirnov (asymptotic) and Wasserstein between the entries of cluster 0 and all others, as the seed did.

    The entries are sorted once; a split then costs one pass. The seed drew 1,000 entries for Wasserstein, this takes
    all.
    """
    width = pieces_HX.shape[1]
    entries_E, order_E = pieces_HX.flatten().double().sort()
    piece_E = (order_E // width).cpu().numpy()
    gaps_E = np.diff(entries_E.cpu().numpy())
    splits = [labels_H == 0, *(generator.permutation(labels_H == 0) for _ in range(draws))]
    results = np.array([_entry_statistics(gaps_E, piece_E, first_H) for first_H in splits])
    wasserstein_R, ks_R = results.T
    sizes = [width * int((labels_H == 0).sum()), width * int((labels_H != 0).sum())]
    root = np.sqrt(sizes[0] * sizes[1] / sum(sizes))
    with np.errstate(divide="ignore"):
        log10_p_R = np.maximum(np.log10(special.kolmogorov(root * ks_R)), _LEAST_LOG10_P)
    return EntryTest(
        wasserstein=float(wasserstein_R[0]),
        log10_p=float(log10_p_R[0]),
        null_wasserstein=float(wasserstein_R[1:].mean()),
        null_log10_p=float(log10_p_R[1:].mean()),
        p_wasserstein=_rank(wasserstein_R),
        p_log10_p=_rank(ks_R),
    )


def _rank(value_R: np.ndarray) -> float:
    slack = 1e-9 * np.abs(value_R).max()
    return float((value_R >= value_R[0] - slack).mean())


def _entry_statistics(gaps_E: np.ndarray, piece_E: np.ndarray, first_H: np.ndarray) -> Sequence[float]:
    """∫ |F − G| and max |F − G| for the distribution functions of the first pieces' entries and of the others'."""
    first_E = first_H[piece_E]
    step_E = np.where(first_E, 1 / first_E.sum(), -1 / (~first_E).sum())
    apart_E = np.abs(step_E.cumsum()[:-1])
    return float(apart_E @ gaps_E), float(apart_E[gaps_E > 0].max(initial=0.0))
