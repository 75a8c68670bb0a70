"""Telling heads' later roles from early checkpoints: by hand, by scipy, by every relabelling, and against chance."""

from __future__ import annotations

import itertools
import logging
import re

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from headdyn.analysis.series.prediction import (
    correlations,
    formed_by,
    interval,
    moving_together,
    moving_together_over_trainings,
    predicted_from,
    predictions,
    ranks_in_layers,
    relabelled,
)
from headdyn.core import progress
from headdyn.core.statistics import at_least_as_high

STEPS = (1, 10, 100)


def test_ranks_and_their_correlation_are_scipys_within_layers() -> None:
    value_KLH = np.random.default_rng(0).integers(5, size=(2, 3, 6)).astype(float)  # with ties
    ranks = ranks_in_layers(value_KLH)
    np.testing.assert_allclose(ranks, rankdata(value_KLH, axis=-1) - 3.5)
    one_layer = value_KLH[:, :1]
    expected = spearmanr(one_layer[0, 0], one_layer[1, 0]).statistic
    assert correlations(*ranks_in_layers(one_layer)) == pytest.approx(expected)
    apart = value_KLH + 100 * np.arange(3)[:, None]  # mutant: ranks over the model, where layers' levels would count
    np.testing.assert_array_equal(ranks_in_layers(apart), ranks)
    assert ranks_in_layers(np.array([[[np.nan, 1.0, 2.0]]])).tolist() == [[[-1, 0, 1]]]
    assert correlations(np.zeros((1, 2)), np.array([[-0.5, 0.5]])) == 0  # heads that all tie tell nothing


def test_all_relabellings_are_counted_where_they_are_few() -> None:
    value_KLH = np.array([[[1, 2, 3], [3, 1, 2]], [[1, 3, 2], [3, 2, 1]]], dtype=float)
    (record,) = predictions((0, 1), {"x": value_KLH}, 999, np.random.default_rng(0))
    ranks = ranks_in_layers(value_KLH)
    every = [
        (ranks[0, 0] * ranks[1, 0][list(one)]).sum() + (ranks[0, 1] * ranks[1, 1][list(other)]).sum()
        for one, other in itertools.product(itertools.permutations(range(3)), repeat=2)
    ]
    assert record["exact"] and record["p"] == np.mean(np.array(every) >= every[0] - 1e-9)
    assert record["correlation"] == pytest.approx(every[0] / 4)  # two layers with squared ranks of 2 each
    drawn, exact = relabelled(ranks[1], 20, np.random.default_rng(0))
    assert not exact and len(drawn) == 21 and (np.sort(drawn) == np.sort(ranks[1])).all()


def test_what_lasts_is_told_and_what_does_not_is_not() -> None:
    draws = np.random.default_rng(1)
    last_LH, before_LH = draws.normal(size=(2, 4, 6))
    lasts = np.stack([before_LH, last_LH + 0.1 * draws.normal(size=(4, 6)), last_LH])
    led = np.stack([last_LH, draws.normal(size=(4, 6)), draws.normal(size=(4, 6))])
    records = predictions(STEPS, {"lasts": lasts, "led": led}, 999, np.random.default_rng(0))
    assert len(records) == 2 * 2 * 2 and all(record["step"] < 100 for record in records)
    assert predicted_from(records, "lasts", 0.05) == (10, "lasts")
    assert predicted_from(records, "led", 0.05) is None
    by_other = next(r for r in records if (r["final"], r["early"], r["step"]) == ("lasts", "led", 1))
    assert by_other["q"] < 0.02 and by_other["correlation"] == 1  # told once, and no more: it does not count
    assert all(r["ci_low"] <= r["correlation"] <= r["ci_high"] for r in records)


