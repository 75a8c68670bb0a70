"""Several trainings of one suite side by side: results over random seeds, and the result of each training."""

from __future__ import annotations

from typing import Any

from headdyn.core.numbers import count, fixed, p_value
from headdyn.report.blocks import Heading, Section, Table, cell
from headdyn.sweep.curves_together import CurvesTogether, curves_together
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
_FEWEST_PAIRS = 8  # of curves; so many are shown even if fewer are found to move together
_TOGETHER = (
    "Rank correlations of two curves' changes from checkpoint to checkpoint: with both curves from the same training, "
    "and with the two from different trainings. p compares the mean over trainings with the means when one curve's "
    "trainings are put in other orders; q is over all pairs. Shown are the pairs with q ≤ 0.05, or the "
    f"{_FEWEST_PAIRS} with the smallest p. Curves that are computed from one another move together for that reason."
)


def section(sweep: SweepRecord) -> Section | None:
    """For every suite with several trainings, tables of its measures and of its other numbers."""
    blocks: list[Any] = []
    all_repetitions = repetitions(sweep)
    for repetition in all_repetitions:
        blocks += [Heading(f"{repetition.suite}: {repetition.analysis.replace('_', ' ')}")]
        blocks += [table for table in (_measures(repetition, sweep), _scalars(repetition, sweep)) if table.rows]
        together = curves_together(repetition, sweep)
        blocks += [Heading("Curves that move together" if together.records else ""), together.sentence()]
        blocks += [_together(together, sweep), _TOGETHER] if together.records else []
    lead = next((texts[0] for repetition in all_repetitions if (texts := sentences(repetition, sweep))), "")
    return Section("training_seeds", QUESTION, [*blocks, _WORDS], lead, folded=False) if all_repetitions else None


def _measures(repetition: Repetition, sweep: SweepRecord) -> Table:
    """One row per measure: in how many trainings it emerges, when, its mean at the end, each training's interval."""
    rows = []
    for name, judgements in repetition.measures().items():
        metric, end = sweep.metric(name), strength_at_end(judgements)
        together = [emerged(judgements), steps_in_words(judgements), metric.spelled(end)]
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


def _together(together: CurvesTogether, sweep: SweepRecord) -> Table:
    """One row per pair of curves: those that are found, or the pairs with the smallest p."""
    rows = [
        {
            "curve": sweep.metric(record["one"]).label,
            "with": sweep.metric(record["other"]).label,
            "same training\nmean correlation": fixed(record["within"], 2, signed=True),
            "different trainings\nmean correlation": fixed(record["across"], 2, signed=True),
            "p": p_value(record["p"]),
            "q": p_value(record["q"]),
            "units": count(record["n"], "training"),
        }
        for record in together.records[: max(len(together.found), _FEWEST_PAIRS)]
    ]
    return Table.of(rows)
