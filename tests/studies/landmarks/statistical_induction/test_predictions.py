"""The verdicts on made-up trainings whose answer is plain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from headdyn.studies.landmarks import verdict
from headdyn.studies.landmarks.courses import Course
from headdyn.studies.landmarks.statistical_induction.predictions import LANDMARK, gap_closed, stages
from tests.studies.landmarks.made_courses import course

LINES = {"random_nats": 1.1, "unigram_nats": 1.0, "bigram_nats": 0.8}
PLATEAU = {0: 1.1, 10: 1.04, 20: 1.0, 60: 1.0, 100: 0.99, 110: 0.85, 200: 0.8}
NO_PLATEAU = {0: 1.1, 10: 1.04, 20: 0.97, 60: 0.93, 100: 0.9, 110: 0.85, 200: 0.8}
IN_ORDER = {
    "kl_uniform_nats": [0.0, 0.1, 0.2, 0.3],
    "kl_unigram_nats": [0.1, 0.0, 0.1, 0.2],
    "kl_bigram_nats": [0.3, 0.2, 0.0, 0.0],
}


def made(losses: Mapping[int, float] = PLATEAU, **factors: Any) -> Course:
    return course([0, 20, 110, 200], IN_ORDER, losses=losses, scalars=LINES, **{"data.rows": "dirichlet", **factors})


def judged(number: int, *courses: Course) -> str:
    return verdict(LANDMARK.predictions[number].judge(courses))


def test_stages_are_the_nearest_predictors_in_their_order() -> None:
    assert stages(made()) == ["uniform", "unigram", "bigram"]
    assert judged(0, made()) == "supported"
    skipped = {**IN_ORDER, "kl_unigram_nats": [0.5] * 4}
    assert judged(0, course([0, 20, 110, 200], skipped, **{"data.rows": "dirichlet"})) == "not supported"
    assert judged(0, made(), course([0, 20, 110, 200], skipped, seed=1)) == "undecided"


def test_the_gap_runs_from_the_unigram_line_to_the_bigram_line() -> None:
    steps, closed = gap_closed(made())
    assert dict(zip(steps.tolist(), closed.tolist(), strict=True))[110] == pytest.approx(0.75)
    misled = course([0], {}, losses={0: 0.9}, scalars={**LINES, "unigram_nats": 1.3})  # worse than guessing, 1.1
    assert gap_closed(misled)[1] == pytest.approx([0.2 / 0.3])


def test_a_plateau_is_told_from_a_steady_fall() -> None:
    assert judged(1, made()) == "supported"  # arrives at 20, leaves at 110, half way at 110
    assert judged(1, made(NO_PLATEAU)) == "not supported"  # arrives at 20, a tenth on at 20, half way at 100
    assert judged(1, made({0: 1.1, 200: 1.0})) == "undecided"
    # Arrives in (0, 50], leaves in (50, 100], half way in (100, 150]: 0 to 100 steps against 0 to 100.
    assert judged(1, made({0: 1.1, 50: 1.0, 100: 0.97, 150: 0.9, 200: 0.8})) == "undecided"


def test_only_trainings_of_one_seed_are_compared_and_only_steps_apart_decide() -> None:
    sooner = made({0: 1.1, 20: 0.95, 30: 0.85, 200: 0.8}, **{"data.rows": "doubly_stochastic"})
    assert judged(2, made(), sooner) == "supported"
    assert judged(2, made(NO_PLATEAU), made(PLATEAU, **{"data.rows": "doubly_stochastic"})) == "not supported"
    same = made(PLATEAU, **{"data.rows": "doubly_stochastic"})
    assert judged(2, made(), same) == "undecided"
    assert judged(2, made(), made(PLATEAU, seed=1, **{"data.rows": "doubly_stochastic"})) == "undecided"
    assert not LANDMARK.predictions[2].judge([made()])
