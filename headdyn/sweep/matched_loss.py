"""Compares orderings, and DroPE with RoPE, where both arms have the same held-out loss (science.md §2).

Topic order slows training and a drop of positions raises the loss, so a comparison at equal steps would be of models
that predict unequally well. The arm whose last loss is higher is taken at its end; the other arm's metrics are
interpolated, linearly in the loss, between the snapshots before and after that loss. Measures of the loss itself are
left out, since they are equal by construction.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from headdyn.core.records import HeadTable
from headdyn.core.run_folder import RunRecord
from headdyn.core.statistics import effect_over_seeds
from headdyn.sweep.effects import Rows, unrecovered, with_q
from headdyn.sweep.factors import CHOICES
from headdyn.sweep.outcomes import outcomes_of

MATCHED_ANALYSES = ("loss", "attention", "probes")  # the analyses of snapshots that these comparisons need
COMPARED = {name: CHOICES[name].pair for name in ("data_ordering", "position_enc")}
_EQUAL_BY_CONSTRUCTION = ("loss_nats", "excess_nats", "gap_closed", "gap_closed_from_mixture")

Analyse = Callable[[RunRecord, int], HeadTable]


def matched_loss(runs: Sequence[RunRecord], analyse: Analyse) -> Rows:
    """A row for every outcome and every pair of complete runs that differ only in their ordering, or only in the drop.

    `analyse(run, step)` returns the results for a snapshot of a training; those for its end are in the run's record. Of
    a DroPE arm only the end is known, so a pair is absent if its DroPE arm ended with a lower loss than its RoPE arm.
    Trainings with heads held are left out: their losses are not those of the weights that `analyse` reads.
    """
    outcomes = [name for name in outcomes_of(runs) if name not in _EQUAL_BY_CONSTRUCTION]
    rows: Rows = []
    for factor, (low, high) in COMPARED.items():
        cells: dict[str, dict[str, RunRecord]] = {}
        for run in runs:
            recalibrated = run.factors.get("position_enc") == "drope" and factor == "position_enc"
            if (
                losses_of(run)
                and not heads_held(run)
                and ("recalibration" not in run.scalars or recalibrated)
                and not unrecovered(run)
            ):
                others = {name: level for name, level in run.factors.items() if name != factor}
                cell = json.dumps(others, sort_keys=True, default=str)
                cells.setdefault(cell, {})[str(run.factors.get(factor))] = run
        for arms in cells.values():
            if {low, high} <= set(arms):
                rows += _pair(factor, {low: arms[low], high: arms[high]}, analyse, outcomes)
    return rows


def heads_held(run: RunRecord) -> bool:
    """Whether heads were held at an ideal in the run's training (`train.clamp`)."""
    clamp = run.manifest["config"].get("train", {}).get("clamp", {})  # records of earlier versions have none
    return bool(clamp.get("pattern", "none") != "none")


def losses_of(run: RunRecord) -> dict[int, float]:
    """The held-out loss of each snapshot of a training, in nats; for a recalibrated arm only the last one."""
    if facts := run.scalars.get("recalibration"):
        last = max(facts["val_loss_nats"], key=int)
        return {int(last): facts["val_loss_nats"][last]}
    return {int(step): loss for step, loss in run.scalars.get("snapshot_losses_nats", {}).items()}


