"""A run's numbers: its outcomes, and in a folded section every scalar, under the analysis that measured it."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from headdyn.core.numbers import count, p_value, units
from headdyn.report.blocks import Heading, Section, Table, cell, html
from headdyn.report.sections import figures
from headdyn.report.sections.summary import outcome_cell, recorded_outcomes
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord

_ABOUT = (
    "Square brackets hold 95 % intervals over the units in the last column; the null is what chance gives for the same "
    "data; q is p after Benjamini–Hochberg over the analysis's tests. Model rows average over heads or tokens."
)


def outcomes(sweep: SweepRecord) -> Section | None:
    """The run's outcomes in a reader's units, each with its meaning, beside the run's main picture."""
    job = sweep.jobs[0]
    label = Markup('{}<small class="meaning">{}</small>')
    metrics = {name: job.metric(name) for name in recorded_outcomes([job])}
    rows = [[label.format(m.label, m.meaning), outcome_cell(job, name), m.unit] for name, m in metrics.items()]
    picture = figures.main_picture(sweep)
    blocks = [picture, Table(columns=["outcome", "value", "unit"], rows=rows) if rows else None]
    return Section("outcomes", "Outcomes", [blocks], folded=False) if rows or picture else None


def section(sweep: SweepRecord) -> Section:
    """Every scalar of the run; records by step are left out."""
    groups = metric_groups(sweep.jobs[0])
    parts = []
    for group, entries in groups:
        with_q = any("q" in entry["scalar"] for entry in entries)
        rows = [
            [
                Markup('<span title="{}">{}</span>').format(entry["meaning"], entry["name"]),
                cell(entry["scalar"]),
                *([p_value(entry["scalar"]["q"]) if "q" in entry["scalar"] else ""] if with_q else []),
                entry["units"],
            ]
            for entry in entries
        ]
        table = Table(columns=["metric", "value", *(["q"] if with_q else []), "units"], rows=rows, dense=True)
        parts.append(Markup("<div>{}{}</div>").format(html(Heading(group.replace("_", " "))), table.html()))
    blocks = [_ABOUT, Markup('<div class="two">{}</div>').format(Markup("\n").join(parts))]
    return Section("numbers", "All numbers", blocks, count(sum(len(rows) for _, rows in groups), "scalar"))


def metric_groups(job: Job) -> list[tuple[str, list[dict[str, Any]]]]:
    """The run's scalars by the analysis that measured them; those of the pipeline are "corpus and training".

    Metrics of an analysis that are absent for the same reason share one row, behind the analysis's other rows.
    """
    glossary = job.run.manifest.get("glossary", {})
    owner = {metric: name for name, part in glossary.items() for metric in part["metrics"]}
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, scalar in job.run.scalars.items():
        entry = dict(scalar) if isinstance(scalar, Mapping) else {"value": scalar}
        if not {"value", "reason"} & set(entry) or entry.get("value", "") is None:
            continue
        row = {"name": name, "scalar": entry, "units": units(entry), "meaning": job.metric(name).meaning}
        groups.setdefault(owner.get(name, "corpus and training"), []).append(row)
    return [(group, _absent_together(rows)) for group, rows in groups.items()]


def _absent_together(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, except that rows absent for the same reason become one row, at the end, that names them all."""
    by_reason: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["scalar"].get("value") is None:
            by_reason.setdefault(row["scalar"]["reason"], []).append(row)
    shared = {reason: absent for reason, absent in by_reason.items() if len(absent) > 1}
    together = [row for row in rows if row["scalar"].get("reason") not in shared]
    for reason, absent in shared.items():
        names = ", ".join(row["name"] for row in absent)
        together.append({"name": f"{len(absent)} metrics", "scalar": {"reason": reason}, "units": "", "meaning": names})
    return together
