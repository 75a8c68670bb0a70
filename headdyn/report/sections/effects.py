"""The effects of the factors: on the primary outcome as the sweep's main picture and table, on all outcomes folded."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from headdyn.core.figures import Figure, Interval, interval_plot
from headdyn.core.numbers import ABSENT, count, p_is, p_value
from headdyn.report.blocks import Cell, Heading, Section, Table, cell
from headdyn.report.looks import key_name
from headdyn.sweep.effect_words import detectable_size
from headdyn.sweep.effects import effect_name
from headdyn.sweep.factors import level_label
from headdyn.sweep.record import SweepRecord

_ABOUT = (
    "An effect of a factor is the mean at its second level less the mean at its first, worked out within each seed and "
    "averaged over seeds. An effect of two factors (×) is half the difference between the effects of one at the two "
    "levels of the other. Intervals are Student's over seeds, so one seed gives none. The filter changes no number."
)

_KINDS = {1: "one factor", 2: "two factors"}  # legend entries of effects, by their number of factors

Row = Mapping[str, Any]


def section(sweep: SweepRecord) -> Section | None:
    """The effects on the primary outcome: picture and table."""
    if not (outcomes := _outcomes(sweep)):
        return None
    metric = sweep.metric(outcomes[0])
    rows = [
        [
            effect_name(row),
            cell(row, metric, signed=True),
            p_value(row.get("p")),
            p_value(row.get("q")),
            detectable_size(row, metric) or ABSENT,
            row["n"],
        ]
        for row in sweep.effects
        if row["outcome"] == outcomes[0]
    ]
    columns = [
        "effect",
        f"{metric.label}\n{metric.of_differences}",
        "p",
        "q",
        "detectable\nby q, with 80 % power",
        "seeds",
    ]
    pictures = effect_figures(sweep, outcomes[:1]).values()
    blocks = [[*pictures, Table(columns=columns, rows=rows)]]
    return Section("effects", f"Effects on {metric.label}", blocks, folded=False)


def every_outcome(sweep: SweepRecord) -> Section | None:
    """The effects on every outcome, and the mean of each level."""
    if not sweep.effects:
        return None
    outcomes = _outcomes(sweep)
    blocks = [_ABOUT, _wide_table(sweep, sweep.effects, outcomes)]
    blocks.append([*effect_figures(sweep, outcomes[1:], caption=False).values()])
    if sweep.simple_effects:
        blocks += [Heading("One factor where another is held"), _wide_table(sweep, sweep.simple_effects, outcomes)]
    if sweep.level_means:
        blocks += [Heading("Means of the levels"), _wide_table(sweep, sweep.level_means, outcomes, of_levels=True)]
    clear = sum(row.get("q") is not None and row["q"] < 0.05 for row in sweep.effects)
    headline = f"{clear} of {count(len(sweep.effects), 'effect')} have q < 0.05"
    return Section("outcomes", "Effects on every outcome", blocks, headline)


def effect_figures(sweep: SweepRecord, outcomes: Sequence[str], *, caption: bool = True) -> dict[str, Figure]:
    """One interval plot for each outcome and group, with one row per effect; by the outcome's label."""
    figures = {}
    for outcome in outcomes:
        metric = sweep.metric(outcome)
        for group in dict.fromkeys(row["group"] for row in sweep.effects):
            rows = [row for row in sweep.effects if (row["group"], row["outcome"]) == (group, outcome)]
            if not rows:
                continue
            several_kinds = len({len(row["factors"]) for row in rows}) > 1  # one kind needs no legend
            intervals = [
                Interval(
                    label=effect_name(row),
                    group=_KINDS.get(len(row["factors"]), "more factors") if several_kinds else "",
                    **{
                        end: None if row[key] is None else metric.scale * row[key]
                        for end, key in {"value": "value", "low": "ci_low", "high": "ci_high"}.items()
                    },
                )
                for row in rows
            ]
            name = f"{metric.label} ({group})" if group else metric.label
            seeds = count(max(row["n"] for row in rows), "seed")
            words = f"Bars: 95 % interval over {seeds}. Where nothing has an effect, 19 of 20 bars hold 0."
            if all(row["ci_low"] is None for row in rows):
                words = f"Values of {seeds}: no intervals."
            unit = f" ({metric.of_differences})" if metric.of_differences else ""
            figures[name] = interval_plot(
                intervals,
                xlabel=f"difference{unit}",
                title=f"Effects on {name}",
                zero_line=True,
                caption=words if caption else "",
            )
    return figures


def _outcomes(sweep: SweepRecord) -> list[str]:
    """The outcomes on which there are effects, the primary one first."""
    present = {row["outcome"] for row in sweep.effects}
    return [name for name in sweep.outcomes.names if name in present]


def _wide_table(sweep: SweepRecord, rows: Sequence[Row], outcomes: Sequence[str], *, of_levels: bool = False) -> Table:
    """One row per effect or level, one column per outcome."""
    by_name: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        by_name.setdefault((row["group"], _level(row) if of_levels else effect_name(row)), {})[row["outcome"]] = row
    grouped = any(group for group, _ in by_name)
    columns = ["level" if of_levels else "effect", *(["settings"] if grouped else []), "seeds"]
    columns += [f"{m.label}\n{m.unit if of_levels else m.of_differences}" for m in map(sweep.metric, outcomes)]
    lines = []
    for (group, name), by_outcome in by_name.items():
        cells = [_with_q(sweep, by_outcome.get(outcome), signed=not of_levels) for outcome in outcomes]
        seeds = max(row["n"] for row in by_outcome.values())
        lines.append([name, *([group] if grouped else []), seeds, *cells])
    return Table(columns=columns, rows=lines)


def _with_q(sweep: SweepRecord, row: Row | None, *, signed: bool) -> Cell:
    if row is None:
        return Cell()
    metric = sweep.metric(row["outcome"])
    bound = detectable_size(row, metric)
    q = "" if row.get("q") is None else p_is(row["q"], "q")
    note = f"{q}, {bound} detectable" if bound else q
    return replace(cell(row, metric, signed=signed), null="", note=note)


def _level(row: Row) -> str:
    ((factor, levels),) = row["levels"].items()
    return f"{key_name(factor)}: {level_label(factor, levels[0])}"
