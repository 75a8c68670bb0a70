"""What the factors do: the primary outcome's effects as the sweep's main picture and table, every outcome behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from headdyn.core.figures import Figure, Interval, interval_plot
from headdyn.core.numbers import ABSENT, count, p_value
from headdyn.report.cells import Cell, cell
from headdyn.report.looks import key_name
from headdyn.report.markup import gallery, heading, soft, table
from headdyn.report.page import drawn
from headdyn.report.section import Section
from headdyn.sweep.effects import effect_name
from headdyn.sweep.factors import level_label
from headdyn.sweep.record import SweepRecord

_ABOUT = (
    "An effect of a factor is the mean at its second level less the mean at its first, worked out within each seed and "
    "averaged over seeds; of two factors (×) half the difference between one's effects at the other's two levels. "
    "Intervals are Student's over seeds, so that one seed gives none. These are of all runs, whatever the filter shows."
)

Row = Mapping[str, Any]


def section(sweep: SweepRecord) -> Section | None:
    """The effects on the primary outcome: picture and table."""
    outcomes = [name for name in sweep.outcomes.names if any(row["outcome"] == name for row in sweep.effects)]
    if not outcomes:
        return None
    rows = [row for row in sweep.effects if row["outcome"] == outcomes[0]]
    metric = sweep.metric(outcomes[0])
    columns = ["effect", f"{metric.label}\n{metric.of_differences}", "p", "q", "detectable\nwith 80 % power", "seeds"]
    cells = [
        [
            _name(row),
            cell(row, metric, signed=True),
            p_value(row.get("p")),
            p_value(row.get("q")),
            ABSENT if row.get("detectable") is None else f"{metric.scale * row['detectable']:.2g}",
            row["n"],
        ]
        for row in rows
    ]
    pictures = list(map(drawn, effect_figures(sweep, outcomes[:1]).values()))
    return Section("effects", f"Effects on {metric.label}", gallery([*pictures, table(columns, cells)]), folded=False)


def every_outcome(sweep: SweepRecord) -> Section | None:
    """The effects on every outcome, and the mean of each level."""
    if not sweep.effects:
        return None
    outcomes = [name for name in sweep.outcomes.names if any(row["outcome"] == name for row in sweep.effects)]
    parts = [soft(_ABOUT), _wide_table(sweep, sweep.effects, outcomes, "effect")]
    parts.append(gallery(map(drawn, effect_figures(sweep, outcomes[1:], caption=False).values())))
    if sweep.simple_effects:
        parts += [
            heading("One factor where another is held"),
            _wide_table(sweep, sweep.simple_effects, outcomes, "effect"),
        ]
    if sweep.level_means:
        parts += [heading("Means of the levels"), _wide_table(sweep, sweep.level_means, outcomes, "level")]
    clear = sum(row.get("q") is not None and row["q"] < 0.05 for row in sweep.effects)
    headline = f"{clear} of {count(len(sweep.effects), 'effect')} have q < 0.05"
    return Section("outcomes", "Effects on every outcome", Markup("\n").join(parts), headline)


def effect_figures(sweep: SweepRecord, outcomes: Sequence[str], *, caption: bool = True) -> dict[str, Figure]:
    """One interval plot for each outcome and group, a row an effect; by the outcome's label."""
    figures = {}
    for outcome in outcomes:
        metric = sweep.metric(outcome)
        for group in dict.fromkeys(row["group"] for row in sweep.effects):
            rows = [row for row in sweep.effects if (row["group"], row["outcome"]) == (group, outcome)]
            intervals = [
                Interval(
                    label=effect_name(row),
                    group={1: "one factor", 2: "two factors"}.get(len(row["factors"]), "more factors"),
                    **{name: _scaled(row[key], metric.scale) for name, key in _ENDS.items()},
                )
                for row in rows
            ]
            name = f"{metric.label} ({group})" if group else metric.label
            seeds = count(max((row["n"] for row in rows), default=0), "seed")
            words = f"Bars: 95 % interval over {seeds}. Where nothing has an effect, 19 of 20 bars hold 0."
            unit = f" ({metric.of_differences})" if metric.of_differences else ""
            title = f"Effects on {name}"
            if intervals:
                figures[name] = interval_plot(
                    intervals, xlabel=f"difference{unit}", title=title, zero_line=True, caption=words if caption else ""
                )
    return figures


_ENDS = {"value": "value", "low": "ci_low", "high": "ci_high"}


def _wide_table(sweep: SweepRecord, rows: Sequence[Row], outcomes: Sequence[str], what: str) -> Markup:
    """A row an effect or a level, a column an outcome."""
    by_name: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        by_name.setdefault((row["group"], _name(row) if what == "effect" else _level(row)), {})[row["outcome"]] = row
    signed = what == "effect"
    columns = [what, *(["settings"] if any(group for group, _ in by_name) else []), "seeds"]
    columns += [f"{m.label}\n{m.of_differences if signed else m.unit}" for m in map(sweep.metric, outcomes)]
    lines = []
    for (group, name), by_outcome in by_name.items():
        line = [
            name,
            *([group] if len(columns) > len(outcomes) + 2 else []),
            max(row["n"] for row in by_outcome.values()),
        ]
        lines.append([*line, *(_with_q(sweep, by_outcome.get(outcome), signed) for outcome in outcomes)])
    return table(columns, lines)


def _with_q(sweep: SweepRecord, row: Row | None, signed: bool) -> Cell:
    if row is None:
        return Cell()
    parts = cell(row, sweep.metric(row["outcome"]), signed=signed)
    q = "" if row.get("q") is None else f"q {'' if row['q'] < 0.001 else '= '}{p_value(row['q'])}"
    return Cell(parts.value, parts.interval, "", q, parts.reason)


def _name(row: Row) -> str:
    return effect_name(row)


def _level(row: Row) -> str:
    ((factor, levels),) = row["levels"].items()
    return f"{key_name(factor)}: {level_label(factor, levels[0])}"


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else scale * value