def test_it_says_how_many_correlations_are_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 0)
    caplog.set_level(logging.INFO)
    value_KLH = np.random.default_rng(0).normal(size=(3, 1, 4))
    records = predictions((0, 1, 2), {"x": value_KLH, "y": value_KLH}, 99, np.random.default_rng(0))
    counts = re.findall(r"predicting the last ranks of (\w): (\d) correlations of 4, ", caplog.text)
    assert counts == [(role, str(done)) for role in "xy" for done in range(1, 5)] and len(records) == len(counts)


def test_p_holds_its_level_where_layers_differ_and_heads_do_not() -> None:
    """Mutant: heads dealt anew over the whole model reject nearly always, since layers keep their levels."""
    levels = 10 * np.arange(3)[:, None]
    p = []
    for seed in range(200):
        value_KLH = np.random.default_rng(seed).normal(size=(2, 3, 5)) + levels
        p.append(predictions((0, 1), {"x": value_KLH}, 199, np.random.default_rng(seed))[0]["p"])
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.10  # binomial, 200 trials of 0.05: 99.9 % lie in it
    assert abs(np.mean(p) - 0.5) < 0.08


def test_the_interval_narrows_with_the_heads_and_holds_the_truth() -> None:
    draws = np.random.default_rng(2)
    width = []
    for heads in (8, 128):
        last = draws.normal(size=(1, 2, heads))
        early = last + draws.normal(size=last.shape)  # a correlation of about 0.69 in ranks
        low, high = interval(ranks_in_layers(early)[0], ranks_in_layers(last)[0], 999, np.random.default_rng(0))
        assert low < 0.69 < high
        width.append(high - low)
    assert width[1] < width[0] / 2


def test_a_role_has_formed_when_half_of_its_heads_had_it() -> None:
    holds = np.array([[[1, 0, 0, 0]], [[0, 1, 0, 0]], [[0, 1, 1, 1]]], dtype=bool)
    assert formed_by(STEPS, holds) == 100  # of heads 1 to 3 one had it at 10
    holds[1, 0, 2] = True
    assert formed_by(STEPS, holds) == 10
    assert formed_by(STEPS, np.zeros_like(holds)) is None


def test_changes_of_one_training_are_correlated_as_scipy_does_without_p() -> None:
    steps = (0, 1, 2, 4, 8, 16)
    change = {"one": [1.0, 5.0, 2.0, 3.0, 4.0], "other": [2.0, 9.0, 3.0, 5.0, 4.0], "flat": [0.0] * 5}
    courses = {name: dict(zip(steps, np.cumsum([0, *each]), strict=True)) for name, each in change.items()}
    courses["short"] = {step: float(step) for step in steps[:4]}
    (record,) = moving_together(courses)
    expected = spearmanr(change["one"], change["other"]).statistic
    assert record == {"one": "one", "other": "other", "correlation": pytest.approx(expected), "changes": 5}
    assert expected == pytest.approx(0.9)


# -- curves that move together over trainings ---------------------------------------------------------------------------

LOG_STEPS = (0, *(2**k for k in range(14)))  # to 8192
MIDPOINTS = (100.0, 2000.0)  # steps between which curves reach half of their height: all learning in one window


def learning_curve(midpoint: float, draws: np.random.Generator) -> dict[int, float]:
    """A logistic curve over the log of the step, from 0 to 1, with noise of 0.01."""
    share = 1 / (1 + (midpoint / (np.array(LOG_STEPS) + 1)) ** 3)
    return dict(zip(LOG_STEPS, (share + 0.01 * draws.normal(size=len(share))).tolist(), strict=True))


def suite(draws: np.random.Generator, *, seeds: int, shared: bool) -> list[dict[str, dict[int, float]]]:
    """Trainings with two curves, whose midpoints are one and the same in each training, or independent."""
    trainings = []
    for _ in range(seeds):
        one, other = np.exp(draws.uniform(*np.log(MIDPOINTS), size=2))
        trainings.append({"one": learning_curve(one, draws), "other": learning_curve(one if shared else other, draws)})
    return trainings


