"""Several trainings of one suite side by side: results over random seeds, and the result of each training."""

from __future__ import annotations

from typing import Any

from headdyn.report.blocks import Heading, Section, Table, cell
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_words import interval
from headdyn.sweep.training_seeds import (
    QUESTION,
    Repetition,
    emerged,
    repetitions,
    sentences,
    steps_in_words,
    strength_at_end,
)

_WORDS = (
    "The unit is a training. Shares have Clopper–Pearson intervals, means Student's, all 95 %. A step of emergence is "
    "the geometric mean of the trainings that have one; its interval covers the distance between checkpoints, too."
)


def section(sweep: SweepRecord) -> Section | None:
    """For every suite with several trainings, tables of its measures and of its other numbers."""
    blocks: list[Any] = []
    every = repetitions(sweep)
    for repetition in every:
        blocks += [Heading(f"{repetition.suite}: {repetition.analysis.replace('_', ' ')}")]
        blocks += [table for table in (_measures(repetition, sweep), _scalars(repetition, sweep)) if table.rows]
    lead = next((texts[0] for repetition in every if (texts := sentences(repetition, sweep))), "")
    return Section("training_seeds", QUESTION, [*blocks, _WORDS], lead, folded=False) if every else None


def _measures(repetition: Repetition, sweep: SweepRecord) -> Table:
    """One row per measure: in how many trainings it emerges, when, its mean at the end, each training's interval."""
    rows = []
    for name, judgements in repetition.measures().items():
        metric, end = sweep.metric(name), strength_at_end(judgements)
        together = [emerged(judgements).words(), steps_in_words(judgements), metric.spelled(end)]
        rows.append([metric.label, *together, *map(interval, judgements)])
    columns = ["", "emerges in", "within steps", "at the end, mean over trainings"]
    return Table(columns=[*columns, *repetition.seeds], rows=rows, dense=True)


def _scalars(repetition: Repetition, sweep: SweepRecord) -> Table:
    """One row per number that the analysis gives for every training: the mean over trainings, and each training's."""
    rows = []
    for name, mean in repetition.scalars().items():
        own = [cell(entry["summary"][name]) for entry in repetition.entries.values()]
        meanings = next(iter(repetition.entries.values()))["meanings"]
        rows.append([name.replace("_", " "), cell(mean), *own, meanings.get(name, "")])
    return Table(columns=["", "mean over trainings", *repetition.seeds, "meaning"], rows=rows, dense=True)
