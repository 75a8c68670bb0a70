"""The verdicts on made-up trainings whose answer is plain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from headdyn.studies.landmarks import verdict
from headdyn.studies.landmarks.courses import Course
from headdyn.studies.landmarks.induction_bump.predictions import LANDMARK, steepest
from tests.studies.landmarks.made_courses import course

STEPS = [0, 10, 36, 40, 80]
RISE, SCORE = [0.05, 0.06, 0.1, 0.9, 0.95], [0.0, -0.1, -0.3, -2.9, -3.0]
LOSSES = {0: 3.5, 10: 3.3, 36: 3.2, 38: 2.0, 40: 1.2, 80: 1.1}
GRADUAL = {0: 3.5, 20: 3.1, 40: 2.7, 60: 2.3, 80: 1.9}
FLAT, SMALL = [0.05, 0.06, 0.08, 0.1, 0.1], [0.0, -0.1, -0.3, -0.6, -0.7]


def made(
    layers: int, matching: Sequence[float] = RISE, score: Sequence[float] = SCORE, losses: Any = None, seed: int = 0
) -> Course:
    metrics = {"best_prefix_matching": matching, "in_context_nats": score}
    return course(STEPS, metrics, losses=losses or LOSSES, seed=seed, **{"model.num_layers": layers})


def judged(number: int, *courses: Course) -> str:
    return verdict(LANDMARK.predictions[number].judge(courses))


@pytest.mark.parametrize("number", range(5))
def test_the_known_result_supports_every_prediction(number: int) -> None:
    assert judged(number, made(1, FLAT, SMALL, GRADUAL), made(2)) == "supported"


def test_the_bump_is_the_largest_share_of_the_fall_within_a_tenth_of_training() -> None:
    """A tenth is 8 steps: from 36 to 44 the loss falls by 3.2 − 1.19 of 2.4 nats, where it is 1.2 − 0.1·4/40 at 44."""
    assert steepest(made(2)) == pytest.approx((3.2 - 1.19) / 2.4)
    assert steepest(made(1, losses=GRADUAL)) == pytest.approx(0.1)
    assert judged(4, made(1), made(2, losses=GRADUAL)) == "not supported"


def test_a_score_that_moves_long_before_is_not_together() -> None:
    early = [0.0, -2.0, -2.9, -3.0, -3.0]
    assert judged(0, made(2, score=early)) == "not supported"


def test_snapshots_too_far_apart_to_tell_one_moment_decide_nothing() -> None:
    """Both curves rise between steps 20 and 40 of 80: a quarter of training, which is no moment."""
    metrics = {"best_prefix_matching": RISE, "in_context_nats": SCORE}
    wide = course([0, 10, 20, 40, 80], metrics, losses=LOSSES, **{"model.num_layers": 2})
    assert judged(0, wide) == "undecided"


def test_a_loss_that_falls_elsewhere_is_seen() -> None:
    assert judged(1, made(2, losses={0: 3.5, 10: 1.5, 20: 1.4, 40: 1.2, 80: 1.1})) == "not supported"


def test_one_layer_that_does_as_well_is_seen() -> None:
    assert judged(2, made(1), made(2)) == "not supported"
    assert judged(3, made(1), made(2)) == "not supported"


def test_where_no_head_of_two_layers_matches_prefixes_the_predictions_fail() -> None:
    """Else instruments that see no induction head could never count against the known result."""
    blind = made(1, FLAT, SMALL), made(2, FLAT, SMALL)
    assert [judged(number, *blind) for number in range(3)] == ["not supported"] * 3


def test_seeds_are_not_mixed() -> None:
    assert not LANDMARK.predictions[2].judge([made(1, seed=0), made(2, seed=1)])
