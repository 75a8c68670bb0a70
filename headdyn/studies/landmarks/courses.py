"""Trainings with their snapshots, as a sweep recorded them, and when their curves cross a level."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headdyn.models.revisions import step_of
from headdyn.studies.landmarks import Case
from headdyn.sweep.factors import NEVER, level_label, varying
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord

Judged = tuple[bool | None, str]  # whether a prediction holds (None: cannot be told), and the evidence


@dataclass(frozen=True)
class Course:
    """One training: the runs at its snapshots in the order of training, and a label with its levels of the factors."""

    jobs: Sequence[Job]
    label: str

    @property
    def steps(self) -> np.ndarray:
        return np.array([_step(job) for job in self.jobs])

    @property
    def seed(self) -> str:
        return str(self.factors["seed"])

    @property
    def factors(self) -> Mapping[str, Any]:
        """The levels that the training was started with."""
        return self.jobs[-1].factors

    def values(self, metric: str) -> np.ndarray:
        """A metric of the whole model at every snapshot; NaN where it is absent."""
        values = [job.run.value(metric) for job in self.jobs]
        return np.array([np.nan if value is None else value for value in values])

    def losses(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps and held-out losses (nats) of the training itself, at more steps than there are snapshots."""
        steps, losses = zip(*self.jobs[-1].metrics["val_loss_nats"], strict=True)
        return np.array(steps), np.array(losses)

    def scalar(self, name: str) -> float:
        """A scalar of the last snapshot's run. Raises KeyError where the run did not record it."""
        value = self.jobs[-1].run.value(name)
        if value is None:
            raise KeyError(f"{self.label} recorded no {name}")
        return value


def courses(sweep: SweepRecord) -> list[Course]:
    """The sweep's trainings that have finished snapshots."""
    groups = [sorted(jobs, key=_step) for jobs in sweep.siblings]
    return [
        Course(jobs, label) for jobs, label in zip(groups, labels([jobs[-1].factors for jobs in groups]), strict=True)
    ]


def labels(factors: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each training, made of the levels by which these trainings differ."""
    levels = [{key: level for key, level in own.items() if key not in NEVER or key == "seed"} for own in factors]
    varied = varying(levels)
    return [", ".join(_level(key, own.get(key)) for key in varied) or "the training" for own in levels]


def by_level(trainings: Sequence[Course], factor: str, default: Any) -> dict[Any, list[Course]]:
    """Trainings by their level of a factor; a training without the factor has level `default`."""
    levels: dict[Any, list[Course]] = {}
    for course in trainings:
        levels.setdefault(course.factors.get(factor, default), []).append(course)
    return levels


def judge_each(trainings: Sequence[Course], judge: Callable[[Course], Judged]) -> list[Case]:
    """A case for every training."""
    return [Case(course.label, *judge(course)) for course in trainings]


def judge_pairs(
    trainings: Sequence[Course], factor: str, low: Any, high: Any, judge: Callable[[Course, Course], Judged]
) -> list[Case]:
    """A case for every seed that has a training at both levels of the factor; `judge` gets (at `low`, at `high`)."""
    course_at = {(course.seed, course.factors.get(factor)): course for course in trainings}
    seeds = dict.fromkeys(course.seed for course in trainings)
    both = [seed for seed in seeds if (seed, low) in course_at and (seed, high) in course_at]
    return [Case(f"seed {seed}", *judge(course_at[seed, low], course_at[seed, high])) for seed in both]


def sooner(
    trainings: Sequence[Course], factor: str, low: Any, high: Any, half_way: Callable[[Course], tuple[float, float]]
) -> list[Case]:
    """For every seed, whether the training at `high` is half way sooner than that at `low`.

    The case cannot be told (None) where the two intervals of steps overlap.
    """

    def judge(first: Course, second: Course) -> Judged:
        (after, at), (second_after, second_at) = half_way(first), half_way(second)
        holds = True if second_at <= after else False if at <= second_after else None
        return holds, f"half of the way in ({second_after:g}, {second_at:g}], against ({after:g}, {at:g}]"

    return judge_pairs(trainings, factor, low, high, judge)


def crossing(steps: np.ndarray, values: np.ndarray, level: float) -> tuple[float, float]:
    """The two steps between which a curve first rises to a level: (last step before, first step at or above).

    A curve that starts at the level gives (−∞, its first step), one that never reaches it (its last step, ∞).
    """
    reached = np.flatnonzero(values >= level)
    if not len(reached):
        return float(steps[-1]), np.inf
    return (float(steps[reached[0] - 1]) if reached[0] else -np.inf), float(steps[reached[0]])


def _step(job: Job) -> int:
    revision = job.factors.get("revision")
    step = None if revision is None else step_of(str(revision))
    return int(job.run.manifest["config"]["train"]["steps"]) if step is None else step


def _level(key: str, level: Any) -> str:
    return f"seed {level}" if key == "seed" else level_label(key, level)
