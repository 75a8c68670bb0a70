"""What Singh et al. (2024) predict of trainings with a head held at an ideal, and how these runs decide it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headdyn.core.figures import Curve, Figure, curves
from headdyn.report.blocks import Section
from headdyn.studies.landmarks import Case, Landmark, Prediction, page
from headdyn.studies.landmarks.courses import Course, courses, crossing, pairs
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.words import Statement

PATTERN = "train.clamp.pattern"


def phase_change(course: Course) -> tuple[float, float]:
    """Between which evaluations the held-out loss first comes half of the way from guessing to the floor."""
    (steps, losses), random, floor = course.losses(), course.scalar("random_nats"), course.scalar("floor_nats")
    return crossing(steps, (random - losses) / (random - floor), 0.5)


def _earlier(followed: Sequence[Course], held: str) -> list[Case]:
    cases = []
    for free, clamped in pairs(followed, PATTERN, "none", held):
        (after, at), (held_after, held_at) = phase_change(free), phase_change(clamped)
        evidence = f"half way in ({held_after:g}, {held_at:g}] with the head held, ({after:g}, {at:g}] without"
        holds = True if held_at <= after else False if at <= held_after else None
        cases.append(Case(name=f"seed {clamped.seed}", holds=holds, evidence=evidence))
    return cases


LANDMARK = Landmark(
    paper="Singh, Moskovitz, Hill, Chan and Saxe 2024, What needs to go right for an induction head?, arXiv 2404.07129",
    differences="The paper trains attention-only models on few-shot image labels and clamps activations of "
    "subcircuits; here one head's attention pattern is held, in a Mini-Qwen3 of two layers on repeated random blocks. "
    "That the change comes earlier is our reading of its abstract: three subcircuits must go right together, so giving "
    "one leaves less to learn.",
    predictions=(
        Prediction(
            statement="with a head of the first layer held at the previous token the phase change comes earlier",
            criterion="the held-out loss is half of the way from guessing to the floor at an earlier step than "
            "without, same seed, in intervals that do not overlap",
            judge=lambda followed: _earlier(followed, "previous_token"),
        ),
        Prediction(
            statement="with a head of the last layer held at what followed the same token it comes earlier too",
            criterion="as above",
            judge=lambda followed: _earlier(followed, "match"),
        ),
    ),
)


def figures(sweep: SweepRecord) -> dict[str, Figure]:
    """Held-out loss over training, with and without a head held."""
    followed = courses(sweep)
    lines = [
        Curve(label=course.label, x=course.losses()[0], y=course.losses()[1], runs=[j.number for j in course.jobs])
        for course in followed
    ]
    levels = {name: float(np.mean([c.scalar(f"{name}_nats") for c in followed])) for name in ("random", "floor")}
    figure = curves(
        lines,
        xlabel="training step",
        ylabel="held-out loss, the head held (nats)",
        title="Loss over training with a head's pattern held",
        references=levels,
        caption="Each line is a training. Predicted: the fall comes earlier where a head is held at the previous "
        "token, or at what followed the same token. The floor is exact inference.",
    )
    return {"landmark_loss": figure}


def sections(sweep: SweepRecord) -> list[Section]:
    """The predictions beside the results."""
    return [page.section(LANDMARK, sweep, figures(sweep))] if courses(sweep) else []


def headlines(sweep: SweepRecord) -> list[Statement]:
    """Each prediction with its verdict."""
    return page.headlines(LANDMARK, sweep) if courses(sweep) else []
