"""The numbers of summary tables: which columns runs have, and one number's parts in a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headdyn.core.numbers import ABSENT, fixed, p_value, quantity
from headdyn.sweep.jobs import Job

# The seed study's columns with what they need beside them, and what a reader asks next.
TOPICS = (
    *("loss_nats", "gap_closed", "within_ratio", "selectivity", "entropy_nats", "probe_accuracy_middle"),
    *("sink_rate",),
)
# What runs on comparison prompts record: head groups patched, the study's own verdict, clusters of heads.
PROMPTS = (
    *("plain_success", "even_success", "odd_success", "all_success", "strength", "strength_nats"),
    *("control_strength_nats", "seed_strength"),
    *("qk_best_silhouette", "ov_best_silhouette", "behaviour_best_silhouette"),
)


def columns_for(jobs: Sequence[Job]) -> tuple[str, ...]:
    """The columns of a table over these runs: what any of them recorded, be it as absent for a reason."""
    recorded = {name for job in jobs for name in job.run.scalars}
    return tuple(name for name in (PROMPTS if of_prompts(jobs) else TOPICS) if name in recorded)


def of_prompts(jobs: Sequence[Job]) -> bool:
    """Whether these runs are on comparison prompts, and none on a corpus."""
    recorded = {name for job in jobs for name in job.run.scalars}
    return not recorded.isdisjoint(PROMPTS) and "loss_nats" not in recorded


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
    if name in PROMPTS and name not in job.run.scalars:
        return Cell(ABSENT, note="not measured")
    scalar, q = job.scalar(name), quantity(name)
    found = cell(scalar, name)
    if not found.reason and name in PROMPTS and scalar.get("p") is not None:
        return Cell(found.value, found.interval, found.null, f"p {p_value(scalar['p'])}")
    if not found.reason and name == "within_ratio":
        uniform = job.scalar("within_ratio_uniform").get("value")
        note = "" if uniform is None else f"uniform {fixed(q.scale * uniform, 1)}"
        return Cell(found.value, found.interval, found.null, note)
    if not found.reason and name == "probe_accuracy_middle":
        ceiling = job.scalar("probe_ceiling").get("value")
        return Cell(
            found.value, found.interval, found.null, "" if ceiling is None else f"ceiling {fixed(100 * ceiling, 1)}"
        )
    if not found.reason and name == "loss_nats":
        floor = job.run.value("floor_nats")
        return Cell(found.value, found.interval, found.null, "" if floor is None else f"floor {floor:.3f}")
    return found


def cell(scalar: Mapping[str, Any], name: str, *, signed: bool = False) -> Cell:
    """A scalar's parts in its quantity's unit; without a value its reason."""
    if scalar.get("value") is None:
        return Cell(reason=str(scalar.get("reason", "not computed")))
    q = quantity(name)
    value, _, interval = q.spelled(scalar, signed=signed).partition(" ")
    null = scalar.get("null")
    return Cell(value, interval, "" if not null else f"null {fixed(q.scale * null, max(1, q.places - 1))}")
