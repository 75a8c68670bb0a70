"""The verdicts on made-up trainings whose answer is plain."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from headdyn.studies.landmarks import verdict
from headdyn.studies.landmarks.clamping.predictions import LANDMARK, PATTERN, phase_change
from headdyn.studies.landmarks.courses import Course
from tests.studies.landmarks.made_courses import course

LATE, EARLY, NEVER = {0: 3.5, 100: 3.4, 110: 1.2, 200: 1.1}, {0: 3.5, 20: 3.4, 30: 1.2, 200: 1.1}, {0: 3.5, 200: 3.3}


def made(pattern: str, losses: Mapping[int, float], seed: int = 0) -> Course:
    return course(
        [200], {}, losses=losses, scalars={"random_nats": 3.5, "floor_nats": 1.0}, seed=seed, **{PATTERN: pattern}
    )


def test_the_phase_change_is_half_of_the_way_to_the_floor() -> None:
    assert phase_change(made("none", LATE)) == (100, 110)


@pytest.mark.parametrize(("number", "pattern"), [(0, "previous_token"), (1, "match"), (2, "copy")])
def test_an_earlier_change_supports_and_a_later_one_does_not(number: int, pattern: str) -> None:
    def judged(free: Mapping[int, float], held: Mapping[int, float], seed: int = 0) -> str:
        return verdict(LANDMARK.predictions[number].judge([made("none", free), made(pattern, held, seed)]))

    assert judged(LATE, EARLY) == "supported" and judged(NEVER, EARLY) == "supported"
    assert judged(EARLY, LATE) == "not supported" and judged(EARLY, NEVER) == "not supported"
    assert judged(LATE, LATE) == "undecided" and judged(LATE, EARLY, seed=1) == "undecided"


def test_a_control_that_brings_the_change_forward_does_not_hold() -> None:
    def judged(free: Mapping[int, float], held: Mapping[int, float]) -> str:
        return verdict(LANDMARK.predictions[3].judge([made("none", free), made("uniform", held)]))

    assert judged(LATE, EARLY) == "not supported" and judged(EARLY, LATE) == "supported"
    assert judged(EARLY, NEVER) == "supported" and judged(LATE, LATE) == "undecided"
