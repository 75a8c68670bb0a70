"""Topic-ordered against shuffled training where both have the same held-out loss (science.md §2).

Order slows training, so that equal steps compare unequal models. The arm whose last loss is higher is taken at its end;
of the other arm the snapshot nearest to that loss is taken. Arms with a recalibration are left out, because their loss
tells of the drop of positions.
"""

from __future__ import annotations

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
    steps = matched_steps(losses)
    sides = {}
    for name, run in arms.items():
        table = run.heads() if steps[name] == max(losses[name]) else analyse(run, steps[name])
        sides[name] = table.summary()
    at = {name: losses[name][steps[name]] for name in arms}
    pair = {
        "attention": shuffled.factors["attention"],
        "position_enc": shuffled.factors["position_enc"],
        "factors": {name: level for name, level in shuffled.factors.items() if name not in ("data_ordering", "seed")},
        "seed": shuffled.factors["seed"],
        "runs": {name: run.name for name, run in arms.items()},
        "steps": steps,
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
        if all(sides[name].get(outcome, {}).get("value") is not None for name in arms)
    ]


def matched_steps(losses: Mapping[str, Mapping[int, float]]) -> dict[str, int]:
    """Where to take each arm: the one whose last loss is higher at its end, the others at the loss nearest to that."""
    last = {name: max(by_step) for name, by_step in losses.items()}
    higher = max(losses, key=lambda name: losses[name][last[name]])
    target = losses[higher][last[higher]]
    nearest = {name: min(by_step, key=lambda step: abs(by_step[step] - target)) for name, by_step in losses.items()}
    return {**nearest, higher: last[higher]}


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
