"""What the studies' pages have in common: their own figures, ours at the same step, and what misleads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from headdyn.report.cells import Cell, cell
from headdyn.report.series.record import Series
from headdyn.sweep.jobs import Job

MISLEADS = (
    "protocol=original repeats the procedure as it was run, so that its figures can be compared; none of it is "
    "evidence about heads."
)


@dataclass(frozen=True)
class Point:
    """One thing a study did: what it was, why it says nothing about heads, and what these runs measured of it."""

    did: str
    misleads: str
    here: str = ""


def misleading(points: Sequence[Point]) -> Markup:
    """The points as a list."""
    item = Markup("<dt>{}</dt>\n<dd>{}{}</dd>\n")
    here = Markup(' <span class="here">{}</span>')
    items = (item.format(p.did, p.misleads, here.format(p.here) if p.here else "") for p in points)
    return Markup('<p class="soft">{}</p>\n<dl class="points">\n{}</dl>\n').format(MISLEADS, Markup("").join(items))


@cache
def figures(study: str) -> Mapping[str, Any]:
    """The numbers that a study reports, from its figures.json; none of them is measured here."""
    return json.loads((Path(__file__).parent / study / "figures.json").read_text(encoding="utf-8"))


def is_of(model: str, reported: Mapping[str, Any]) -> bool:
    """Whether reported figures are of this model, by the last part of its name."""
    return model.rstrip("/").rpartition("/")[2] == str(reported["model"]).rpartition("/")[2]


def jobs_by_step(series: Sequence[Series]) -> dict[int, list[Job]]:
    """The runs of every step that counts."""
    jobs: dict[int, list[Job]] = {}
    for each in series:
        for row in each.counted:
            job = each.jobs.get(row["revision"])
            if job is not None and job.complete:
                jobs.setdefault(row["step"], []).append(job)
    return jobs


def first_cell(jobs: Sequence[Job], metric: str) -> Cell:
    """The metric of the first of these runs that has it."""
    job = next((job for job in jobs if metric in job.run.scalars), None)
    return Cell(reason="not run") if job is None else cell(job.scalar(metric), job.metric(metric))
