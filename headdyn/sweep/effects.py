"""What the factors of a design do: effects within a seed, averaged over seeds, from finished runs' records alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headdyn.core.numbers import QUANTITIES, level
from headdyn.core.run_folder import RunRecord
from headdyn.core.statistics import benjamini_hochberg, factorial_effects
from headdyn.sweep.factors import FACTORS, NAMES, OTHER_POSITIONS
from headdyn.sweep.groups import comparable

OUTCOMES = tuple(QUANTITIES)

Rows = list[dict[str, Any]]


def factor_effects(runs: Sequence[RunRecord], outcomes: Sequence[str] = OUTCOMES) -> Rows:
    """Main effects and interactions of the factors that are there at both levels, by group and outcome.

    Each is worked out within a seed; with one seed there is a value and no interval, since the unit of such a claim is
    a training run. q (Benjamini–Hochberg) is over all rows that have a p. A group in which two runs of one seed have
    the same levels has no contrast: its rows say so. Checkpoints of one training are no arms of a design.
    """
    rows: Rows = []
    for group in comparable(runs):
        if len({run.factors.get("revision") for run in group.runs}) > 1:
            continue
        for levels, wanted in _designs(group.runs):
            for outcome in outcomes:
                found = _design_effects(group.runs, levels, outcome)
                rows += [
                    {
                        "group": group.name,
                        "outcome": outcome,
                        "levels": {n: list(levels[n]) for n in row["factors"]},
                        **row,
                    }
                    for row in found
                    if wanted is None or wanted in row["factors"]
                ]
    return with_q(rows)


def simple_effect(
    runs: Sequence[RunRecord], factor: str, outcome: str, levels: tuple[str, str] | None = None, **held: str
) -> dict[str, Any] | None:
    """The effect of one factor where others are held at a level, averaged over the rest; None without both levels.

    As `simple_effect(runs, "data_ordering", "selectivity", position_enc="drope")`.
    """
    pair = levels or FACTORS[factor]
    kept = [run for run in runs if all(run.factors.get(name) == level for name, level in held.items())]
    if not {run.factors.get(factor) for run in kept} >= set(pair):
        return None
    others = {
        name: both
        for name, both in FACTORS.items()
        if name not in (factor, *held) and {run.factors.get(name) for run in kept} >= set(both)
    }
    rows = _design_effects(kept, {factor: pair, **others}, outcome)
    return next((row for row in rows if tuple(row["factors"]) == (factor,)), None)


def effect_name(row: Mapping[str, Any]) -> str:
    """`topic order`, `GQA × DroPE`, `DroPE against RoPE-control`: what an effect is called."""
    names = []
    for factor in row["factors"]:
        low, high = row["levels"].get(factor, FACTORS[factor])
        usual = (low, high) == FACTORS[factor]
        names.append(NAMES[factor] if usual else f"{level(high)} against {level(low)}")
    return " × ".join(names)


def with_q(rows: Rows) -> Rows:
    """The rows with Benjamini–Hochberg q-values beside their p-values; all rows are one family."""
    tested = [row for row in rows if row.get("p") is not None]
    q = benjamini_hochberg(np.array([row["p"] for row in tested])).tolist()
    by_row = {id(row): value for row, value in zip(tested, q, strict=True)}
    return [{**row, "q": by_row.get(id(row))} for row in rows]


def _design_effects(runs: Sequence[RunRecord], levels: Mapping[str, tuple[str, str]], outcome: str) -> Rows:
    cells: dict[tuple[Any, ...], RunRecord] = {}
    values = []
    for run in runs:
        if not all(run.factors.get(name) in pair for name, pair in levels.items()):
            continue
        key = (*(run.factors[name] for name in levels), run.factors["seed"])
        value = run.value(outcome)
        if value is None:
            continue
        if key in cells and value == cells[key].value(outcome):
            continue  # one training, of which two sweeps measured this alike
        if key in cells:
            reason = f"{cells[key].name} and {run.name} have the same levels and seed, so that no contrast is defined"
            return [
                {
                    "factors": [*levels],
                    "value": None,
                    "ci_low": None,
                    "ci_high": None,
                    "p": None,
                    "n": 0,
                    "reason": reason,
                }
            ]
        cells[key] = run
        values.append({**dict(zip([*levels, "seed"], key, strict=True)), "value": value})
    if not values:
        return []
    effects = factorial_effects(values, dict(levels))
    return [{**dataclasses.asdict(effect), "factors": list(effect.factors)} for effect in effects]


def _designs(runs: Sequence[RunRecord]) -> list[tuple[dict[str, tuple[str, str]], str | None]]:
    """Designs among the runs: the factors' own levels, then each further pair of positions, of which only effects of
    the positions are wanted."""
    seen = {name: {run.factors.get(name) for run in runs} for name in FACTORS}
    varied = {name: levels for name, levels in FACTORS.items() if seen[name] >= set(levels)}
    designs: list[tuple[dict[str, tuple[str, str]], str | None]] = [(varied, None)] if varied else []
    for pair in OTHER_POSITIONS:
        if seen["position_enc"] >= set(pair):
            designs.append(({**varied, "position_enc": pair}, "position_enc"))
    return designs
