"""Every run's outcomes, with interval, null and what a reader holds them against."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from headdyn.core.numbers import count
from headdyn.report.cells import columns_for, of_prompts, summary_cell
from headdyn.report.markup import soft, table
from headdyn.report.section import Section
from headdyn.report.series.record import read_series
from headdyn.report.series.words import share
from headdyn.sweep.record import SweepRecord

_PROMPTS = (
    "Brackets: 95 % over number pairs (Clopper–Pearson for shares, BCa otherwise), for this one checkpoint. Controls "
    "are pairs that the bug does not touch."
)
_TOPICS = (
    "Brackets: 95 % over held-out sequences, for this one training. Null: uniform guessing for the loss, the same "
    "attention against other sequences' labels for within-topic attention, causal-uniform attention for entropy and "
    "position 0, the best baseline for probes; 0 for the rest."
)


def section(sweep: SweepRecord) -> Section | None:
    """A row a job, a column an outcome; a run that is not complete has its status."""
    names = columns_for(sweep.complete)
    if not names:
        return None
    rows: list[list[Any]] = []
    remarks = _remarks(sweep)
    for job in sweep.jobs:
        label = "\n".join([job.label, *remarks.get(job.number, ())])
        if job.complete:
            rows.append([label, *(summary_cell(job, name) for name in names)])
        else:
            rows.append(
                [label, Markup('<span class="failed">{}</span>').format(job.run.status), *[""] * (len(names) - 1)]
            )
    columns = [f"{metric.label}\n{metric.unit}" for metric in map(sweep.metric, names)]
    html = soft(_PROMPTS if of_prompts(sweep.complete) else _TOPICS)
    html += table(["run", *columns], rows, numbers=[job.number for job in sweep.jobs])
    return Section("summary", "Run by run", html, f"{count(len(names), 'outcome')} of {count(len(sweep.jobs), 'run')}")


def _remarks(sweep: SweepRecord) -> dict[int, list[str]]:
    """What stands under a checkpoint's name: its place in training, and why it does not count."""
    remarks = {}
    for series in read_series(sweep):
        for row in series.rows:
            job = series.jobs.get(row["revision"])
            if job is not None and row["step"] is not None:
                why = f"{'does not count: ' if job.complete else ''}{row['reason']}"
                remarks[job.number] = [f"{share(row['training_share'])} of training", *([] if row["counts"] else [why])]
    return remarks
