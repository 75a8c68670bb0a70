from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from headdyn.analysis.interventions.splits import balanced_splits, max_statistic_p
from headdyn.analysis.series.onset import (
    climbs,
    crossings,
    departure,
    first_above,
    half_of_highest,
    margins,
    null_band,
    possible_stages,
    resampled,
    rise_bracket,
    rise_widths,
    stage,
    turns,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_first_above_by_hand() -> None:
    value_BK = np.array([[0, 0, 1, 0], [0, 0.5, 0.5, 0.5], [0.6, 0, 0, 0], [0, 0.2, 0.6, 0.9]])
    assert first_above(value_BK, 0.5).tolist() == [2, 4, 0, 2]  # at the threshold is not above it
    assert first_above(value_BK, half_of_highest(value_BK)).tolist() == [2, 1, 0, 2]
    assert first_above(-value_BK, half_of_highest(-value_BK)).tolist() == [4, 4, 4, 4]
    assert first_above(value_BK[0], 0.5) == 2


@pytest.mark.parametrize(
    ("values", "start", "end", "rise", "jump", "share"),
    [
        ([0, 0, 0, 1], 2, 3, 1, 2, 1),  # a step
        ([0, 0.25, 0.5, 0.75, 1], 0, 4, 1, 0, 0.25),  # a ramp: four intervals alike
        ([0, 0.1, 0.8, 1, 1], 0, 3, 1, 1, 0.7),
        ([0, 1, 0], 0, 1, 1, 0, 1),  # falls again
        ([1, 0, 0, 1], 2, 3, 1, 2, 1),  # starts high
        ([0, 0.9, 0, 0.5, 1], 2, 4, 1, 2, 0.5),  # the steepest interval lies outside the largest rise
        ([0, 0, 0], 2, 0, 0, 0, np.nan),
        ([3, 2, 1], 2, 0, 0, 0, np.nan),
    ],
)
def test_climbs_by_hand(values: list, start: int, end: int, rise: float, jump: int, share: float) -> None:
    found = climbs(np.array([values], dtype=float))
    assert found.rise_B[0] == pytest.approx(rise)
    np.testing.assert_allclose(found.share_B[0], share)
    if rise:
        assert (found.start_B[0], found.end_B[0], found.jump_B[0]) == (start, end, jump)


def test_climbs_against_all_intervals() -> None:
    value_BK = rng(1).normal(size=(300, 7)).round(1)
    found = climbs(value_BK)
    for b, value_K in enumerate(value_BK):
        rises = {(i, j): value_K[j] - value_K[i] for i, j in itertools.combinations(range(7), 2)}
        best = max([*rises.values(), 0.0])
        assert found.rise_B[b] == pytest.approx(best)
        if best > 0:
            i, j = found.start_B[b], found.end_B[b]
            assert rises[i, j] == pytest.approx(best)
            assert found.share_B[b] * best == pytest.approx(np.diff(value_K[i : j + 1]).max())
            assert i <= found.jump_B[b] < j


def test_a_trajectory_alone_is_what_it_is_among_others() -> None:
    value_BK, steps = rng(3).normal(size=(6, 7)), np.arange(7.0)
    among = [*vars(climbs(value_BK)).values(), *rise_widths(value_BK, steps, climbs(value_BK))]
    among += [*rise_bracket(value_BK, climbs(value_BK)), half_of_highest(value_BK), departure(value_BK > 0)]
    for number, value_K in enumerate(value_BK):
        alone = [*vars(climbs(value_K)).values(), *rise_widths(value_K, steps, climbs(value_K))]
        alone += [*rise_bracket(value_K, climbs(value_K)), half_of_highest(value_K), departure(value_K > 0)]
        np.testing.assert_allclose(np.array(alone, float), [each_B[number] for each_B in among])


def test_widths_hold_the_truth_of_every_rising_curve() -> None:
    """Random rises between 0 and 1, read at random checkpoints: the true width from 10 to 90 % lies in the bounds."""
    draws = rng(4)
    for _ in range(300):
        knots = np.sort(draws.uniform(1, 999, size=4))
        heights = [0, 0, *np.sort(draws.random(2)), 1, 1]
        places = [0, *knots, 1000]
        steps = np.array([0, *np.sort(draws.choice(np.arange(1, 1000), 9, replace=False)), 1000])
        value_BK = np.interp(steps, places, heights)[None]
        fine = np.linspace(0, 1000, 100_001)
        curve = np.interp(fine, places, heights)
        width = fine[(curve >= 0.9).argmax()] - fine[(curve > 0.1).argmax()]
        fewest_B, most_B = rise_widths(value_BK, steps.tolist(), climbs(value_BK))
        assert fewest_B[0] - 0.02 <= width <= most_B[0] + 0.02
    flat = np.zeros((1, 3))
    assert np.isnan(rise_widths(flat, [1, 2, 3], climbs(flat))).all()


def test_noise_at_either_end_lengthens_no_rise() -> None:
    """A rise in one interval, with wiggles of a seventh before or behind it: by the margin they are noise."""
    steps = [0, 10, 20, 30, 40]
    for values in ([0, 1.0, 0.85, 0.88, 1.2], [0, 0.15, 0.14, 0.15, 1.2]):
        value_BK = np.array([values])
        for margin, fewest in ((0.4, 0), (0.0, 20)):
            for scale in (1, 100):
                found = rise_widths(scale * value_BK, steps, climbs(scale * value_BK), scale * margin)
                assert found[0].tolist() == [fewest]


def test_a_departure_is_for_good() -> None:
    beyond_BK = np.array([[0, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 1, 0]], dtype=bool)
    assert departure(beyond_BK).tolist() == [3, 0, 4, 5]
    assert departure(beyond_BK[0]) == 3  # the mutant, the first one marked, would be 1


@pytest.mark.parametrize(
    ("values", "count", "steady"),
    [
        ([0, 0, 1, 1], 0, True),
        ([0, 1, 2, 3], 0, True),
        ([0, 1, 0, 1], 2, False),
        ([0, 1, 0], 1, False),
        ([3, 2, 1], 0, False),
        ([3, 1, 1, 2], 1, False),
        ([0, 0, 0], 0, True),
        ([1], 0, True),
        ([0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1], 2, False),  # seed 002's even heads
    ],
)
def test_turns_by_hand(values: list, count: int, steady: bool) -> None:
    assert turns(np.array(values, dtype=float)) == (count, steady)


def test_moves_within_the_margin_turn_nothing() -> None:
    value_K = np.array([0, 0.1, 0.05, 0.4, 0.35, 1.0, 0.95, 0.2])
    assert turns(value_K) == (5, False)
    assert turns(value_K, 0.2) == (1, False)
    assert turns(value_K[:-1], 0.2) == (0, True)
    # A slow fall of many moves within the margin is one move beyond it.
    assert turns(np.array([0, 1, 0.85, 0.7, 0.55]), 0.2) == (1, False)
    assert turns(value_K, 2.0) == (0, True)


def test_margins_are_students_paired_intervals() -> None:
    value_KP = rng(2).normal(size=(3, 12))
    margin_KK = margins(value_KP, 0.95)
    assert margin_KK[1, 1] == 0
    test = scipy.stats.ttest_rel(value_KP[0], value_KP[2])
    low, high = test.confidence_interval(1 - 0.05 / 3)
    assert margin_KK[0, 2] == margin_KK[2, 0] == pytest.approx((high - low) / 2)


def share_with_turns(trend_K: np.ndarray, margin: bool, models: int = 400, pairs: int = 24) -> float:
    draws, seen = rng(3), 0
    for _ in range(models):
        level_P = draws.normal(size=pairs)  # pairs differ, the same way at every checkpoint
        value_KP = trend_K[:, None] + level_P + draws.normal(size=(len(trend_K), pairs))
        seen += turns(value_KP.mean(1), margins(value_KP) if margin else 0.0)[0] > 0
    return seen / models


@pytest.mark.parametrize("trend", [np.zeros(11), np.linspace(0, 3, 11)], ids=["flat", "ramp"])
def test_noise_reverses_hardly_anything(trend: np.ndarray) -> None:
    assert share_with_turns(trend, margin=True) <= 0.05
    assert share_with_turns(trend, margin=False) > 0.3  # the mutant: every wiggle counts
    back = np.concatenate([trend[:6] + np.linspace(0, 3, 6), np.zeros(5)])
    assert share_with_turns(back, margin=True) > 0.95


def test_crossings_by_hand() -> None:
    assert crossings(np.array([0, 0, 1, 1, 0, 1.0]), 0.5) == (2, 1)
    assert crossings(np.array([1.0, 0, 0]), 0.5) == (1, 1)
    assert crossings(np.zeros(4), 0.5) == (0, 0)


def test_words_for_stages() -> None:
    assert [stage(share) for share in (None, 0.0, 0.25, 0.26, 0.74, 0.75, 1.0)] == [
        "none",
        "early",
        "early",
        "mid",
        "mid",
        "late",
        "late",
    ]
    assert possible_stages(None, None) == ["none"]
    assert possible_stages(120 / 143, 1.0) == ["late"]
    assert possible_stages(32 / 143, 64 / 143) == ["early", "mid"]
    assert possible_stages(0.2, 0.8) == ["early", "mid", "late"]
    assert possible_stages(None, 0.1) == ["early"]
    assert possible_stages(0.25, 0.75) == ["mid", "late"]
    assert possible_stages(0.75, 0.8) == ["late"]


def test_a_draw_takes_the_same_pairs_everywhere() -> None:
    value_KP = np.stack([np.arange(5.0), 2 * np.arange(5.0), np.ones(5)])
    draw_BK = resampled(value_KP, rng(), 500)
    np.testing.assert_allclose(draw_BK[:, 1], 2 * draw_BK[:, 0])
    assert (draw_BK[:, 2] == 1).all()
    assert draw_BK[:, 0].mean() == pytest.approx(2, abs=0.1)
    assert draw_BK[:, 0].std() == pytest.approx(np.sqrt(2 / 5), abs=0.05)


@pytest.mark.parametrize("heads", [8, 12])
def test_the_band_is_where_the_trajectory_wide_p_turns(heads: int) -> None:
    splits = balanced_splits(heads, rng())
    for seed in range(20):
        effect_KH = rng(seed).normal(size=(6, heads)) * np.array([1e-3, 1, 5, 0.1, 2, 1])[:, None]
        strength_KS = np.stack([splits.strengths(splits.half_SH @ e_H[:, None]) for e_H in effect_KH])
        band_K = null_band(strength_KS)
        assert band_K is not None
        for split in range(0, len(splits), 7):
            significant_K = max_statistic_p(strength_KS, split) <= 0.05
            assert (significant_K == (np.abs(strength_KS[:, split]) > band_K * (1 + 1e-9))).all()


def test_too_few_splits_have_no_band() -> None:
    splits = balanced_splits(4, rng())
    strength_KS = np.stack([splits.strengths(rng(k).normal(size=(6, 1))) for k in range(3)])
    assert null_band(strength_KS) is None
    assert (null_band(np.zeros((2, 70))) == 0).all()


def test_half_of_the_highest_is_half() -> None:
    np.testing.assert_array_equal(half_of_highest(np.array([[0.0, 4, 1], [-1, -2, 0]])), [2, np.inf])


def test_where_nothing_rises_there_is_no_width_and_nothing_is_divided_by_zero() -> None:
    values = np.array([[3.0, 3, 3], [2, 1, 0]])
    with np.errstate(all="raise"):
        widths = rise_widths(values, (0, 1, 2), climbs(values))
    assert np.isnan(widths).all()


def test_a_bracket_counts_heights_of_exactly_a_tenth_and_nine_tenths() -> None:
    values = np.array([[0.0, 1, 5, 9, 10]])
    low, high = rise_bracket(values, climbs(values))
    assert (low[0], high[0]) == (1, 3)
    values = np.array([[0.0, 9.5, 0.5, 10]])  # a fall back behind the first height of nine tenths does not count
    low, high = rise_bracket(values, climbs(values))
    assert (low[0], high[0]) == (0, 1)


def test_an_emergence_by_the_end_of_the_early_part_is_early_alone() -> None:
    assert possible_stages(0.1, 0.25) == ["early"] and possible_stages(0.1, 0.26) == ["early", "mid"]


def test_forty_splits_are_the_fewest_with_a_band() -> None:
    strength_S = np.arange(40.0)
    assert null_band(strength_S[None]) == [37]  # two of forty lie above it
    assert null_band(strength_S[None, :39]) is None
