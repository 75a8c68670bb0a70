"""Splits of a layer's heads into halves: is even against odd anything but one split among many (science.md §11)?

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


def head_groups(pool: Sequence[int], size: int, most: int, generator: np.random.Generator) -> list[tuple[int, ...]]:
    """All groups of `size` heads of a pool if there are at most `most`, else `most` different random ones."""
    if math.comb(len(pool), size) <= most:
        return list(itertools.combinations(pool, size))
    groups: dict[tuple[int, ...], None] = {}
    while len(groups) < most:
        groups.setdefault(tuple(sorted(generator.choice(pool, size, replace=False).tolist())))
    return list(groups)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Labelled splits: `half_SH` marks the heads of each split's first half.

    With an odd number of heads one half has a head more, and does more. Then `strengths` are relative to the average of
    all splits whose first half has as many heads.
    """

    half_SH: np.ndarray  # bool
    reference: int  # the row whose first half is the even heads
    exact: bool  # whether these are all splits

    def __len__(self) -> int:
        return len(self.half_SH)

    def heads(self, split: int) -> tuple[int, ...]:
        """The heads of a split's first half."""
        return tuple(np.flatnonzero(self.half_SH[split]).tolist())

    @property
    def alike_S(self) -> np.ndarray:
        """The splits whose first half has as many heads as even/odd's: all of them where H is even."""
        size_S = self.half_SH.sum(1)
        return size_S == size_S[self.reference]

    def advantage(self, delta_SP: np.ndarray) -> float:
        """How far the first half is ahead of the second, mean over the splits `alike_S`; 0 where H is even.

        With odd H the first half of all these splits has one head more.
        """
        if self.alike_S.all():
            return 0.0
        mean_S = np.asarray(delta_SP, dtype=float).mean(-1)
        return float((mean_S - mean_S[::-1])[self.alike_S].mean())

    def strengths(self, delta_SP: np.ndarray) -> np.ndarray:
        """Mean over pairs of Δ with the first half patched minus Δ with the other half patched, [S] in nats."""
        mean_S, ahead = np.asarray(delta_SP, dtype=float).mean(-1), self.advantage(delta_SP)
        return mean_S - mean_S[::-1] - np.where(self.alike_S, ahead, -ahead)

    def balanced(self, bug_SP: np.ndarray, control_SC: np.ndarray) -> np.ndarray:
        """Strengths over bug and control pairs, each kind with half of the weight (science.md §11), [S] in nats."""
        return (self.strengths(bug_SP) + self.strengths(control_SC)) / 2

    def rank_test(self, strength_S: np.ndarray) -> RankTest:
        """Even/odd's rank among the splits whose first half has as many heads."""
        return rank_test(strength_S[self.alike_S], int(self.alike_S[: self.reference].sum()))


def balanced_splits(
    num_heads: int, generator: np.random.Generator, *, exact_to: int = 16, sample: int = 5_000
) -> Splits:
    """All labelled splits into ⌈H/2⌉ and ⌊H/2⌋ heads up to H = `exact_to`, else even/odd and `sample` others.

    The sample is drawn without replacement and closed under swapping the halves, as the whole set is.
    Raises ValueError for a single head.
    """
    if num_heads < 2:
        raise ValueError(f"{num_heads} heads cannot be split into even and odd ones; choose a model with 2 or more")
    heads, half, odd = np.arange(num_heads), -(-num_heads // 2), num_heads % 2
    if num_heads <= exact_to:
        # Lexicographic order reverses under complement.
        members = np.array(list(itertools.combinations(range(num_heads), half)))
        half_SH = (members[:, :, None] == heads).any(1)
    else:
        chosen = {tuple(heads[::2].tolist()): None}
        while len(chosen) < 1 + sample // 2:
            # Of halves of equal size those with head 0 are drawn, each standing for its complement too.
            pool = range(num_heads) if odd else range(1, num_heads)
            rest = generator.choice(len(pool), half - 1 + odd, replace=False) + pool[0]
            chosen.setdefault(tuple(sorted({*([] if odd else [0]), *rest.tolist()})))
        half_SH = (np.array(list(chosen))[:, :, None] == heads).any(1)
    if odd or num_heads > exact_to:
        half_SH = np.concatenate((half_SH, ~half_SH[::-1]))
    return _labelled(half_SH)


def _labelled(half_SH: np.ndarray) -> Splits:
    heads = half_SH.shape[1]
    reference = int(np.flatnonzero((half_SH == (np.arange(heads) % 2 == 0)).all(1))[0])
    every = math.comb(heads, heads // 2) * (1 + heads % 2)
    return Splits(half_SH=half_SH, reference=reference, exact=len(half_SH) == every)


@dataclass(frozen=True, kw_only=True)
class RankTest:
    """One split's rank, 1 for the strongest; p is the share of splits at least as strong, this one included."""

    rank: int
    p_greater: float
    p_two_sided: float


def rank_test(strength_S: np.ndarray, split: int) -> RankTest:
    """The rank and p of the row `split` among the S strengths.

    They are exact if all splits are given: under relabelling of the heads every rank is then equally likely. A sample
    holds the split itself too, so p = (1 + hits) / (1 + others), which is valid at any sample size (Phipson & Smyth
    2010). Strengths equal up to rounding tie, and a tie counts as a hit.
    """
    slack = 1e-9 * np.abs(strength_S).max(initial=0)
    at_least = int((strength_S >= strength_S[split] - slack).sum())
    extreme = int((np.abs(strength_S) >= abs(strength_S[split]) - slack).sum())
    return RankTest(rank=at_least, p_greater=at_least / len(strength_S), p_two_sided=extreme / len(strength_S))


def max_statistic_p(strength_KS: np.ndarray, split: int) -> np.ndarray:
    """Two-sided p of a split at each of K checkpoints against the largest strength that each split ever has, [K].

    This controls the family-wise error over the trajectory, also with few splits (science.md §11). Strengths are
    compared in nats, not divided by each checkpoint's spread over the splits: at checkpoints without an effect that
    spread is noise, and dividing by it inflates them. (In a planted organism the spread was 0.002 nats before the onset
    and 11 after; with the division p was 0.35 although every later checkpoint ranked even/odd first.) An effect that
    only early checkpoints have is missed where it is smaller than later noise.
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
                "is_reference": pa.array(number_SP == splits.reference),
                "pair": pa.DictionaryArray.from_arrays(pa.array(pair_SP), list(pairs)),
                "delta_nats": pa.array(delta_SP.ravel()),
            }
        )
        for layer, delta_SP in deltas.items()
    ]
    return pa.concat_tables(parts)


def read_splits(table: pa.Table, layer: int) -> tuple[Splits, np.ndarray]:
    """The splits and Δ [S, P] of one layer from a table that `split_table` made; KeyError for a layer that it lacks."""
    rows = table.filter(pc.equal(table["layer"], layer))
    if not len(rows):
        raise KeyError(f"no splits of layer {layer}; there are layers {sorted(set(table['layer'].to_pylist()))}")
    number_X = rows["split"].to_numpy()
    first = np.flatnonzero(np.diff(number_X, prepend=-1))
    bits_S = rows["heads"].to_numpy()[first].astype(np.uint64)
    heads = int(np.bitwise_or.reduce(bits_S)).bit_length()
    half_SH = (bits_S[:, None] >> np.arange(heads, dtype=np.uint64) & np.uint64(1)).astype(bool)
    return _labelled(half_SH), rows["delta_nats"].to_numpy().reshape(len(first), -1)