def _pair(factor: str, arms: Mapping[str, RunRecord], analyse: Analyse, outcomes: Sequence[str]) -> Rows:
    losses = {level: losses_of(run) for level, run in arms.items()}
    points = matched_points(losses)
    if points is None:
        return []
    sides = {level: _outcomes_at(run, points[level], losses[level], analyse) for level, run in arms.items()}
    steps = {level: sum(weight * step for step, weight in point.items()) for level, point in points.items()}
    loss_at = {level: sum(w * losses[level][step] for step, w in point.items()) for level, point in points.items()}
    low, high = arms
    others = {name: level for name, level in arms[low].factors.items() if name not in (factor, "seed")}
    pair = {
        "factor": factor,
        "factors": others,
        "seed": arms[low].factors["seed"],
        "runs": {level: run.name for level, run in arms.items()},
        "steps": {level: round(step) for level, step in steps.items()},
        "snapshots": {level: sorted(point) for level, point in points.items()},
        "losses_nats": loss_at,
        "loss_difference": loss_at[high] - loss_at[low],
    }
    return [
        {
            **pair,
            "outcome": outcome,
            **{level: sides[level][outcome] for level in arms},
            "difference": sides[high][outcome]["value"] - sides[low][outcome]["value"],
        }
        for outcome in outcomes
        if all(outcome in sides[level] for level in arms)
    ]


def _outcomes_at(
    run: RunRecord, point: Mapping[int, float], losses: Mapping[int, float], analyse: Analyse
) -> dict[str, Mapping[str, Any]]:
    """The outcomes of one arm at its point; between two snapshots, their weighted mean without an interval."""
    tables = [run.heads() if step == max(losses) else analyse(run, step) for step in point]
    summaries = [table.summary() for table in tables]
    if len(summaries) == 1:
        return {name: scalar for name, scalar in summaries[0].items() if scalar.get("value") is not None}
    weights = list(point.values())
    return {
        name: {"value": sum(w * s[name]["value"] for w, s in zip(weights, summaries, strict=True))}
        for name in summaries[0]
        if all(s.get(name, {}).get("value") is not None for s in summaries)
    }


def matched_points(losses: Mapping[str, Mapping[int, float]]) -> dict[str, dict[int, float]] | None:
    """By arm, the weights of the snapshots at which it has the target loss: the higher of the two arms' last losses.

    The arm that ended with this loss is taken at its end. The other one passed it for the last time between two
    neighbouring snapshots, whose weights make their mean loss equal to it. None if that arm never had such a loss.
    """
    last = {name: by_step[max(by_step)] for name, by_step in losses.items()}
    target = max(last.values())
    points = {}
    for name, by_step in losses.items():
        steps = sorted(by_step)
        above = [k for k, step in enumerate(steps) if by_step[step] >= target]
        if not above:
            return None
        before = steps[above[-1]]
        if by_step[before] == target:
            points[name] = {before: 1.0}
            continue
        after = steps[above[-1] + 1]
        weight = (by_step[before] - target) / (by_step[before] - by_step[after])
        points[name] = {before: 1 - weight, after: weight}
    return points


def compared(row: Mapping[str, Any]) -> str:
    """The factor whose levels a pair, or an average over pairs, compares. Earlier records compare orderings only."""
    return str(row.get("factor", "data_ordering"))


def pooled(pairs: Iterable[Mapping[str, Any]]) -> Rows:
    """Matched-loss differences (high less low), averaged over all other factors, then over seeds.

    There is a row for each group, compared factor and outcome, with Student's interval and p over seeds; all rows are
    one family of q. A seed counts only if it has every combination of the other factors' levels that some seed has.
    """
    by_question: dict[tuple[str, str, str], dict[Any, dict[str, float]]] = {}
    for pair in pairs:
        cell = pair.get("factors") or {name: pair[name] for name in ("attention", "position_enc")}
        cells = by_question.setdefault((pair.get("group", ""), compared(pair), pair["outcome"]), {})
        cells.setdefault(pair["seed"], {})[json.dumps(cell, sort_keys=True)] = pair["difference"]
    rows: Rows = []
    for (group, factor, outcome), seeds in by_question.items():
        all_cells = set().union(*seeds.values())
        per_seed = np.array([np.mean(list(cells.values())) for cells in seeds.values() if set(cells) == all_cells])
        reason = None if len(per_seed) else f"no seed has all {len(all_cells)} pairs"
        effect = dataclasses.asdict(effect_over_seeds(per_seed))
        rows.append({"group": group, "factor": factor, "outcome": outcome, **effect, "reason": reason})
    return with_q(rows)
