"""Every run's outcomes with interval, null and a number to compare with: for pages, terminals and files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from headdyn.core.numbers import ABSENT, count, fixed, p_value
from headdyn.report.blocks import Cell, Section, Table, cell, marked
from headdyn.sweep.jobs import Job, of_prompts
from headdyn.sweep.outcomes import outcomes_of
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_record import read_series
from headdyn.sweep.series_words import share

_PROMPTS = (
    "Brackets: 95 % over number pairs (Clopper–Pearson for shares, BCa otherwise), for this one checkpoint. Controls "
    "are pairs that the bug does not touch."
)
_TOPICS = (
    "Brackets: 95 % over held-out sequences, for this one training. Null: uniform guessing for the loss, the same "
    "attention against other sequences' labels for within-topic attention, causal-uniform attention for entropy and "
    "position 0, the best baseline for probes; 0 for the rest."
)
# By outcome, another scalar of the run that it is best compared with, and the word for that scalar.
_BESIDE = {
    "within_ratio": ("within_ratio_uniform", "uniform"),
    "probe_accuracy_middle": ("probe_ceiling", "ceiling"),
    "loss_nats": ("floor_nats", "floor"),
}


def section(sweep: SweepRecord) -> Section | None:
    """One row per job, one column per outcome; a job that is not complete shows its status."""
    table = outcome_table(sweep, sweep.jobs, _remarks(sweep))
    outcomes = len(table.columns) - 1
    headline = f"{count(outcomes, 'outcome')} of {count(len(sweep.jobs), 'run')}"
    about = _PROMPTS if of_prompts(sweep.complete) else _TOPICS
    return Section("summary", "Run by run", [about, table], headline) if outcomes else None


def outcome_table(sweep: SweepRecord, jobs: Sequence[Job], remarks: Mapping[int, Sequence[str]] | None = None) -> Table:
    """One row per job with its outcomes; `remarks`, by job number, stand under the job's name."""
    names = recorded_outcomes(sweep.complete)
    rows: list[list[Any]] = []
    for job in jobs:
        label = "\n".join([job.label, *(remarks or {}).get(job.number, ())])
        status = [marked(job.run.status), *[""] * (len(names) - 1)]
        rows.append([label, *([outcome_cell(job, name) for name in names] if job.complete else status)])
    columns = [f"{metric.label}\n{metric.unit}" for metric in map(sweep.metric, names)]
    return Table(columns=["run", *columns], rows=rows, runs=[job.number for job in jobs])


def recorded_outcomes(jobs: Sequence[Job]) -> tuple[str, ...]:
    """The outcomes that any of these jobs recorded, with a value or as absent."""
    recorded = {name for job in jobs for name in job.run.scalars}
    return tuple(name for name in outcomes_of(job.run for job in jobs).names if name in recorded)


def outcome_cell(job: Job, name: str) -> Cell:
    """A run's outcome with the number to compare it with (`_BESIDE`), else with its p-value."""
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


def _remarks(sweep: SweepRecord) -> dict[int, list[str]]:
    """By job number, a checkpoint's place in training and, if it does not count, the reason."""
    remarks = {}
    for series in read_series(sweep):
        for row in series.rows:
            job = series.jobs.get(row["revision"])
            if job is not None and row["step"] is not None:
                why = f"{'does not count: ' if job.complete else ''}{row['reason']}"
                remarks[job.number] = [f"{share(row['training_share'])} of training", *([] if row["counts"] else [why])]
    return remarks
