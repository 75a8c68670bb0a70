"""The effects of the factors: on the primary outcome, on all outcomes, and between arms at the same held-out loss."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from headdyn.core.figures import Figure, Interval, interval_plot
from headdyn.core.numbers import ABSENT, count, fixed, p_is, p_value
from headdyn.report.blocks import Cell, Heading, Section, Table, cell, marked
from headdyn.report.looks import key_name
from headdyn.sweep.effect_words import detectable_size
from headdyn.sweep.effects import effect_name
from headdyn.sweep.factors import CHOICES, level_label
from headdyn.sweep.matched_loss import COMPARED, compared
from headdyn.sweep.record import SweepRecord

_ABOUT = (
    "An effect of a factor is the mean at its second level less the mean at its first, worked out within each seed and "
    "averaged over seeds. An effect of two factors (×) is half the difference between the effects of one at the two "
    "levels of the other. Intervals are Student's over seeds, so one seed gives none. The filter does not change these "
    "numbers."
)
_MATCHED_OUTCOMES = ("selectivity", "selectivity_documents", "within_ratio", "entropy_nats", "probe_accuracy_middle")
_MATCHED_ABOUT = (
    "Topic order slows training and dropping positions raises the loss, so that at equal steps the models of two arms "
    "predict unequally well. The arm that ended with the higher held-out loss is taken as it ended; the other arm's "
    "numbers are interpolated, linearly in loss, between its two snapshots on either side of that loss (older records "
    "have the numbers of the nearest snapshot). Orderings are compared without recalibrated arms. The steps of a DroPE "
    "arm are those of its recalibration. Intervals are over sequences; interpolated numbers and differences between "
    "trainings have none."
)
_VALUE_AND_ENDS = ("value", "ci_low", "ci_high")
_KINDS = {1: "one factor", 2: "two factors"}  # legend entries of effects, by their number of factors

Row = Mapping[str, Any]


def section(sweep: SweepRecord) -> Section | None:
    """The effects on the primary outcome: figures and a table; None if there are no effects."""
    if not (outcomes := _outcomes(sweep)):
        return None
    metric = sweep.metric(outcomes[0])
    rows = [
        {
            "effect": effect_name(row),
            f"{metric.label}\n{metric.of_differences}": cell(row, metric, signed=True),
            "p": p_value(row.get("p")),
            "q": p_value(row.get("q")),
            "smallest detectable\nq < 0.05, 80 % power": detectable_size(row, metric) or ABSENT,
            "seeds": row["n"],
        }
        for row in sweep.effects
        if row["outcome"] == outcomes[0]
    ]
    blocks = [[*effect_figures(sweep, outcomes[:1]).values(), Table.of(rows)]]
    return Section("effects", f"Effects on {metric.label}", blocks, folded=False)


def every_outcome(sweep: SweepRecord) -> Section | None:
    """The effects on every outcome, and the mean of each level; None if there are no effects."""
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
    """One interval plot for each outcome and group, with one row per effect; by the outcome's label and the group."""
    figures = {}
    for outcome in outcomes:
        metric = sweep.metric(outcome)
        for group in dict.fromkeys(row["group"] for row in sweep.effects):
            rows = [row for row in sweep.effects if (row["group"], row["outcome"]) == (group, outcome)]
            if not rows:
                continue
            several_kinds = len({len(row["factors"]) for row in rows}) > 1  # one kind needs no legend
            intervals = []
            for row in rows:
                value, low, high = (None if row[end] is None else metric.scale * row[end] for end in _VALUE_AND_ENDS)
                kind = _KINDS.get(len(row["factors"]), "more factors") if several_kinds else ""
                intervals.append(Interval(label=effect_name(row), value=value, low=low, high=high, group=kind))
            name = f"{metric.label} ({group})" if group else metric.label
            seeds = count(max(row["n"] for row in rows), "seed")
            text = f"Bars: 95 % interval over {seeds}. Where nothing has an effect, 19 of 20 bars contain 0."
            if all(row["ci_low"] is None for row in rows):
                text = f"Values of {seeds}: no intervals."
            xlabel = f"difference ({metric.of_differences})" if metric.of_differences else "difference"
            figures[name] = interval_plot(
                intervals, xlabel=xlabel, title=f"Effects on {name}", zero_line=True, caption=text if caption else ""
            )
    return figures


