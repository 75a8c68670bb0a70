from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from headdyn.analysis.interventions.splits import balanced_splits, max_statistic_p, rank_test, read_splits, split_table


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("heads", "count"), [(2, 2), (4, 6), (8, 70), (12, 924), (16, 12870)])
def test_all_labelled_splits_once(heads: int, count: int) -> None:
    splits = balanced_splits(heads, rng())
    assert len(splits) == count == math.comb(heads, heads // 2) and splits.exact
    assert len({tuple(row) for row in splits.half_SH}) == count
    assert (splits.half_SH.sum(1) == heads // 2).all()
    assert (splits.half_SH[::-1] == ~splits.half_SH).all()
    assert splits.heads(splits.reference) == tuple(range(0, heads, 2))


def test_beyond_sixteen_heads_a_sample_that_is_closed_under_swapping() -> None:
    splits = balanced_splits(32, rng(), sample=500)
    assert len(splits) == 502 and not splits.exact
    assert len({tuple(row) for row in splits.half_SH}) == 502
    assert (splits.half_SH.sum(1) == 16).all()
    assert (splits.half_SH[::-1] == ~splits.half_SH).all()
    assert splits.heads(splits.reference) == tuple(range(0, 32, 2))
    again = balanced_splits(32, rng(), sample=500)
    assert (again.half_SH == splits.half_SH).all()
    share_H = splits.half_SH[:251].mean(0)  # head 0 stands in all of these
    assert share_H[0] == 1 and np.abs(share_H[1:] - 15 / 31).max() < 4 * math.sqrt(0.25 / 251)


@pytest.mark.parametrize(("heads", "count"), [(3, 3), (5, 10), (9, 126)])
def test_an_odd_number_of_heads_is_split_into_halves_that_differ_by_one(heads: int, count: int) -> None:
    splits = balanced_splits(heads, rng())
    assert len(splits) == 2 * count and splits.exact and splits.alike_S.sum() == count
    assert (splits.half_SH[::-1] == ~splits.half_SH).all()
    assert set(splits.half_SH.sum(1)) == {heads // 2, heads // 2 + 1}
    assert len({tuple(row) for row in splits.half_SH}) == 2 * count
    assert splits.heads(splits.reference) == tuple(range(0, heads, 2)) and splits.alike_S[splits.reference]


def test_beyond_sixteen_heads_an_odd_number_is_sampled_too() -> None:
    splits = balanced_splits(25, rng(), sample=500)
    assert len(splits) == 502 and not splits.exact and splits.alike_S.sum() == 251
    assert (splits.half_SH[::-1] == ~splits.half_SH).all() and len({tuple(row) for row in splits.half_SH}) == 502
    assert np.abs(splits.half_SH[splits.alike_S].mean(0) - 13 / 25).max() < 4 * math.sqrt(0.25 / 251)


def test_the_larger_half_is_not_stronger_for_its_size() -> None:
    """Every head adds one nat: a half of three is one nat ahead of one of two, whichever heads they are."""
    splits = balanced_splits(5, rng())
    delta_S1 = splits.half_SH.sum(1, keepdims=True).astype(float)
    assert splits.advantage(delta_S1) == 1 and (splits.strengths(delta_S1) == 0).all()
    assert vars_of(splits.rank_test(splits.strengths(delta_S1))) == (10, 1.0, 1.0)
    even = balanced_splits(4, rng())
    assert even.advantage(rng().normal(size=(6, 3))) == 0


def test_one_head_has_no_halves() -> None:
    with pytest.raises(ValueError, match="1 heads cannot be split"):
        balanced_splits(1, rng())


def test_strength_is_half_against_other_half() -> None:
    splits = balanced_splits(4, rng())
    delta_SP = rng(1).normal(size=(6, 5))
    by_heads = {splits.heads(i): delta_SP[i].mean() for i in range(6)}
    expected = [by_heads[h] - by_heads[tuple(sorted({0, 1, 2, 3} - set(h)))] for h in map(splits.heads, range(6))]
    np.testing.assert_allclose(splits.strengths(delta_SP), expected)


def test_ranks_worked_out_by_hand() -> None:
    strength_S = np.array([3.0, 1.0, 2.0, -2.0, -1.0, -3.0])
    assert vars_of(rank_test(strength_S, 0)) == (1, 1 / 6, 2 / 6)
    assert vars_of(rank_test(strength_S, 2)) == (2, 2 / 6, 4 / 6)
    assert vars_of(rank_test(strength_S, 5)) == (6, 1.0, 2 / 6)
    assert vars_of(rank_test(np.zeros(6), 3)) == (6, 1.0, 1.0)  # no effect at all: ties are hits
    tied = np.array([1.0, 1.0 - 1e-12, 0.0, 0.0, -1.0 + 1e-12, -1.0])
    assert rank_test(tied, 0).rank == rank_test(tied, 1).rank == 2


def vars_of(test) -> tuple[int, float, float]:
    return test.rank, test.p_greater, test.p_two_sided


def test_smallest_p_at_twelve_heads() -> None:
    splits = balanced_splits(12, rng())
    delta_S1 = splits.half_SH @ (np.arange(12)[:, None] % 2 == 0)  # each even head adds one nat
    test = rank_test(splits.strengths(delta_S1.astype(float)), splits.reference)
    assert vars_of(test) == (1, 1 / 924, 1 / 462)


def test_relabelling_heads_in_all_ways_gives_uniform_p() -> None:
    """Exact validity: whatever the heads do, even/odd's rank is uniform over relabellings (science.md §16)."""
    heads, splits = 6, balanced_splits(6, rng())
    effect = {frozenset(splits.heads(i)): value for i, value in enumerate(rng(3).normal(size=20))}
    greater, two_sided, thresholded = [], [], []
    for order in itertools.permutations(range(heads)):  # head i of the relabelled model is head order[i]
        delta_S1 = np.array([[effect[frozenset(order[h] for h in splits.heads(i))]] for i in range(20)])
        test = rank_test(splits.strengths(delta_S1), splits.reference)
        greater.append(test.p_greater)
        two_sided.append(test.p_two_sided)
        thresholded.append(rank_test(splits.strengths(1.0 * (delta_S1 > 0)), splits.reference).p_greater)
    assert uniform(greater, 20) and uniform(two_sided, 10)
    assert not uniform(thresholded, 20)  # the mutant: success in place of Δ ties


def test_relabelling_an_odd_number_of_heads_gives_uniform_p() -> None:
    """Even/odd ranks among the splits whose first half is as large; among all of them its rank is too high."""
    splits = balanced_splits(5, rng())
    effect = {frozenset(splits.heads(i)): value for i, value in enumerate(rng(3).normal(size=20) + 5 * splits.alike_S)}
    greater, among_all = [], []
    for order in itertools.permutations(range(5)):
        delta_S1 = np.array([[effect[frozenset(order[h] for h in splits.heads(i))]] for i in range(20)])
        strength_S = splits.strengths(delta_S1)
        greater.append(splits.rank_test(strength_S).p_greater)
        among_all.append(rank_test(strength_S, splits.reference).p_greater)
    assert uniform(greater, 10)
    assert not uniform(among_all, 20)  # the mutant: halves of another size as if they were alike


def uniform(p: list[float], steps: int) -> bool:
    values, counts = np.unique(np.round(np.array(p) * steps, 9), return_counts=True)
    return bool(np.array_equal(values, np.arange(1, steps + 1)) and len(set(counts)) == 1)


def test_sampled_splits_keep_their_level() -> None:
    """With every head alike, even/odd against a sample is significant at 5 % in at most 5 % of models."""
    draws = rng(7)
    splits = balanced_splits(20, draws, exact_to=16, sample=198)
    hits = [
        rank_test(splits.strengths(splits.half_SH @ draws.normal(size=(20, 1))), splits.reference).p_two_sided <= 0.05
        for _ in range(2000)
    ]
    assert 0.035 < np.mean(hits) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_the_maximum_statistic_against_brute_force() -> None:
    strength_KS = rng(5).normal(size=(4, 12)) * np.array([[1.0], [30.0], [0.1], [2.0]])
    p_K = max_statistic_p(strength_KS, 3)
    size = np.abs(strength_KS)
    for k in range(4):
        hits = sum(any(size[j, s] >= size[k, 3] for j in range(4)) for s in range(12))
        assert p_K[k] == hits / 12
    assert (max_statistic_p(np.zeros((3, 6)), 0) == 1).all()


def test_the_maximum_statistic_holds_the_family_wise_error() -> None:
    draws, splits = rng(11), balanced_splits(8, rng())
    hits = 0
    for _ in range(2000):
        strength_KS = np.stack([splits.strengths(splits.half_SH @ draws.normal(size=(8, 1))) for _ in range(11)])
        hits += max_statistic_p(strength_KS, splits.reference).min() <= 0.05
    assert hits / 2000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
    # Without it, eleven checkpoints find something nearly every other time.
    naive = sum(
        min(
            rank_test(splits.strengths(splits.half_SH @ draws.normal(size=(8, 1))), splits.reference).p_two_sided
            for _ in range(11)
        )
        <= 0.05
        for _ in range(500)
    )
    assert naive / 500 > 0.2


def test_checkpoints_without_an_effect_do_not_hide_one() -> None:
    """Even/odd as in a planted organism: nothing at first, then a majority of even heads repairs, which saturates."""
    draws, splits = rng(13), balanced_splits(12, rng())
    majority_S = np.sign(splits.half_SH[:, ::2].sum(1) - 3.0)[:, None]
    before = [splits.strengths(0.001 * splits.half_SH @ draws.normal(size=(12, 1))) for _ in range(6)]
    after = [splits.strengths(k * majority_S + 0.1 * splits.half_SH @ draws.normal(size=(12, 1))) for k in range(5, 10)]
    strength_KS = np.stack([*before, *after])
    strength_KS[6:, splits.reference] += 2
    strength_KS[6:, len(splits) - 1 - splits.reference] -= 2
    assert max_statistic_p(strength_KS, splits.reference).min() == 2 / 924
    scaled_KS = strength_KS / np.sqrt((strength_KS**2).mean(1, keepdims=True))
    assert max_statistic_p(scaled_KS, splits.reference).min() > 0.05  # the mutant: noise counts as much


@pytest.mark.parametrize("heads", [4, 32])
def test_splits_are_read_back_as_they_were_written(heads: int) -> None:
    splits = balanced_splits(heads, rng(), sample=100)
    deltas = {layer: rng(layer).normal(size=(len(splits), 3)) for layer in (2, 5)}
    table = split_table(splits, deltas, ["9.8/9.11", "9.7/9.12", "8.8/8.11"])
    for layer, delta_SP in deltas.items():
        again, read_SP = read_splits(table, layer)
        assert (again.half_SH == splits.half_SH).all() and again.reference == splits.reference
        assert again.exact == splits.exact and (read_SP == delta_SP).all()
    row = table.slice(len(splits) * 3 - 1, 1).to_pylist()[0]
    assert row["pair"] == "8.8/8.11" and row["layer"] == 2
    assert row["heads"] == sum(2**head for head in splits.heads(len(splits) - 1))
    with pytest.raises(KeyError, match=r"no splits of layer 3; there are layers \[2, 5\]"):
        read_splits(table, 3)
