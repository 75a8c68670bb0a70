"""Topic-ordered against shuffled training, and DroPE against RoPE, where both have the same held-out loss."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from headdyn.core.numbers import fixed
from headdyn.report.blocks import Cell, Section, Table, cell, marked
from headdyn.sweep.factors import CHOICES, level_label
from headdyn.sweep.matched_loss import COMPARED, compared
from headdyn.sweep.record import SweepRecord

_OUTCOMES = ("selectivity", "selectivity_documents", "within_ratio", "entropy_nats", "probe_accuracy_middle")
_ABOUT = (
    "Topic order slows training and dropped positions cost loss, so that equal steps compare unequal models. The arm "
    "that ended with the higher held-out loss is taken as it ended; the other arm's numbers are interpolated, linearly "
    "in loss, between its two snapshots on either side of that loss (older records have the numbers of the nearest "
    "snapshot). Orderings are compared without recalibrated arms. The steps of a DroPE arm are those of its "
    "recalibration. Intervals are over sequences; interpolated numbers and differences between trainings have none."
)


def section(sweep: SweepRecord) -> Section | None:
    """One table per factor, with one row per pair of runs: every outcome of both runs, and the difference."""
    tables = [
        _table(sweep, factor, pairs)
        for factor in COMPARED
        if (pairs := [pair for pair in sweep.pairs if compared(pair) == factor])
    ]
    return Section("matched", "Arms at matched loss", [_ABOUT, *tables]) if tables else None


def _table(sweep: SweepRecord, factor: str, every: Sequence[Mapping[str, Any]]) -> Table:
    levels = COMPARED[factor]
    by_runs: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for pair in every:
        by_runs.setdefault(tuple(pair["runs"][level] for level in levels), []).append(pair)
    numbers = {job.run.name: job.number for job in sweep.jobs}
    outcomes = [name for name in _OUTCOMES if any(pair["outcome"] == name for pair in every)]
    rows, runs = [], []
    for names, pairs in by_runs.items():
        pair, by_outcome = pairs[0], {each["outcome"]: each for each in pairs}
        factors = {**pair, **pair.get("factors", {})}  # older records have the factors in the pair itself
        others = [name for name in (*CHOICES, "seed") if name != factor and name in factors]
        choices = [level_label(name, factors[name]) for name in others]
        losses = [fixed(pair["losses_nats"][level], 3) for level in levels]
        steps = " / ".join(str(pair["steps"][level]) for level in levels)
        sides = [_sides(sweep, name, by_outcome.get(name), levels) for name in outcomes]
        label = Cell(" ".join(choices), note=pair.get("group", ""))
        rows.append([label, steps, Markup("<br>").join(losses), *sides])
        runs.append(" ".join(str(numbers[name]) for name in names if name in numbers))
    low, high = (level_label(factor, level) for level in levels)
    words = f"{low}, {high}, difference"
    columns = [f"{m.label}\n{f'{m.unit}: ' if m.unit else ''}{words}" for m in map(sweep.metric, outcomes)]
    return Table(columns=["pair", f"step\n{low} / {high}", "held-out loss\nnats", *columns], rows=rows, runs=runs)


def _sides(sweep: SweepRecord, name: str, pair: Mapping[str, Any] | None, levels: Sequence[str]) -> Markup:
    if pair is None:
        return marked("absent: not analysed in both", "absent")
    metric = sweep.metric(name)
    sides = [cell(pair[level], metric) for level in levels]
    lines = [Markup('{} <span class="ci">{}</span>').format(side.value, side.interval) for side in sides]
    difference = cell({"value": pair["difference"]}, metric, signed=True)
    return Markup("<br>").join([*lines, Markup("<b>{}</b>").format(difference.value)])
