"""Topic-ordered against shuffled training where both have the same held-out loss."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from headdyn.core.numbers import fixed
from headdyn.report.blocks import Cell, Section, Table, cell, marked
from headdyn.sweep.factors import level_label
from headdyn.sweep.record import SweepRecord

_OUTCOMES = ("selectivity", "within_ratio", "entropy_nats", "probe_accuracy_middle")
_ABOUT = (
    "Topic order slows training, so that equal steps compare unequal models. The arm that ended with the higher "
    "held-out loss is taken as it ended; the other's numbers are interpolated, linearly in loss, between its two "
    "snapshots on either side of that loss (earlier records: those of the nearest snapshot). Recalibrated arms are "
    "left out. A side's interval is over sequences; interpolated numbers and the difference between two trainings "
    "have none."
)


def section(sweep: SweepRecord) -> Section | None:
    """A row a pair of trainings, with both sides of every outcome and their difference."""
    by_runs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for pair in sweep.pairs:
        by_runs.setdefault((pair["runs"]["topic"], pair["runs"]["shuffled"]), []).append(pair)
    numbers = {job.run.name: job.number for job in sweep.jobs}
    rows, runs = [], []
    for names, pairs in by_runs.items():
        pair, by_outcome = pairs[0], {each["outcome"]: each for each in pairs}
        factors = [level_label(name, pair[name]) for name in ("attention", "position_enc", "seed")]
        losses = [fixed(pair["losses_nats"][side], 3) for side in ("shuffled", "topic")]
        steps = " / ".join(str(pair["steps"][side]) for side in ("shuffled", "topic"))
        sides = [_sides(sweep, name, by_outcome.get(name)) for name in _OUTCOMES]
        label = Cell(" ".join(factors), note=pair.get("group", ""))
        rows.append([label, steps, Markup("<br>").join(losses), *sides])
        runs.append(" ".join(str(numbers[name]) for name in names if name in numbers))
    words = "shuffled, topic, difference"
    columns = [f"{m.label}\n{f'{m.unit}: ' if m.unit else ''}{words}" for m in map(sweep.metric, _OUTCOMES)]
    table = Table(columns=["pair", "step\nshuffled / topic", "held-out loss\nnats", *columns], rows=rows, runs=runs)
    return Section("matched", "Orderings at matched loss", [_ABOUT, table]) if rows else None


def _sides(sweep: SweepRecord, name: str, pair: Mapping[str, Any] | None) -> Markup:
    if pair is None:
        return marked("absent: not analysed in both", "absent")
    metric = sweep.metric(name)
    sides = [cell(pair[ordering], metric) for ordering in ("shuffled", "topic")]
    lines = [Markup('{} <span class="ci">{}</span>').format(side.value, side.interval) for side in sides]
    difference = cell({"value": pair["difference"]}, metric, signed=True)
    return Markup("<br>").join([*lines, Markup("<b>{}</b>").format(difference.value)])
