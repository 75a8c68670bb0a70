"""Topic-ordered against shuffled training where both have the same held-out loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from headdyn.core.numbers import fixed
from headdyn.report.cells import Cell, cell
from headdyn.report.markup import soft, table
from headdyn.report.section import Section
from headdyn.sweep.factors import level_label
from headdyn.sweep.record import SweepRecord

_SHOWN = ("selectivity", "within_ratio", "entropy_nats", "probe_accuracy_middle")
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
    if not by_runs:
        return None
    numbers = {job.run.name: job.number for job in sweep.jobs}
    rows, runs = [], []
    for names, outcomes in by_runs.items():
        pair = outcomes[0]
        factors = [level_label(name, pair[name]) for name in ("attention", "position_enc", "seed")]
        losses = [fixed(pair["losses_nats"][side], 3) for side in ("shuffled", "topic")]
        steps = " / ".join(str(pair["steps"][side]) for side in ("shuffled", "topic"))
        by_outcome = {each["outcome"]: each for each in outcomes}
        cells = [_sides(sweep, name, by_outcome.get(name)) for name in _SHOWN]
        label = Cell(" ".join(factors), note=pair.get("group", ""))
        rows.append([label, steps, Markup("<br>").join(losses), *cells])
        runs.append(" ".join(str(numbers[name]) for name in names if name in numbers))
    sides = "shuffled, topic, difference"
    columns = [f"{m.label}\n{f'{m.unit}: ' if m.unit else ''}{sides}" for m in map(sweep.metric, _SHOWN)]
    head = ["pair", "step\nshuffled / topic", "held-out loss\nnats", *columns]
    return Section("matched", "Orderings at matched loss", soft(_ABOUT) + table(head, rows, numbers=runs))


def _sides(sweep: SweepRecord, name: str, pair: Mapping[str, Any] | None) -> Markup:
    if pair is None:
        return Markup('<span class="absent">absent: not analysed in both</span>')
    metric = sweep.metric(name)
    lines = []
    for ordering in ("shuffled", "topic"):
        side = cell(pair[ordering], metric)
        template = '<span class="absent">absent: {2}</span>' if side.reason else '{0} <span class="ci">{1}</span>'
        lines.append(Markup(template).format(side.value, side.interval, side.reason))
    difference = cell({"value": pair["difference"]}, metric, signed=True)
    return Markup("<br>").join([*lines, Markup("<b>{}</b>").format(difference.value)])
