"""The effects of a sweep's factors, computed within each seed and averaged over seeds, from the records of its runs.

The unit of a claim about a factor is a training: with one seed there is a value and no interval. Definitions are in
docs/science.md, "Effects over seeds".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from itertools import combinations, permutations, product
from typing import Any

import numpy as np

from headdyn.core.run_folder import RunRecord
from headdyn.core.statistics import benjamini_hochberg, effect_over_seeds, smallest_detectable, spread_of_interval
from headdyn.sweep.factors import CHOICES, Contrast, Factor, factor_names, factors_of, level_label, level_of, short_name
from headdyn.sweep.groups import Group, comparable
from headdyn.sweep.outcomes import outcomes_of

Rows = list[dict[str, Any]]

ALPHA = 0.05  # an effect is found if its q is below this

# The kinds of rows. The first three are the design's effects, one family of q; simple effects are another family.
CONTRAST, SLOPE, INTERACTION, SIMPLE, MEAN = "contrast", "slope", "interaction", "simple", "mean"


def factor_effects(
    runs: Sequence[RunRecord], *, swept: Iterable[str] = (), outcomes: Sequence[str] | None = None
) -> Rows:
    """Every effect of the factors on every outcome, by group of comparable runs.

    `swept` are the keys that a command varied; `outcomes` default to those that the runs' configurations name. A row of

    - kind "contrast": two levels of a factor, the higher less the lower, averaged over the other factors' levels;
    - "slope": three or more numbers, by least squares against the level or log2 of it (`against`);
    - "interaction": for two factors, half the difference between one's effects at the other's two levels, and so on;
    - "simple": a factor's contrast where one other factor is held at a level (`held`);
    - "mean": one level, averaged over the other factors' levels. It has an interval and no p.

    `levels` are those compared. A row without a value has a `reason`; with_q adds q and `detectable`. Groups of
    checkpoints of one training are left out, and so are runs that were recalibrated until they recover but did not.
    """
    rows: Rows = []
    swept = list(swept)
    for group in comparable(runs, swept):
        if len({run.factors.get("revision") for run in group.runs}) > 1:
            continue
        factors = factors_of(group.runs, factor_names(swept))
        tested = outcomes_of(group.runs)
        for outcome in tested if outcomes is None else outcomes:
            cells = _Cells.of(group, factors, outcome, outcome in tested[:1])
            if cells is not None:
                rows += _rows(cells)
    effects = with_q([row for row in rows if row["kind"] in (CONTRAST, SLOPE, INTERACTION)])
    simple = with_q([row for row in rows if row["kind"] == SIMPLE])
    return [*effects, *simple, *(row for row in rows if row["kind"] == MEAN)]


def unrecovered(run: RunRecord) -> bool:
    """Whether a run was recalibrated until it recovers from its change of positions, but did not recover.

    Such a run enters no contrast. Runs with a fixed recalibration, as in the original protocol, always count.
    """
    facts = run.scalars.get("recalibration") or {}
    return bool(facts.get("until_recovered")) and not facts["recovered"]


def with_q(rows: Rows) -> Rows:
    """The rows with Benjamini–Hochberg q-values beside their p-values; all rows are one family.

    A row with q ≥ ALPHA also has `detectable`, the smallest effect that would be found in four of five repetitions; it
    exceeds the row's own value. Where k of m tests are found, a further one would be at p ≤ ALPHA (k + 1)/m.
    """
    tested = [row for row in rows if row.get("p") is not None]
    q = benjamini_hochberg(np.array([row["p"] for row in tested])).tolist()
    q_of = {id(row): value for row, value in zip(tested, q, strict=True)}
    level = ALPHA * (sum(value < ALPHA for value in q) + 1) / max(len(q), 1)

    def detectable(row: Mapping[str, Any]) -> float | None:
        if q_of.get(id(row), 0) < ALPHA:
            return None
        spread = spread_of_interval(row["ci_low"], row["ci_high"], row["n"])
        return smallest_detectable(spread, row["n"], alpha=level)

    return [{**row, "detectable": detectable(row), "q": q_of.get(id(row))} for row in rows]


@dataclasses.dataclass(frozen=True)
class _Cells:
    """One outcome of a group: `values` is [seeds, levels of the first factor, of the second, …], NaN where absent."""

    group: str
    outcome: str
    primary: bool
    factors: Sequence[Factor]
    seeds: Sequence[Any]
    values: np.ndarray
    conflict: str = ""
    left_out: Sequence[str] = ()  # runs that have not recovered from a change of positions

    @classmethod
    def of(cls, group: Group, factors: Sequence[Factor], outcome: str, primary: bool) -> _Cells | None:
        """None where no run has a value, or nothing varies."""
        seeds = list(dict.fromkeys(run.factors.get("seed") for run in group.runs))
        values = np.full((len(seeds), *(len(factor.levels) for factor in factors)), np.nan)
        first: dict[tuple[int, ...], RunRecord] = {}
        conflict, left_out = "", []
        for run in group.runs:
            value, levels = run.value(outcome), [level_of(run, factor.name) for factor in factors]
            if unrecovered(run):
                left_out.append(run.name)
                continue
            if value is None or any(level not in f.levels for level, f in zip(levels, factors, strict=True)):
                continue
            places = [f.levels.index(level) for level, f in zip(levels, factors, strict=True)]
            cell = (seeds.index(run.factors.get("seed")), *places)
            first_run = first.setdefault(cell, run)
            if first_run.value(outcome) != value:  # equal values: two sweeps measured the same training
                conflict = (
                    f"{first_run.name} and {run.name} have the same levels and seed, so that no contrast is defined"
                )
            values[cell] = value
        if not first or not factors:
            return None
        return cls(group.name, outcome, primary, factors, seeds, values, conflict, left_out)

    def row(self, kind: str, contrasts: Sequence[Contrast], held: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The row of a product of contrasts of different factors; other factors are held at a level or averaged."""
        weights_of = {contrast.factor: contrast.weights for contrast in contrasts}
        at_level = {name: {level: 1.0} for name, level in (held or {}).items()}
        places, weights = [], []
        for factor in self.factors:
            average = dict.fromkeys(factor.averaged, 1 / len(factor.averaged))
            by_level = weights_of.get(factor.name) or at_level.get(factor.name) or average
            places.append([factor.levels.index(level) for level in by_level])
            weights.append(np.array(list(by_level.values())))
        cells_SC = self.values[np.ix_(range(len(self.seeds)), *places)].reshape(len(self.seeds), -1)
        whole_SC = cells_SC[~np.isnan(cells_SC).any(1) & (not self.conflict)]
        weight_C = reduce(np.multiply.outer, weights).ravel() / 2 ** (len(contrasts) - 1)
        effect = effect_over_seeds(whole_SC @ weight_C)
        if kind == MEAN:  # there is nothing to test a mean against
            effect = dataclasses.replace(effect, p=None)
        seeds = ", ".join(map(str, sorted(self.seeds, key=str)))
        lacking = f"no seed has runs of all {cells_SC.shape[1]} combinations of levels (seeds: {seeds})"
        if self.left_out:
            lacking += f"; not recovered, and so left out: {', '.join(self.left_out)}"
        against = {contrast.factor: contrast.against for contrast in contrasts if contrast.against}
        return {
            "group": self.group,
            "outcome": self.outcome,
            "primary": self.primary,
            "kind": kind,
            "levels": {contrast.factor: contrast.levels for contrast in contrasts},
            "factors": list(weights_of),
            **({"held": dict(held)} if held else {}),
            **({"against": against} if against else {}),
            **dataclasses.asdict(effect),
            "detectable": None,
            "q": None,
            "reason": None if len(whole_SC) else self.conflict or lacking,
        }


