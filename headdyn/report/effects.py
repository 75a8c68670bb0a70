"""What the factors of a design do: effects within a seed, averaged over seeds, from finished runs' records alone.

Runs are comparable when they differ in the factors and the seed alone. Others are kept apart: every effect belongs to
one such group, so that sweeps with other settings can be put side by side but are never pooled.
"""

from __future__ import annotations

import dataclasses
import json
import string
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headdyn.core.run_folder import RunRecord
from headdyn.core.statistics import benjamini_hochberg, factorial_effects, t_interval
from headdyn.report.numbers import QUANTITIES, level

# The two levels of each factor, (low, high): an effect is high minus low. Positions have more pairs worth a contrast.
FACTORS: Mapping[str, tuple[str, str]] = {
    "data_ordering": ("shuffled", "topic"),
    "attention": ("mha", "gqa"),
    "position_enc": ("rope", "drope"),
}
_NAMES = {"data_ordering": "topic order", "attention": "GQA", "position_enc": "DroPE"}
OTHER_POSITIONS = (("rope_control", "drope"), ("rope", "rope_control"), ("rope", "nope"))
OUTCOMES = tuple(QUANTITIES)

# What two runs of one group may differ in: the factors' own settings, the seed, what changes no number's meaning, and
# which analyses ran, though not with what settings.
_NOT_COMPARED = (*FACTORS, "seed", "force", "device", "threads", "tracking", "patterns_kept", "analysis")
_OF_REVISIONS = ("model.revision", "model.revisions")  # checkpoints of one training belong together

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Group:
    """Comparable runs. `differs` are the settings by which other groups differ from it; one group's name is ""."""

    name: str
    differs: Mapping[str, Any]
    runs: Sequence[RunRecord]


def comparable(runs: Sequence[RunRecord]) -> list[Group]:
    """Complete runs by group, in the order met.

    A group is named by the one choice (mode, protocol, model …) that tells it from the others, or else by a letter.
    """
    complete = [run for run in runs if run.status == "complete"]
    unlike = _unlike_analyses(complete)
    members: dict[str, list[RunRecord]] = {}
    for run in complete:
        members.setdefault(json.dumps(_settings(run, unlike), sort_keys=True), []).append(run)
    members = {key: part for whole in members.values() for key, part in _by_option_settings(whole, unlike).items()}
    settings = [json.loads(key) for key in members]
    every = dict.fromkeys(key for one in settings for key in one)
    differing = [key for key in every if len({json.dumps(one.get(key)) for one in settings}) > 1]
    telling = [
        key for key in differing if key.endswith(".name") and len({one.get(key) for one in settings}) == len(settings)
    ]
    found = []
    for number, (one, part) in enumerate(zip(settings, members.values(), strict=True)):
        name = str(one[telling[0]]) if telling else string.ascii_uppercase[number] if number < 26 else str(number + 1)
        # A mode acts through other groups, which are named themselves.
        differs = {
            key: one[key] for key in differing if key in one and (key == "mode.name" or not key.startswith("mode."))
        }
        found.append(Group(name if len(settings) > 1 else "", differs, part))
    return found


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
        names.append(_NAMES[factor] if usual else f"{level(high)} against {level(low)}")
    return " × ".join(names)


def pooled(pairs: Iterable[Mapping[str, Any]]) -> Rows:
    """Matched-loss differences (topic − shuffled) averaged over attention and positions, then over seeds.

    One row for each group and outcome; Student's interval over seeds where there are two or more. A seed counts only
    with every cell that any seed has, since a mean over the rest would compare other things.
    """
    by_question: dict[tuple[str, str], dict[Any, dict[Any, float]]] = {}
    for pair in pairs:
        cells = by_question.setdefault((pair.get("group", ""), pair["outcome"]), {})
        cells.setdefault(pair["seed"], {})[pair["attention"], pair["position_enc"]] = pair["difference"]
    rows: Rows = []
    for (group, outcome), seeds in by_question.items():
        every = set().union(*seeds.values())
        per_seed = np.array([np.mean(list(cells.values())) for cells in seeds.values() if set(cells) == every])
        row: dict[str, Any] = {"group": group, "outcome": outcome, "n": len(per_seed)}
        if not len(per_seed):
            row["reason"] = f"no seed has all {len(every)} pairs"
        else:
            row["value"] = float(per_seed.mean())
        if len(per_seed) > 1:
            low, high = t_interval(per_seed)
            row |= {"ci_low": float(low), "ci_high": float(high)}
        rows.append(row)
    return rows


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


def _unlike_analyses(runs: Sequence[RunRecord]) -> set[str]:
    """The analyses whose settings differ between runs that have them: with another branch TensorLens is another map."""
    seen: dict[str, set[str]] = {}
    for run in runs:
        for name, settings in (run.manifest.get("config", {}).get("analysis") or {}).items():
            seen.setdefault(name, set()).add(json.dumps(settings, sort_keys=True))
    return {name for name, variants in seen.items() if len(variants) > 1}


def _settings(run: RunRecord, unlike: Collection[str] = ()) -> dict[str, Any]:
    """What runs of one group have in common; of the analyses, which may differ, the settings of those named."""
    whole = run.manifest.get("config", {})
    config = {key: value for key, value in whole.items() if key not in _NOT_COMPARED}
    analyses = whole.get("analysis") or {}
    config["analysis"] = {name: analyses.get(name) for name in sorted(unlike)}
    return {key: value for key, value in flat(config).items() if not key.endswith(".seed") and key not in _OF_REVISIONS}


def _by_option_settings(runs: Sequence[RunRecord], unlike: Collection[str]) -> dict[str, list[RunRecord]]:
    """Runs of equal settings by those settings, with a factor's own beside them where one option has several variants.

    `attention=gqa attention.num_kv_heads=1` and `=2` are not two seeds of one condition.
    """
    own = {(run.folder, f): flat({f: run.manifest.get("config", {}).get(f) or {}}) for run in runs for f in FACTORS}
    variants: dict[tuple[str, Any], set[str]] = {}
    for run in runs:
        for factor in FACTORS:
            option = (factor, run.factors.get(factor))
            variants.setdefault(option, set()).add(json.dumps(own[run.folder, factor], sort_keys=True))
    parts: dict[str, list[RunRecord]] = {}
    for run in runs:
        settings = _settings(run, unlike)
        for factor in FACTORS:
            if len(variants[factor, run.factors.get(factor)]) > 1:
                settings |= own[run.folder, factor]
        parts.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    return parts


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys."""
    out: dict[str, Any] = {}
    for key, value in node.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out