def _outcomes(sweep: SweepRecord) -> list[str]:
    """The outcomes on which there are effects, the primary one first."""
    present = {row["outcome"] for row in sweep.effects}
    return [name for name in sweep.outcomes if name in present]


def _wide_table(sweep: SweepRecord, rows: Sequence[Row], outcomes: Sequence[str], *, of_levels: bool = False) -> Table:
    """One row per effect (with `of_levels`, per level), one column per outcome."""
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


def at_matched_loss(sweep: SweepRecord) -> Section | None:
    """One table per factor, one row per pair of runs: both runs' outcomes and their difference. None without pairs."""
    by_factor = {factor: [pair for pair in sweep.pairs if compared(pair) == factor] for factor in COMPARED}
    tables = [_pairs_table(sweep, factor, pairs) for factor, pairs in by_factor.items() if pairs]
    return Section("matched", "Arms at matched loss", [_MATCHED_ABOUT, *tables]) if tables else None


def _pairs_table(sweep: SweepRecord, factor: str, pairs: Sequence[Row]) -> Table:
    """The table of a factor's `pairs`, each of which has one outcome of two runs."""
    levels = COMPARED[factor]
    by_runs: dict[tuple[str, ...], dict[str, Row]] = {}
    for pair in pairs:
        by_runs.setdefault(tuple(pair["runs"][level] for level in levels), {})[pair["outcome"]] = pair
    numbers = {job.run.name: job.number for job in sweep.jobs}
    outcomes = [name for name in _MATCHED_OUTCOMES if any(name in by_outcome for by_outcome in by_runs.values())]
    rows, runs = [], []
    for names, by_outcome in by_runs.items():
        pair = next(iter(by_outcome.values()))  # what is not an outcome is the same in all
        factors = {**pair, **pair.get("factors", {})}  # older records have the factors in the pair itself
        others = [name for name in (*CHOICES, "seed") if name != factor and name in factors]
        choices = [level_label(name, factors[name]) for name in others]
        losses = [fixed(pair["losses_nats"][level], 3) for level in levels]
        steps = " / ".join(str(pair["steps"][level]) for level in levels)
        cells = [_sides(sweep, name, by_outcome.get(name), levels) for name in outcomes]
        label = Cell(" ".join(choices), note=pair.get("group", ""))
        rows.append([label, steps, Markup("<br>").join(losses), *cells])
        runs.append(" ".join(str(numbers[name]) for name in names if name in numbers))
    low, high = (level_label(factor, level) for level in levels)
    lines = f"{low}, {high}, difference"
    columns = [f"{m.label}\n{f'{m.unit}: ' if m.unit else ''}{lines}" for m in map(sweep.metric, outcomes)]
    return Table(columns=["pair", f"step\n{low} / {high}", "held-out loss\nnats", *columns], rows=rows, runs=runs)


def _sides(sweep: SweepRecord, name: str, pair: Row | None, levels: Sequence[str]) -> Markup:
    """An outcome of the run at each level, and their difference, on three lines."""
    if pair is None:
        return marked("absent: not analysed in both", "absent")
    metric = sweep.metric(name)
    sides = [cell(pair[level], metric) for level in levels]
    lines = [Markup('{} <span class="ci">{}</span>').format(side.value, side.interval) for side in sides]
    difference = cell({"value": pair["difference"]}, metric, signed=True)
    return Markup("<br>").join([*lines, Markup("<b>{}</b>").format(difference.value)])