def _rows(cells: _Cells) -> Rows:
    single = [contrast for factor in cells.factors for contrast in (*factor.pairs(), *factor.slope())]
    rows = [cells.row(SLOPE if contrast.against else CONTRAST, [contrast]) for contrast in single]
    for order in range(2, len(cells.factors) + 1):
        for factors in combinations(cells.factors, order):
            rows += [cells.row(INTERACTION, chosen) for chosen in product(*(f.interacting() for f in factors))]
    for factor, other in permutations(cells.factors, 2):
        questions = product(factor.interacting(), other.levels)
        rows += [cells.row(SIMPLE, [contrast], {other.name: level}) for contrast, level in questions]
    levels = [(factor.name, level) for factor in cells.factors for level in factor.levels]
    return [*rows, *(cells.row(MEAN, [Contrast(name, {level: 1.0})]) for name, level in levels)]


def effect_name(row: Mapping[str, Any]) -> str:
    """The name of an effect: `topic order`, `GQA × DroPE`, `DroPE against RoPE-control`, `layers 2 against 1`."""
    name = " × ".join(_contrast_name(factor, row) for factor in row["factors"])
    held_levels = [level_label(factor, level) for factor, level in row.get("held", {}).items()]
    return f"{name} in {', '.join(held_levels)} runs" if held_levels else name


def _contrast_name(factor: str, row: Mapping[str, Any]) -> str:
    against = row.get("against", {}).get(factor)
    if against:
        return f"a doubling of {short_name(factor)}" if against.startswith("log2") else f"{short_name(factor)}, slope"
    low, high = row["levels"][factor]
    if factor in CHOICES and (low, high) == CHOICES[factor].pair:
        return CHOICES[factor].effect
    lower = level_label(factor, low).removeprefix(f"{short_name(factor)} ")
    return f"{level_label(factor, high)} against {lower}"
