"""Runs by their numbers: every run's outcomes in one table; a single run's outcomes, figures and scalars."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from headdyn.core.figures import Figure
from headdyn.core.numbers import ABSENT, count, fixed, p_value, units
from headdyn.report.blocks import Cell, Heading, Section, Table, cell, html, marked
from headdyn.report.sections.training import loss_curve, loss_figure, recovery_figures
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
# By outcome, the scalar of the same run that it is best compared with, and the word for that scalar.
_BESIDE = {
    "within_ratio": ("within_ratio_uniform", "uniform"),
    "probe_accuracy_middle": ("probe_ceiling", "ceiling"),
    "loss_nats": ("floor_nats", "floor"),
}
_SCALARS = (
    "Square brackets hold 95 % intervals over the units in the last column; the null is what chance gives for the same "
    "data; q is p after Benjamini–Hochberg over the analysis's tests. Model rows average over heads or tokens."
)
_LOSSES = {"train_loss_nats": "training batches", "val_loss_nats": "held out"}


def summary(sweep: SweepRecord) -> Section | None:
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
    return tuple(name for name in outcomes_of(job.run for job in jobs) if name in recorded)


def outcome_cell(job: Job, name: str) -> Cell:
    """A run's outcome with the number to compare it with (`_BESIDE`), else with its p-value."""
    if of_prompts([job]) and name not in job.run.scalars:
        return Cell(ABSENT, note="not measured")
    scalar, metric = job.scalar(name), job.metric(name)
    note = "" if scalar.get("p") is None else f"p {p_value(scalar['p'])}"
    other, word = _BESIDE.get(name, ("", ""))
    if (beside := job.run.value(other)) is not None:
        digits = max(1, metric.digits) if metric.scale == 1 else 1
        note = f"{word} {fixed(metric.scale * beside, digits)}"
    parts = cell(scalar, metric)
    return parts if parts.reason else replace(parts, note=note)


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


def outcomes(sweep: SweepRecord) -> Section | None:
    """The run's outcomes in a reader's units, each with its meaning, beside the run's main picture."""
    job = sweep.jobs[0]
    label = Markup('{}<small class="meaning">{}</small>')
    metrics = {name: job.metric(name) for name in recorded_outcomes([job])}
    rows = [[label.format(m.label, m.meaning), outcome_cell(job, name), m.unit] for name, m in metrics.items()]
    picture = _main_picture(sweep)
    blocks = [picture, Table(columns=["outcome", "value", "unit"], rows=rows) if rows else None]
    return Section("outcomes", "Outcomes", [blocks], folded=False) if rows or picture else None


def _main_picture(sweep: SweepRecord) -> Path | None:
    """The training's course; for a model trained elsewhere, the first figure of the primary outcome's analysis."""
    groups = figures_by_analysis(sweep.jobs[0])
    glossary = sweep.jobs[0].run.manifest.get("glossary", {})
    owners = [name for name, part in glossary.items() if sweep.primary in part["metrics"]]
    return next((groups[name][0] for name in ("training", *owners, *groups) if name in groups), None)


def figures(sweep: SweepRecord) -> list[Section]:
    """A section for each analysis that left figures."""
    sections = []
    for name, paths in figures_by_analysis(sweep.jobs[0]).items():
        title = {"patterns": "Attention patterns"}.get(name, name.replace("_", " ").capitalize())
        sections.append(Section(f"figures-{name}", title, [paths], count(len(paths), "figure")))
    return sections


def figures_by_analysis(job: Job) -> dict[str, list[Path]]:
    """The files of the run's figures: training, then the analyses in the order they ran, then any other."""
    groups: dict[str, list[Path]] = {name: [] for name in ("training", *job.run.manifest.get("glossary", {}))}
    names = sorted(groups, key=len, reverse=True)  # a file is named after its analysis: the longest name that fits
    for path in sorted((job.run.folder / "figures").glob("*.json")):
        name = next((name for name in names if path.stem.startswith(f"{name}_")), path.stem.partition("_")[0])
        groups.setdefault(name, []).append(path)
    return {name: paths for name, paths in groups.items() if paths}


def training_figures(job: Job) -> dict[str, Figure]:
    """Loss against steps with the reference lines, and the recovery after a positional change where there was one."""
    lines = [loss_curve(job, name, label) for name, label in _LOSSES.items() if job.metrics.get(name)]
    figures = {"loss": loss_figure(lines, [job], "Training loss")} if job.metrics.get("val_loss_nats") else {}
    recovery = [*recovery_figures(SweepRecord.of(job)).values()]
    return figures | ({"recovery": recovery[0]} if recovery else {})


def numbers(sweep: SweepRecord) -> Section:
    """Every scalar of the run; records by step are left out."""
    groups = scalars_by_analysis(sweep.jobs[0])
    parts = []
    for group, entries in groups.items():
        with_q = any("q" in entry["scalar"] for entry in entries)
        rows = []
        for entry in entries:
            scalar, name = entry["scalar"], Markup('<span title="{}">{}</span>').format(entry["meaning"], entry["name"])
            q = {"q": p_value(scalar["q"]) if "q" in scalar else ""} if with_q else {}
            rows.append({"metric": name, "value": cell(scalar), **q, "units": units(scalar)})
        heading = html(Heading(group.replace("_", " ")))
        parts.append(Markup("<div>{}{}</div>").format(heading, Table.of(rows, dense=True).html()))
    blocks = [_SCALARS, Markup('<div class="two">{}</div>').format(Markup("\n").join(parts))]
    return Section("numbers", "All numbers", blocks, count(sum(map(len, groups.values())), "scalar"))


def scalars_by_analysis(job: Job) -> dict[str, list[dict[str, Any]]]:
    """The run's scalars by the analysis that measured them; those of the pipeline are "corpus and training".

    Metrics of an analysis that are absent for the same reason share one row, after the analysis's other rows.
    """
    glossary = job.run.manifest.get("glossary", {})
    owner = {metric: name for name, part in glossary.items() for metric in part["metrics"]}
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, scalar in job.run.scalars.items():
        entry = dict(scalar) if isinstance(scalar, Mapping) else {"value": scalar}
        if not {"value", "reason"} & set(entry) or entry.get("value", "") is None:
            continue
        row = {"name": name, "scalar": entry, "meaning": job.metric(name).meaning}
        groups.setdefault(owner.get(name, "corpus and training"), []).append(row)
    return {group: _absent_together(rows) for group, rows in groups.items()}


def _absent_together(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, except that rows absent for the same reason become one row, at the end, that names them all."""
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        if row["scalar"].get("value") is None:
            by_reason.setdefault(row["scalar"]["reason"], []).append(row["name"])
    shared = {reason: names for reason, names in by_reason.items() if len(names) > 1}
    together = [row for row in rows if row["scalar"].get("reason") not in shared]
    return together + [
        {"name": f"{len(names)} metrics", "scalar": {"reason": reason}, "meaning": ", ".join(names)}
        for reason, names in shared.items()
    ]
