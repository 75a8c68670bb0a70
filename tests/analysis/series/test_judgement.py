"""Trajectories worked out by hand, the original studies' own tables, and the calibration of what is said of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from headdyn.analysis.series.judgement import Measure, Rules, _over_draws, _undecided, judge

TOTAL = 1000


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_judgement_has_two_thousand_draws_unless_told() -> None:
    value_KP = np.linspace(0, 1, 6)[:, None] + rng(1).normal(0, 0.3, (6, 8))
    measure = Measure(
        name="strength", steps=tuple(range(1, 7)), value_K=value_KP.mean(1), value_KP=value_KP, threshold=0.5
    )
    assert judge(measure, 6, Rules(), rng(2)) == judge(measure, 6, Rules(), rng(2), draws=2000)


def judgement_of(
    values: list[float], steps: list[int] | None = None, total: int = TOTAL, **fields: Any
) -> dict[str, Any]:
    steps = steps or [total * (k + 1) // len(values) for k in range(len(values))]
    fields = {"threshold": 0.5, **fields}
    measure = Measure(name="strength", steps=tuple(steps), value_K=np.array(values, dtype=float), **fields)
    found = judge(measure, total, Rules(), rng())
    assert json.loads(json.dumps(found, allow_nan=False)) == found, "plain values"
    return found


@pytest.mark.parametrize(
    ("values", "interval", "word", "possible", "pace"),
    [
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 1], (900, 1000), "late", ["late"], "sudden"),
        ([0, 0, 0, 0, 1, 1, 1, 1, 1, 1], (400, 500), "mid", ["mid"], "sudden"),
        ([0, 1, 1, 1, 1, 1, 1, 1, 1, 1], (100, 200), "early", ["early"], "sudden"),
        ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], (None, 100), "early", ["early"], None),
        ([0.1 * k for k in range(10)], (600, 700), "mid", ["mid"], "gradual"),
        ([0] * 10, (None, None), "none", ["none"], None),
        ([0.5] * 10, (None, None), "none", ["none"], None),  # at the threshold is not above it
        ([-1] * 10, (None, None), "none", ["none"], None),
        ([0, 0, 1], (666, 1000), "late", ["mid", "late"], "undecided"),  # too coarse to tell mid from late
        ([0, 0.6, 0, 0.6], (250, 500), "mid", ["mid"], "undecided"),
    ],
)
def test_by_hand(values: list[float], interval: tuple, word: str, possible: list[str], pace: str | None) -> None:
    found = judgement_of(values)
    assert (found["emerges_after_step"], found["emerges_at_step"]) == interval
    assert (found["class"], found["possible_classes"], found["pace"]) == (word, possible, pace)


def test_what_else_is_said() -> None:
    found = judgement_of([0, 0.1, 0.7, 0.4, 1.0], [1, 10, 100, 500, 1000])
    assert (found["rise"], found["rise_steps"], found["jump_steps"]) == (1.0, [1, 1000], [10, 100])
    assert found["jump_share"] == pytest.approx(0.6) and found["jump_width_share"] == pytest.approx(0.09)
    assert (found["rise_10_to_90_steps"], found["rise_10_to_90_shares"]) == ([10, 1000], [0.4, 0.99])
    assert (found["monotone"], found["reversals"]) == (False, 2)
    assert (found["appearances"], found["disappearances"]) == (2, 1)
    assert found["emerges_at_share"] == 0.1
    assert judgement_of([0, 0])["none_reason"] == "it never rises above 0.5: its highest value is 0"


def test_a_reversal_undoes_a_tenth_of_the_rise_or_more() -> None:
    assert judgement_of([0, 0.6, 0.55, 1.0, 0.95])["reversals"] == 0
    assert judgement_of([0, 0.6, 0.49, 1.0, 0.95])["reversals"] == 2
    even, odd = (judgement_of([row[column] for row in ORIGINAL_TIMELINE])["reversals"] for column in (1, 2))
    assert (even, odd) == (2, 1)


def test_the_bounds_of_a_pace_are_exact() -> None:
    """Sudden at exactly 10 % of training, and gradual only beyond exactly 25 %."""
    assert (
        judgement_of([0, 1], [900, 1000])["pace"] == "sudden"
        and judgement_of([0, 1], [899, 1000])["pace"] == "undecided"
    )
    assert judgement_of([0, 0.5, 0.51, 1], [500, 550, 800, 1000])["pace"] == "undecided"
    assert judgement_of([0, 0.5, 0.51, 1], [500, 550, 801, 1000])["pace"] == "gradual"
    between = judgement_of([0, 0.5, 0.51, 1], [790, 800, 920, 1000])
    assert between["rise_10_to_90_shares"] == [0.12, 0.21]
    assert between["pace_reason"] == "longer than a sudden rise and shorter than a gradual one"


def logistic(midpoint: float, width: float, steps: list[int]) -> list[float]:
    """A rise from 0 to 1 whose part from 10 to 90 % takes this share of training."""
    place = (np.array(steps) / TOTAL - midpoint) / width
    return (1 / (1 + 9.0 ** (-2 * place.clip(-50, 50)))).tolist()


SCHEDULES = {
    "original_11": [7, 14, 28, 56, 112, 224, 448, 560, 700, 839, 1000],
    "log": [0, 1, 2, 4, 8, 16, 32, 63, 125, 250, 500, 1000],
    "tenths": list(range(0, 1001, 100)),
}


@pytest.mark.parametrize("steps", SCHEDULES.values(), ids=SCHEDULES)
def test_no_spacing_makes_a_slow_rise_sudden(steps: list[int]) -> None:
    """Over 40 % of training from 10 to 90 %, wherever its middle: the rule of before called up to 0.7 of them sudden."""
    slow = [judgement_of(logistic(middle, 0.4, steps), steps, threshold=0.4) for middle in np.arange(0.1, 0.9, 0.02)]
    assert {judgement["pace"] for judgement in slow} <= {"gradual", "undecided", None}
    fast = [judgement_of(logistic(middle, 0.001, steps), steps, threshold=0.4) for middle in np.arange(0.1, 0.9, 0.02)]
    assert {judgement["pace"] for judgement in fast} <= {"sudden", "undecided"}
    before = np.mean([judgement["jump_share"] >= 0.5 for judgement in slow])  # the mutant: half of the rise in one step
    assert before > 0.2 or steps == SCHEDULES["tenths"]


def test_the_spacing_that_is_named_decides() -> None:
    undecided = judgement_of([0, 0, 1])
    assert undecided["pace_reason"] == "the checkpoints lie too far apart; 25 steps from one to the next would decide"
    steps = list(range(0, 1001, 25))
    for middle in np.arange(0.3, 0.7, 0.0125):
        for width, word in ((0.0, "sudden"), (0.05, "sudden"), (0.301, "gradual"), (0.4, "gradual")):
            values = logistic(middle, max(width, 1e-4), steps)
            ends = [0.0, *values[1:-1], 1.0]  # the curve's whole height is on record, as its tails would have it
            assert judgement_of(ends, steps)["pace"] == word, (middle, width)


# -- the original studies' own tables --------------------------------------------------------------------------------------------

# The study of even and odd heads, "Timeline Analysis": step, even success, odd success, of Pythia-160m's layer 6.
ORIGINAL_TIMELINE = [
    (1000, 0, 0),
    (2000, 0, 0),
    (4000, 0, 0),
    (8000, 0, 0),
    (16000, 0, 0),
    (32000, 1, 1),
    (64000, 1, 1),
    (80000, 0, 0),
    (100000, 0, 0),
    (120000, 0, 0),
    (143000, 1, 0),
]
# Silhouettes of k-means with k = 2, the public record of the study of weight clusters: step, query, key, value.
ORIGINAL_SILHOUETTES = [
    (1000, 0.019, 0.062, 0.026),
    (5000, 0.056, 0.09, 0.084),
    (10000, 0.048, 0.075, 0.074),
    (20000, 0.054, 0.07, 0.074),
    (40000, 0.05, 0.073, 0.08),
    (80000, 0.051, 0.084, 0.091),
    (120000, 0.646, 0.277, 0.626),
    (143000, 0.606, 0.467, 0.687),
]


def test_the_parity_studys_dates_follow_from_its_table() -> None:
    steps, even, odd = zip(*ORIGINAL_TIMELINE, strict=True)
    found = judgement_of([e - o for e, o in zip(even, odd, strict=True)], list(steps), 143000)
    assert (found["emerges_after_step"], found["emerges_at_step"]) == (120000, 143000)
    assert (found["class"], found["possible_classes"], found["pace"]) == ("late", ["late"], "undecided")
    assert found["monotone"] and found["jump_share"] == 1
    # Its "final 0.8 %" of training is 16 %: no checkpoint lies between, so that "sudden" cannot be said of it.
    assert found["rise_10_to_90_shares"] == [0, pytest.approx(0.161, abs=5e-4)]
    assert found["jump_width_share"] == pytest.approx(0.161, abs=5e-4)
    # One prompt has no sampling error that could be told, so that nothing is said of probabilities.
    assert "probabilities" not in found


def test_the_cluster_studys_dates_follow_from_its_silhouettes() -> None:
    steps, query, key, value = zip(*ORIGINAL_SILHOUETTES, strict=True)
    for column in (query, value):
        found = judgement_of(list(column), list(steps), 143000)
        assert (found["emerges_after_step"], found["emerges_at_step"]) == (80000, 120000)
        assert (found["pace"], found["possible_classes"]) == ("undecided", ["mid", "late"])
    assert judgement_of(list(key), list(steps), 143000)["class"] == "none"


# -- the continuous measure -------------------------------------------------------------------------------------------


def test_half_of_the_highest_needs_more_than_chance() -> None:
    values = [0.0, 0.3, 0.9, 2.0, 4.0]
    found = judgement_of(values, threshold=None, beyond_chance=True, p=0.01)
    assert found["threshold"] == 2 and (found["emerges_after_step"], found["emerges_at_step"]) == (800, 1000)
    for beyond in (False, None):
        noise = judgement_of(values, threshold=None, beyond_chance=beyond, against_chance="p = 0.3 among 924 splits")
        assert noise["class"] == "none" and noise["pace"] is None
        assert noise["none_reason"] == "not shown to be beyond chance: p = 0.3 among 924 splits"
    assert judgement_of([-1.0, -2.0], threshold=None, beyond_chance=True)["class"] == "none"
    # A jump of the score need not be one of what it scores.
    score = judgement_of([float(value > 2.5) for value in np.linspace(0, 4, 10)])
    slow = judgement_of(list(np.linspace(0, 4, 10)), threshold=None, beyond_chance=True)
    assert (score["pace"], slow["pace"]) == ("sudden", "gradual")


# -- onsets that can be compared --------------------------------------------------------------------------------------


def test_onsets_by_the_two_criteria_of_all_measures() -> None:
    """A blip beyond the band that does not last is no departure; half height is of the highest value."""
    band_K = np.full(6, 0.15)
    values = [0.0, 0.2, 0.1, 0.2, 0.4, 0.6]
    found = judgement_of(values, [100, 200, 300, 500, 700, 1000], threshold=None, beyond_chance=True, band_K=band_K)[
        "onsets"
    ]
    assert found["first_departure"] == {"after_step": 300, "at_step": 500, "after_share": 0.3, "at_share": 0.5}
    assert (found["half_height"]["after_step"], found["half_height"]["at_step"]) == (500, 700)
    thresholded = judgement_of(values, [100, 200, 300, 500, 700, 1000], threshold=0.5)
    assert thresholded["emerges_at_step"] == 1000 and thresholded["onsets"]["half_height"]["at_step"] == 700
    assert thresholded["onsets"]["first_departure"] == {"reason": "chance has no band for it"}
    falls = judgement_of([0, 0.6, 0.1], band_K=np.full(3, 0.15))["onsets"]["first_departure"]
    assert falls == {"reason": "at the last checkpoint it is within the band of chance"}
    assert judgement_of([0, 0.1])["onsets"] == {}


def test_what_is_too_small_has_not_emerged() -> None:
    fields = {"threshold": None, "beyond_chance": True, "value_KP": np.repeat([[0.0], [0.6], [0.7], [1.0]], 3, axis=1)}
    fields["too_small_K"] = np.array([True, True, False, False])
    found = judgement_of([0, 0.6, 0.7, 1.0], **fields)
    assert (found["emerges_after_step"], found["emerges_at_step"]) == (500, 750)
    assert found["onsets"]["half_height"]["at_step"] == 750 and found["emerges_at_step_95"] == [750, 750]


# -- sampling ---------------------------------------------------------------------------------------------------------


def by_pair(value_KP: np.ndarray, steps: list[int], total: int, seed: int = 0, **fields: Any) -> dict[str, Any]:
    fields = {"threshold": 0.5, **fields}
    measure = Measure(name="s", steps=tuple(steps), value_K=value_KP.mean(1), value_KP=value_KP, **fields)
    return judge(measure, total, Rules(), rng(seed), draws=400)


def test_probabilities_by_enumeration() -> None:
    """Four pairs, of which two rise at the second checkpoint and all at the third: the binomial law says the rest."""
    value_KP = np.array([[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]], dtype=float)
    measure = Measure(name="s", steps=(100, 500, 1000), value_K=value_KP.mean(1), value_KP=value_KP, threshold=0.5)
    found = judge(measure, 1000, Rules(), rng(), draws=40_000)
    chosen = 5 / 16  # three or four of four draws fall on the first two pairs
    assert found["class"] == "late" and found["n"] == 4
    expected = {"none": 0, "early": 0, "mid": chosen, "late": 1 - chosen, "within_first": 0, "undecided": 1}
    for name, probability in expected.items():
        assert found["probabilities"][name] == pytest.approx(probability, abs=4 * 0.5 / 200)
    assert found["emerges_at_step_95"] == [500, 1000]


def test_every_draw_has_a_pace_of_its_own() -> None:
    """Sudden where all four draws fall on one half of the pairs: then one interval, 6 % of training, holds the rise."""
    value_KP = np.array([[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]], dtype=float)
    measure = Measure(name="s", steps=(880, 940, 1000), value_K=value_KP.mean(1), value_KP=value_KP, threshold=0.4)
    odds = judge(measure, 1000, Rules(), rng(), draws=40_000)["probabilities"]
    assert odds["sudden"] == pytest.approx(2 / 16, abs=0.01) and odds["gradual"] == 0
    assert odds["sudden"] + odds["undecided"] == 1


def test_every_draw_has_a_half_of_its_own() -> None:
    """Two pairs that rise to 2 and to 6: half of the highest is 1, 2 or 3 by the draw, and so is the step."""
    value_KP = np.array([[0.0, 0.0], [1.5, 1.5], [2.0, 6.0]])
    found = by_pair(value_KP, [100, 500, 1000], 1000, threshold=None, beyond_chance=True)
    assert found["threshold"] == 2 and found["class"] == "late"
    assert found["probabilities"]["mid"] == pytest.approx(0.25, abs=0.08)  # both draws fall on the pair that rises to 2
    # mutant: half of the highest of all pairs in every draw, which none passes before the last checkpoint
    mutant = by_pair(value_KP, [100, 500, 1000], 1000, threshold=2.0)
    assert mutant["probabilities"]["mid"] == 0


def test_draws_that_never_emerge_have_no_interval() -> None:
    value_KP = np.array([[0] * 10, [1] * 6 + [0] * 4], dtype=float)
    found = by_pair(value_KP, [500, 1000], 1000)
    assert "emerges_at_step_95" not in found and found["emerges_at_step_95_reason"].endswith("exceed the threshold")
    assert found["probabilities"]["none"] > 0.2
    assert judgement_of([0, 1], value_KP=np.array([[0.0], [1.0]]))["probabilities_reason"].startswith(
        "one pair has no sampling"
    )


def word_for(share: float) -> str:
    return "early" if share <= 0.25 else "late" if share >= 0.75 else "mid"


def simulated(seed: int, pairs: int = 32) -> tuple[dict[str, Any], str, int | None]:
    """A population whose share of repaired pairs follows a logistic curve: a sample judged, its true class and step."""
    draws, steps = rng(seed), list(range(50, 1001, 50))
    middle, width, top = draws.uniform(0.05, 1.2), draws.choice([0.005, 0.05, 0.2]), draws.uniform(0.4, 1.0)
    true_K = top / (1 + np.exp(-(np.array(steps) / 1000 - middle) / width))
    level_P = draws.random(pairs)  # a pair is repaired once the population's share exceeds its level
    found = by_pair((level_P < true_K[:, None]).astype(float), steps, 1000, seed)
    step = steps[int((true_K > 0.5).argmax())] if true_K.max() > 0.5 else None
    return found, "none" if step is None else word_for(step / 1000), step


def test_the_interval_of_the_step_holds_95_percent_of_the_draws() -> None:
    """One of 200 checkpoints that a draw leaves at exactly one step each: the 5th to the 195th, 2.5 % left out at each end."""
    steps = tuple(range(1, 201))
    draw_BK = (np.arange(200)[None] >= np.arange(200)[:, None]).astype(float)
    measure = Measure(name="strength", steps=steps, value_K=draw_BK[100], threshold=0.5)
    assert _over_draws(measure, draw_BK, 200, Rules())["emerges_at_step_95"] == [5, 195]


def test_probabilities_are_calibrated() -> None:
    """Over 400 populations, of classes given about p, about p are true; intervals of the step cover.

    Measured: given 0.002, 0.17, 0.49, 0.81, 0.995; true 0.003, 0.21, 0.46, 0.79, 0.986; the intervals, on a grid of
    steps, cover in 99 %. The class of the point estimate alone is true in 87 %.
    """
    given_, true_, covered, point = [], [], [], []
    for seed in range(400):
        found, truth, step = simulated(seed)
        given_ += [found["probabilities"][word] for word in ("none", "early", "mid", "late")]
        true_ += [word == truth for word in ("none", "early", "mid", "late")]
        point.append(found["class"] == truth)
        if "emerges_at_step_95" in found and step is not None:
            low, high = found["emerges_at_step_95"]
            covered.append(low <= step <= high)
    given, true = np.array(given_), np.array(true_)
    for low, high in ((0, 0.05), (0.05, 0.35), (0.35, 0.65), (0.65, 0.95), (0.95, 1.01)):
        inside = (given >= low) & (given < high)
        mean, share = given[inside].mean(), true[inside].mean()
        assert abs(mean - share) < 0.01 + 3 * np.sqrt(max(mean * (1 - mean), 0.001) / inside.sum())
    assert np.mean(covered) > 0.95 and len(covered) > 100
    assert np.mean(point) < 0.92  # the mutant: the point estimate's class as if it were certain


def test_what_is_recorded_of_the_rule_and_of_pairs() -> None:
    found = judgement_of([0, 1])
    assert (found["rule"], found["n"]) == ("above 0.5", None)
    assert judgement_of([0, 1], threshold=None, beyond_chance=True)["rule"] == "above half of its highest value"


def test_why_a_pace_is_undecided_at_its_bounds() -> None:
    assert _undecided(0.1, 0.25, 1000, Rules()).startswith("the checkpoints lie too far apart; 25 steps")
    assert _undecided(0.101, 0.25, 1000, Rules()) == "longer than a sudden rise and shorter than a gradual one"
    assert "; 1 steps" in _undecided(0.0, 1.0, 4, Rules())


def test_within_the_first_tenth_of_training() -> None:
    draw_BK = np.array([[0.0, 1, 1], [0, 0, 1]])
    measure = Measure(name="strength", steps=(50, 100, 150), value_K=draw_BK[0], threshold=0.5)
    assert _over_draws(measure, draw_BK, 1000, Rules())["probabilities"]["within_first"] == 0.5


def test_a_reversal_within_the_pairs_sampling_error_is_none() -> None:
    """The means 0, 1, 0.8, 1.2 reverse by a sixth of the rise; pairs that disagree as much as these cannot tell."""
    mean_K1 = np.array([[0.0], [1.0], [0.8], [1.2]])
    noise_KP = np.array([[0, 0, 0, 0], [1, -1, 1, -1], [-1, 1, -1, 1], [0, 0, 0, 0]], dtype=float)
    steps = [100, 200, 300, 1000]
    doubtful, sure = (by_pair(mean_K1 + noise, steps, 1000, threshold=0.5) for noise in (noise_KP, noise_KP * 1e-3))
    assert (doubtful["reversals"], doubtful["monotone"]) == (0, True)
    assert (sure["reversals"], sure["monotone"]) == (2, False)
