"""Balanced splits of a layer's heads: is even against odd anything but one split among many (science.md §11)?

Letters: S labelled splits, H heads, P pairs, K checkpoints. A labelled split names which half is "even"; swapping the
halves is another split, with the opposite strength. Splits are rows in an order in which row S − 1 − i is the
complement of row i, so that a half's partner needs no search.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Labelled balanced splits: `half_SH` marks the heads of each split's first half."""

    half_SH: np.ndarray  # bool
    even_odd: int  # the row whose first half is the even heads
    exact: bool  # whether these are all there are

    def __len__(self) -> int:
        return len(self.half_SH)

    def heads(self, split: int) -> tuple[int, ...]:
        """The heads of a split's first half."""
        return tuple(np.flatnonzero(self.half_SH[split]).tolist())

    def strengths(self, delta_SP: np.ndarray) -> np.ndarray:
        """Mean over pairs of Δ with the first half patched minus Δ with the other half patched, [S] in nats."""
        mean_S = np.asarray(delta_SP, dtype=float).mean(-1)
        return mean_S - mean_S[::-1]


def balanced_splits(
    num_heads: int, generator: np.random.Generator, *, exact_to: int = 16, sample: int = 5_000
) -> Splits:
    """All C(H, H/2) labelled splits up to H = `exact_to`, else even/odd and a sample of `sample` others.

    The sample is drawn without replacement and closed under swapping the halves, as the whole set is.
    Raises ValueError where H is odd, so that no split is balanced.
    """
    if num_heads % 2 or num_heads < 2:
        raise ValueError(
            f"{num_heads} heads have no balanced split into even and odd; choose a model with an even number"
        )
    heads, half = np.arange(num_heads), num_heads // 2
    if num_heads <= exact_to:
        # Lexicographic order reverses under complement.
        members = np.array(list(itertools.combinations(range(num_heads), half)))
        half_SH = (members[:, :, None] == heads).any(1)
    else:
        chosen = {tuple(heads[::2].tolist()): None}  # each with head 0, standing for itself and its complement
        while len(chosen) < 1 + sample // 2:
            rest = generator.choice(num_heads - 1, half - 1, replace=False) + 1
            chosen.setdefault((0, *sorted(rest.tolist())))
        first_SH = (np.array(list(chosen))[:, :, None] == heads).any(1)
        half_SH = np.concatenate((first_SH, ~first_SH[::-1]))
    even_odd = int(np.flatnonzero((half_SH == (heads % 2 == 0)).all(1))[0])
    return Splits(half_SH=half_SH, even_odd=even_odd, exact=len(half_SH) == math.comb(num_heads, half))


@dataclass(frozen=True, kw_only=True)
class RankTest:
    """Where one split stands among all: rank 1 is the strongest. p counts the splits at least as strong, itself too."""

    rank: int
    p_greater: float
    p_two_sided: float


def rank_test(strength_S: np.ndarray, split: int) -> RankTest:
    """Exact if the splits are all there are: under relabelling of the heads every rank is then equally likely.

    A sample counts the split itself among its splits too, so p = (1 + hits) / (1 + sample), which is valid at any
    sample size (Phipson & Smyth 2010). Strengths equal up to rounding tie, and a tie counts as a hit.
    """
    slack = 1e-9 * np.abs(strength_S).max(initial=0)
    at_least = int((strength_S >= strength_S[split] - slack).sum())
    extreme = int((np.abs(strength_S) >= abs(strength_S[split]) - slack).sum())
    return RankTest(rank=at_least, p_greater=at_least / len(strength_S), p_two_sided=extreme / len(strength_S))


def max_statistic_p(strength_KS: np.ndarray, split: int) -> np.ndarray:
    """p of a split at each of K checkpoints against the strongest moment of every split: two-sided, [K].

    Controls the family-wise error over the trajectory: with 70 splits at H = 8, p-values checkpoint by checkpoint times
    K could never fall below K/35. Strengths count in nats as they are. Divided by each checkpoint's root mean square
    over the splits, a checkpoint where patching does nothing (RMS 0.002 nats in a planted suite before its onset) has
    more extreme splits, 2.9, than one where even/odd repairs every answer and is most of the RMS itself (11 nats,
    1.7): p was 0.35 where all splits ranked even/odd first. What is missed is an effect that only early checkpoints
    have, smaller than the later noise.
    """
    size_KS = np.abs(np.asarray(strength_KS, dtype=float))
    strongest_S = size_KS.max(0)
    slack = 1e-9 * strongest_S.max(initial=0)
    return (strongest_S[None] >= size_KS[:, [split]] - slack).mean(1)


def split_table(splits: Splits, deltas: Mapping[int, np.ndarray], pairs: Sequence[str]) -> pa.Table:
    """One row per layer, split and pair: the heads patched as bits of an integer (head 0 is 1), and Δ in nats.

    `deltas` gives [S, P] for each layer.
    """
    bits_S = splits.half_SH @ (2 ** np.arange(splits.half_SH.shape[1], dtype=np.uint64))
    number_SP, pair_SP = np.indices((len(splits), len(pairs)), dtype=np.int32).reshape(2, -1)
    parts = [
        pa.table(
            {
                "layer": pa.array(np.full(delta_SP.size, layer, dtype=np.int32)),
                "split": pa.array(number_SP),
                "heads": pa.array(bits_S[number_SP]),
                "even_odd": pa.array(number_SP == splits.even_odd),
                "pair": pa.DictionaryArray.from_arrays(pa.array(pair_SP), list(pairs)),
                "delta_nats": pa.array(delta_SP.ravel()),
            }
        )
        for layer, delta_SP in deltas.items()
    ]
    return pa.concat_tables(parts)


def read_splits(table: pa.Table, layer: int) -> tuple[Splits, np.ndarray]:
    """The splits and Δ [S, P] of one layer that `split_table` wrote down.

    Raises KeyError where the table does not hold the layer.
    """
    rows = table.filter(pc.equal(table["layer"], layer))
    if not len(rows):
        raise KeyError(f"no splits of layer {layer}; there are layers {sorted(set(table['layer'].to_pylist()))}")
    number_X = rows["split"].to_numpy()
    first = np.flatnonzero(np.diff(number_X, prepend=-1))
    bits_S = rows["heads"].to_numpy()[first]
    heads = int(np.bitwise_or.reduce(bits_S)).bit_length()
    half_SH = (bits_S[:, None] >> np.arange(heads, dtype=np.uint64) & np.uint64(1)).astype(bool)
    even_odd = int(np.flatnonzero(rows["even_odd"].to_numpy(zero_copy_only=False)[first])[0])
    splits = Splits(half_SH=half_SH, even_odd=even_odd, exact=len(first) == math.comb(heads, heads // 2))
    return splits, rows["delta_nats"].to_numpy().reshape(len(first), -1)
