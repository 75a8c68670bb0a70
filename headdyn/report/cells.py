"""The numbers of summary tables: which columns runs have, and one number's parts in a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headdyn.core.numbers import ABSENT, fixed, p_value
from headdyn.core.records import Metric
from headdyn.sweep.jobs import Job
from headdyn.sweep.outcomes import outcomes_of, unnamed

# What a reader holds some numbers against: another scalar of the run, and what it is called there.
_BESIDE = {
    "within_ratio": ("within_ratio_uniform", "uniform"),
    "probe_accuracy_middle": ("probe_ceiling", "ceiling"),
    "loss_nats": ("floor_nats", "floor"),
}


def columns_for(jobs: Sequence[Job]) -> tuple[str, ...]:
    """The columns of a table over these runs: the outcomes that any of them recorded, be it as absent for a reason."""
    recorded = {name for job in jobs for name in job.run.scalars}
    return tuple(name for name in outcomes_of(job.run for job in jobs).names if name in recorded)


def of_prompts(jobs: Sequence[Job]) -> bool:
    """Whether these runs are on comparison prompts, and none on a corpus."""
    return bool(jobs) and not any("corpus" in job.run.manifest for job in jobs)


@dataclass(frozen=True)
class Cell:
    """One number of a table as its parts; an absent one has a reason."""

    value: str = ""
    interval: str = ""
    null: str = ""
    note: str = ""
    reason: str = ""


def summary_cell(job: Job, name: str) -> Cell:
    """A run's number with what a reader holds it against."""
    if of_prompts([job]) and name not in job.run.scalars:
        return Cell(ABSENT, note="not measured")
    scalar, metric = job.scalar(name), job.metric(name)
    parts = cell(scalar, metric)
    if parts.reason:
        return parts
    other, word = _BESIDE.get(name, ("", ""))
    beside = job.run.value(other)
    if beside is not None:
        digits = max(1, metric.digits) if metric.scale == 1 else 1
        return replace(parts, note=f"{word} {fixed(metric.scale * beside, digits)}")
    return replace(parts, note="" if scalar.get("p") is None else f"p {p_value(scalar['p'])}")


def cell(scalar: Mapping[str, Any], metric: Metric | str, *, signed: bool = False) -> Cell:
    """A scalar's parts in the metric's unit; without a value its reason."""
    metric = unnamed(metric) if isinstance(metric, str) else metric
    if scalar.get("value") is None:
        return Cell(reason=str(scalar.get("reason", "not computed")))
    value, _, interval = metric.spelled(scalar, signed=signed).partition(" ")
    null = scalar.get("null")
    return Cell(value, interval, "" if not null else f"null {fixed(metric.scale * null, max(1, metric.digits - 1))}")
