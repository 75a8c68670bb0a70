"""Predictions of Singh et al. (2024) on trainings with a head held at an ideal, and how these runs decide them."""

from collections.abc import Sequence
from dataclasses import replace

from headdyn.core.figures import Figure
from headdyn.studies.landmarks import Case, Landmark, Prediction, page
from headdyn.studies.landmarks.courses import Course, crossing, sooner

PATTERN = "train.clamp.pattern"


def phase_change(course: Course) -> tuple[float, float]:
    """The steps between which the held-out loss first comes half of the way from guessing to the floor."""
    (steps, losses), random, floor = course.losses(), course.scalar("random_nats"), course.scalar("floor_nats")
    return crossing(steps, (random - losses) / (random - floor), 0.5)


def _sooner(trainings: Sequence[Course], held: str) -> list[Case]:
    return sooner(trainings, PATTERN, "none", held, phase_change)


def _no_sooner(trainings: Sequence[Course]) -> list[Case]:
    return [
        replace(case, holds=None if case.holds is None else not case.holds) for case in _sooner(trainings, "uniform")
    ]


def figures(trainings: Sequence[Course]) -> dict[str, Figure]:
    """Held-out loss over training, with and without a head held."""
    caption = (
        "Losses are taken with the head held. Predicted: the fall comes earlier where a head is "
        "held at the previous token, at what followed the same token, or writes copies of what it attends to; and not "
        "where it attends evenly, which is of no use. The floor is exact inference."
    )
    return {"landmark_loss": page.losses(trainings, ("random", "floor"), "Loss with a head held", caption)}


LANDMARK = Landmark(
    paper="Singh, Moskovitz, Hill, Chan and Saxe 2024, What needs to go right for an induction head?, arXiv 2404.07129",
    differences="The paper trains attention-only models on few-shot image labels and clamps activations of "
    "subcircuits; here one head's attention pattern, or what it writes, is held, in a Mini-Qwen3 of two layers on "
    "repeated random blocks. That the change comes earlier is our reading of its abstract: three subcircuits must go "
    "right together, so giving one leaves less to learn.",
    predictions=(
        Prediction(
            statement="with a head of the first layer held at the previous token the phase change comes earlier",
            criterion="the held-out loss is half of the way from guessing to the floor at an earlier step than "
            "without, same seed, in intervals that do not overlap",
            judge=lambda trainings: _sooner(trainings, "previous_token"),
        ),
        Prediction(
            statement="with a head of the last layer held at what followed the same token it comes earlier too",
            criterion="as above",
            judge=lambda trainings: _sooner(trainings, "match"),
        ),
        Prediction(
            statement="with a head of the last layer that copies what it attends to it comes earlier too",
            criterion="as above",
            judge=lambda trainings: _sooner(trainings, "copy"),
        ),
        Prediction(
            statement="a control, ours: with a head of the last layer held at even attention it comes no earlier",
            criterion="the held-out loss is half of the way at no earlier step than without, same seed, in intervals "
            "that do not overlap",
            judge=_no_sooner,
        ),
    ),
    figures=figures,
)