def p_by_shuffled_changes(courses: dict[str, dict[int, float]], draws: np.random.Generator) -> float:
    """The mutant: the null with one curve's changes in random order, as if they could be exchanged."""
    one_1C, other_1C = (ranks_in_layers(np.diff(list(course.values())))[None] for course in courses.values())
    shuffled_R1C, _ = relabelled(other_1C, 199, draws)
    return at_least_as_high(np.abs(correlations(one_1C[None], shuffled_R1C)))


@pytest.mark.parametrize("seeds", [6, 8])  # all orders of the trainings, and random ones
def test_unrelated_curves_that_rise_in_one_window_are_not_called_related(seeds: int) -> None:
    p, across, by_shuffled = [], [], []
    for number in range(200):
        draws = np.random.default_rng(number)
        trainings = suite(draws, seeds=seeds, shared=False)
        (record,) = moving_together_over_trainings(trainings, draws)
        p.append(record["p"])
        across.append(record["across"])
        by_shuffled.append(p_by_shuffled_changes(trainings[0], draws))
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.09
    assert np.mean(across) > 0.2  # what all trainings share
    assert np.mean(np.array(by_shuffled) <= 0.05) > 0.3


def test_curves_with_the_same_midpoint_in_each_training_are_found() -> None:
    found = []
    for number in range(50):
        draws = np.random.default_rng(number)
        (record,) = moving_together_over_trainings(suite(draws, seeds=7, shared=True), draws)
        found.append(record["p"] <= 0.05)
    assert np.mean(found) > 0.8


def test_three_trainings_by_hand() -> None:
    """Changes are orders of 1 to 4, between which ρ = 1 − Σd²/10: 0.6 of a and b, −1 of a and c, −0.6 of b and c."""
    a, b, c = [1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 4.0, 3.0], [4.0, 3.0, 2.0, 1.0]
    changes = {"one": (a, b, c), "same": (a, b, c), "swapped": (b, a, c), "flat": ([0.0] * 4,) * 3}
    trainings = [
        {name: dict(enumerate(np.cumsum([0, *each[seed]]).tolist())) for name, each in changes.items()}
        for seed in range(3)
    ]
    trainings[0]["only here"] = trainings[0]["one"]
    same, swapped, other_swapped = moving_together_over_trainings(trainings, np.random.default_rng(0))
    # The six orders give (1 + 1 + 1)/3, (0.6 + 0.6 + 1)/3, (−1 + 1 − 1)/3, (1 − 0.6 − 0.6)/3, twice (0.6 − 0.6 − 1)/3.
    assert (same["one"], same["other"]) == ("one", "same")
    assert same["within"] == pytest.approx(1) and same["across"] == pytest.approx((0.6 - 1 - 0.6) / 3)
    assert same["p"] == same["least_p"] == pytest.approx(1 / 6)
    assert (same["exact"], same["changes"], same["n"]) == (True, 4, 3)
    # Only the order that swaps them back gives more.
    assert (swapped["one"], swapped["other"]) == ("one", "swapped")
    assert swapped["within"] == pytest.approx(2.2 / 3) and swapped["p"] == pytest.approx(2 / 6)
    assert swapped["across"] == pytest.approx((1 + 1 - 1 - 0.6 - 1 - 0.6) / 6)
    assert other_swapped["p"] == swapped["p"]
    assert [each["q"] for each in (same, swapped, other_swapped)] == pytest.approx([1 / 3] * 3)


def test_orders_are_all_up_to_seven_trainings_then_random() -> None:
    draws = np.random.default_rng(0)
    (seven,), (eight,) = (
        moving_together_over_trainings(suite(draws, seeds=seeds, shared=True), draws) for seeds in (7, 8)
    )
    assert (seven["exact"], eight["exact"]) == (True, False)
    assert (seven["least_p"], eight["least_p"]) == (1 / 5040, 1 / 5000)
