"""Topic-ordered against shuffled training where both have the same held-out loss (science.md §2).

Order slows training, so that equal steps compare unequal models. The arm whose last loss is higher is taken at its end;
of the other arm every metric is interpolated, linearly in loss, between the snapshots on either side of it. Arms with a
recalibration are left out, because their loss tells of the drop of positions.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from headdyn.core.records import HeadTable
from headdyn.core.run_folder import RunRecord
from headdyn.core.statistics import effect_over_seeds
from headdyn.sweep.effects import Rows, with_q
from headdyn.sweep.outcomes import outcomes_of

MATCHED_ANALYSES = ("loss", "attention", "probes")  # of the snapshots that orderings are compared at

Analyse = Callable[[RunRecord, int], HeadTable]


def matched_loss(runs: Sequence[RunRecord], analyse: Analyse) -> Rows:
    """A row for every pair of complete trainings that differ in their ordering alone, and outcome.

    `analyse(run, step)` gives the model rows of a training's snapshot; at its last step the run has them already.
    """
    cells: dict[tuple[Any, ...], dict[str, RunRecord]] = {}
    for run in runs:
        if "snapshot_losses_nats" in run.scalars and "recalibration" not in run.scalars:
            others = {name: level for name, level in run.factors.items() if name != "data_ordering"}
            cell = tuple(sorted((name, str(level)) for name, level in others.items()))
            cells.setdefault(cell, {})[str(run.factors["data_ordering"])] = run
    outcomes = outcomes_of(runs).names
    rows: Rows = []
    for arms in cells.values():
        if set(arms) == {"shuffled", "topic"}:
            rows += _pair(arms["shuffled"], arms["topic"], analyse, outcomes)
    return rows


def _pair(shuffled: RunRecord, topic: RunRecord, analyse: Analyse, outcomes: Sequence[str]) -> Rows:
    arms = {"shuffled": shuffled, "topic": topic}
    losses = {name: {int(s): v for s, v in run.scalars["snapshot_losses_nats"].items()} for name, run in arms.items()}
    points = matched_points(losses)
    if points is None:
        return []
    sides = {name: _outcomes_at(run, points[name], losses[name], analyse) for name, run in arms.items()}
    steps = {name: sum(weight * step for step, weight in point.items()) for name, point in points.items()}
    at = {name: sum(weight * losses[name][step] for step, weight in point.items()) for name, point in points.items()}
    pair = {
        "attention": shuffled.factors["attention"],
        "position_enc": shuffled.factors["position_enc"],
        "factors": {name: level for name, level in shuffled.factors.items() if name not in ("data_ordering", "seed")},
        "seed": shuffled.factors["seed"],
        "runs": {name: run.name for name, run in arms.items()},
        "steps": {name: round(step) for name, step in steps.items()},
        "snapshots": {name: sorted(point) for name, point in points.items()},
        "losses_nats": at,
        "loss_difference": at["topic"] - at["shuffled"],
    }
    return [
        {
            **pair,
            "outcome": outcome,
            **{name: sides[name][outcome] for name in arms},
            "difference": sides["topic"][outcome]["value"] - sides["shuffled"][outcome]["value"],
        }
        for outcome in outcomes
        if all(outcome in sides[name] for name in arms)
    ]


def _outcomes_at(
    run: RunRecord, point: Mapping[int, float], losses: Mapping[int, float], analyse: Analyse
) -> dict[str, Mapping[str, Any]]:
    """The outcomes of one arm at its point; of a point between snapshots the weighted mean, which has no interval."""
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
    """Where both arms have the higher of their last losses: the weight of each snapshot that counts, arm by arm.

    That is one arm's end; the other passed the loss for the last time between two neighbouring snapshots, whose weights
    make their mean loss the same. None where an arm never had that loss.
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


def pooled(pairs: Iterable[Mapping[str, Any]]) -> Rows:
    """Matched-loss differences (topic − shuffled) averaged over all other factors, then over seeds.

    One row for each group and outcome, with Student's interval and p over seeds; all rows are one family of q. A seed
    counts only with every cell that any seed has, since a mean over the rest would compare other things.
    """
    by_question: dict[tuple[str, str], dict[Any, dict[str, float]]] = {}
    for pair in pairs:
        cell = pair.get("factors") or {name: pair[name] for name in ("attention", "position_enc")}
        cells = by_question.setdefault((pair.get("group", ""), pair["outcome"]), {})
        cells.setdefault(pair["seed"], {})[json.dumps(cell, sort_keys=True)] = pair["difference"]
    rows: Rows = []
    for (group, outcome), seeds in by_question.items():
        every = set().union(*seeds.values())
        per_seed = np.array([np.mean(list(cells.values())) for cells in seeds.values() if set(cells) == every])
        reason = None if len(per_seed) else f"no seed has all {len(every)} pairs"
        effect = dataclasses.asdict(effect_over_seeds(per_seed))
        rows.append({"group": group, "outcome": outcome, **effect, "reason": reason})
    return with_q(rows)
