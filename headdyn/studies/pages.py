"""Parts that the pages of several studies share: reported figures, our runs by step, and how studies mislead."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from headdyn.core.json_files import read_json
from headdyn.report.blocks import Cell, cell, html
from headdyn.sweep.jobs import Job
from headdyn.sweep.series_record import Series

_MISLEADS = (
    "protocol=original repeats the procedure as it was run, so that its figures can be compared; none of it is "
    "evidence about heads."
)


@cache
def facts(study: str) -> Mapping[str, Any]:
    """A study's study.json: the figures that it reports, none of them measured here, and the points that mislead."""
    return read_json(Path(__file__).parent / study / "study.json")


def misleading(study: str, *measured: str) -> Markup:
    """The points in which the study misleads, each followed by what these runs `measured` on it ("" if nothing)."""
    point = Markup('<dt>{}</dt>\n<dd>{} <span class="here">{}</span></dd>\n')
    points = zip(facts(study)["misleads"], measured, strict=True)
    items = Markup("").join(point.format(fact["did"], fact["misleads"], ours) for fact, ours in points)
    return html(_MISLEADS) + Markup('<dl class="points">\n{}</dl>\n').format(items)


def is_of(model: str, reported: Mapping[str, Any]) -> bool:
    """Whether the reported figures are of this model, by the last part of its name."""
    return model.rstrip("/").rpartition("/")[2] == str(reported["model"]).rpartition("/")[2]


def jobs_by_step(series: Sequence[Series]) -> dict[int, list[Job]]:
    """The complete runs of every step that counts."""
    jobs: dict[int, list[Job]] = {}
    for each in series:
        for row in each.counted:
            job = each.jobs.get(row["revision"])
            if job is not None and job.complete:
                jobs.setdefault(row["step"], []).append(job)
    return jobs


def first_cell(jobs: Sequence[Job], metric: str) -> Cell:
    """The metric's cell for the first of these runs that recorded the metric."""
    job = next((job for job in jobs if metric in job.run.scalars), None)
    return Cell(reason="not run") if job is None else cell(job.scalar(metric), job.metric(metric))
