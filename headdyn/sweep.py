"""Many runs → one: the summary table, the effects of the factors, contrasts at matched loss, and the report."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from rich.console import Console

from headdyn.config import RunConfig
from headdyn.core.records import write_json
from headdyn.core.run_folder import RunRecord
from headdyn.core.statistics import factorial_effects, t_interval
from headdyn.pipeline import analyse_snapshot
from headdyn.report.sweep_page import write_sweep_page
from headdyn.report.terminal import summary_table

log = logging.getLogger(__name__)

# The two levels of each factor, (low, high): an effect is high minus low.
FACTORS: Mapping[str, tuple[str, str]] = {
    "attention": ("mha", "gqa"),
    "data_ordering": ("shuffled", "topic"),
    "position_enc": ("rope", "drope"),
}
# What effects are worked out for, where the runs have it.
OUTCOMES = (
    *("loss_nats", "gap_closed", "within_ratio", "selectivity", "entropy_nats", "sink_rate", "specialisation"),
    "probe_accuracy_middle",
)
# The orderings are also compared at matched loss, by the analyses of attention and probes.
MATCHED_ANALYSES = ("loss", "attention", "probes")


def finish(folder: Path, jobs: Sequence[RunConfig]) -> bool:
    """Write a sweep's summary, effects and report, and show its table. Returns whether every job is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "sweep.json",
        {"name": folder.name, "jobs": [{"name": job.name, "factors": dict(job.factors)} for job in jobs]},
    )
    runs = [RunRecord.read(folder / job.name) for job in jobs]
    complete = [run for run in runs if run.status == "complete"]
    write_summary(folder, jobs, runs)
    write_json(folder / "effects.json", factor_effects(complete))
    write_json(folder / "matched_loss.json", matched_loss(complete, {job.name: job for job in jobs}))
    page = write_sweep_page(folder)
    console = Console()
    console.print(summary_table(runs))
    for job, run in zip(jobs, runs, strict=True):
        if run.status != "complete":
            console.print(f"{job.name}: {run.status}. {run.manifest.get('error', '')}", style="red", highlight=False)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    return len(complete) == len(runs)


def write_summary(folder: Path, jobs: Sequence[RunConfig], runs: Sequence[RunRecord]) -> None:
    """summary.csv and .parquet: one row a job, its factors, status and scalars with interval and null beside them."""
    rows = []
    for job, run in zip(jobs, runs, strict=True):
        row: dict[str, Any] = {"run": job.name, **job.factors, "status": run.status, "error": run.manifest.get("error")}
        for name, scalar in run.scalars.items():
            if isinstance(scalar, Mapping):
                row[name] = scalar.get("value")
                row |= {f"{name}_{part}": scalar[part] for part in ("ci_low", "ci_high", "null", "p", "q") if part in scalar}
            else:
                row[name] = scalar
        row["seconds"] = run.manifest.get("seconds", {}).get("total")
        row["peak_memory_mib"] = run.manifest.get("peak_memory_bytes", 0) / 2**20 or None
        rows.append(row)
    names = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    pa.parquet.write_table(table, folder / "summary.parquet")
    pa.csv.write_csv(table, folder / "summary.csv")


def factor_effects(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Main effects and interactions of the factors at both levels among the runs, each worked out within a seed.

    With one seed there is a value and no interval: the unit of such a claim is a training run (science.md §0).
    """
    varied = {
        name: levels for name, levels in FACTORS.items() if {run.factors.get(name) for run in runs} >= set(levels)
    }
    if not varied:
        return []
    found = []
    for outcome in OUTCOMES:
        cells = [
            {**{name: run.factors[name] for name in varied}, "seed": run.factors["seed"], "value": run.value(outcome)}
            for run in runs
            if run.value(outcome) is not None
        ]
        if cells:
            effects = factorial_effects(cells, varied)
            found += [{"outcome": outcome, **dataclasses.asdict(effect)} for effect in effects]
    return found


def matched_loss(runs: Sequence[RunRecord], configs: Mapping[str, RunConfig]) -> list[dict[str, Any]]:
    """Topic-ordered against shuffled training where both have the same held-out loss (science.md §2).

    Order slows training, so that equal steps compare unequal models. The arm that ended higher is taken as it ended;
    of the other, the snapshot nearest to that loss. Arms with a recalibration are left out: their loss is the drop's.
    """
    found = []
    plain = [run for run in runs if configs[run.name].position_enc.recalibration is None]
    cells: dict[tuple[Any, ...], dict[str, RunRecord]] = {}
    for run in plain:
        cell = (run.factors["attention"], run.factors["position_enc"], run.factors["seed"])
        cells.setdefault(cell, {})[str(run.factors["data_ordering"])] = run
    for (attention, position, seed), arms in cells.items():
        if set(arms) != {"shuffled", "topic"}:
            continue
        steps = {ordering: run.scalars["snapshot_losses_nats"] for ordering, run in arms.items()}
        last = {ordering: max(losses, key=int) for ordering, losses in steps.items()}
        higher = max(arms, key=lambda ordering: steps[ordering][last[ordering]])
        target = steps[higher][last[higher]]
        chosen = {o: min(losses, key=lambda step: abs(losses[step] - target)) for o, losses in steps.items()}
        chosen[higher] = last[higher]
        tables = {
            ordering: analyse_snapshot(configs[run.name], int(chosen[ordering]), run.folder, MATCHED_ANALYSES).summary()
            for ordering, run in arms.items()
        }
        for outcome in OUTCOMES:
            sides = {ordering: table.get(outcome, {}) for ordering, table in tables.items()}
            if all(side.get("value") is not None for side in sides.values()):
                found.append(
                    {
                        **{"attention": attention, "position_enc": position, "seed": seed, "outcome": outcome},
                        "steps": {ordering: int(step) for ordering, step in chosen.items()},
                        **sides,
                        "difference": sides["topic"]["value"] - sides["shuffled"]["value"],
                    }
                )
    return found + _over_seeds(found)


def _over_seeds(pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The matched differences averaged over seeds, with Student's interval where there are two or more."""
    found = []
    keys = dict.fromkeys((pair["attention"], pair["position_enc"], pair["outcome"]) for pair in pairs)
    for attention, position, outcome in keys:
        key = {"attention": attention, "position_enc": position, "outcome": outcome}
        differences = [p["difference"] for p in pairs if all(p[name] == value for name, value in key.items())]
        if len(differences) > 1:
            low, high = t_interval(np.array(differences))
            row = {"difference": float(np.mean(differences)), "ci_low": float(low), "ci_high": float(high)}
            found.append({**key, "seed": None, **row, "n": len(differences)})
    return found
