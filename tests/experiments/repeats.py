"""How far runs made again differ from the record: `python -m tests.experiments.repeats FOLDER SWEEP…` writes FOLDER/repeats.json.

Runs are matched by their levels and seed; their manifests are those of manifests.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from headdyn.core.run_folder import RunRecord
from headdyn.sweep.record import SweepRecord
from tests.experiments.records import at_most, fixed, read, rows, span

Levels = tuple[str, ...]
ALIKE = ("data", "mode", "protocol")  # what a run made again shares with the record
# These change no training, but for the precision, which is compared apart.
FREE = ("model", "experiment", "revision", "train.snapshots", "precision")
LEVELS = ("attention", "data_ordering", "position_enc", "position_enc.recalibration.steps", "seed")
RUNS, CONTROLS = ("summary.csv",), ("controls.csv", "raw_drop.csv")
LAST = "step800"  # the last of a training's snapshots
OUTCOMES = ("loss_nats", "selectivity", "selectivity_top", "probe_accuracy_middle")


def compare(folder: Path, sweeps: list[Path]) -> dict[str, Any]:
    """By precision: how many runs (and controls) were made again, and the largest difference from the record's by outcome.

    Beside these the mean difference (again less record) and order's effect on selectivity in the runs made again and in
    the same ones on record. Of a training's snapshots the last counts. Raises KeyError for a run that is not on record.
    """
    recorded, controls = (
        {levels_of(row): row for file in files for row in rows(folder / file)} for files in (RUNS, CONTROLS)
    )
    every = recorded | controls
    by_precision: dict[str, list[tuple[Levels, RunRecord]]] = {}
    for sweep in sweeps:
        for job in SweepRecord.read(sweep).complete:
            if job.factors.get("revision", LAST) != LAST:
                continue
            if other := set(job.factors) - {*LEVELS, *ALIKE, *FREE}:
                raise KeyError(f"{job.run.name} differs from the record in {', '.join(sorted(other))}")
            levels = levels_of(job.factors)
            if {name: str(job.factors[name]) for name in ALIKE} != {name: every[levels][name] for name in ALIKE}:
                raise KeyError(f"{job.run.name} differs from the record in one of {', '.join(ALIKE)}")
            by_precision.setdefault(job.run.manifest["machine"]["precision"], []).append((levels, job.run))
    made: dict[str, Any] = {}
    for precision, runs in by_precision.items():
        differences = {
            name: [
                value - float(every[levels][name])
                for levels, run in runs
                if (value := run.value(name)) is not None and every[levels][name]
            ]
            for name in OUTCOMES
        }
        selectivity = {levels: run.value("selectivity") for levels, run in runs if levels in recorded}
        made[precision] = {
            "runs": len(selectivity),
            "of": len(recorded),
            "controls": len({levels for levels, _ in runs if levels in controls}),
            "of_controls": len(controls),
            "commits": sorted({run.manifest["git"] for _, run in runs}),
            "largest_difference": {name: max(map(abs, each)) for name, each in differences.items() if each},
            "mean_difference": {name: fmean(each) for name, each in differences.items() if each},
            "order_on_selectivity": {
                "again": effect_of_order(selectivity),
                "record": effect_of_order({levels: float(recorded[levels]["selectivity"]) for levels in selectivity}),
            },
        }
    return made


def levels_of(factors: Mapping[str, Any]) -> Levels:
    return tuple(str(factors.get(name, "")) for name in LEVELS)


def effect_of_order(values: dict[Levels, float]) -> float | None:
    """Topic order less shuffled, averaged over the pairs of runs that differ in nothing else; None without a pair."""
    pairs = [
        values[levels] - values[shuffled]
        for levels in values
        if (shuffled := tuple("shuffled" if level == "topic" else level for level in levels)) != levels
        and shuffled in values
    ]
    return fmean(pairs) if pairs else None


def sentences(folder: Path) -> list[str]:
    """How many runs of a record were made again in the record's precision, and how far they differ; then in the other."""
    made = read(folder / "repeats.json")
    same, other = made["bf16"], made["fp32"]
    loss, points = same["largest_difference"]["loss_nats"], 100 * same["largest_difference"]["selectivity"]
    effect = {which: 100 * value for which, value in other["order_on_selectivity"].items()}
    selectivity = {levels_of(row): float(row["selectivity"]) for row in rows(folder / "summary.csv")}
    by_seed = [
        effect_of_order({levels: value for levels, value in selectivity.items() if levels[-1] == seed})
        for seed in sorted({levels[-1] for levels in selectivity})
    ]
    return [
        f"{same['runs']} of the {same['of']} runs and {same['controls']} of the {same['of_controls']} controls were made again",
        f"Losses differ from the record by at most {at_most(loss, 5)} nats, selectivity by at most {at_most(points, 2)} points",
        f"order's effect on selectivity is {fixed(100 * same['order_on_selectivity']['again'], 2, signed=True)} points in place of "
        f"{fixed(100 * same['order_on_selectivity']['record'], 2, signed=True)}",
        f"{other['runs']} runs of the first seed (4 trainings, each with its drop) in float32 in place of bfloat16 have "
        f"selectivities up to {at_most(100 * other['largest_difference']['selectivity'], 1)} points higher or lower, the most "
        f"selective head's by up to {at_most(100 * other['largest_difference']['selectivity_top'], 1)}, and probe accuracies by "
        f"up to {at_most(100 * other['largest_difference']['probe_accuracy_middle'], 1)}",
        f"Order's effect on selectivity in them is {fixed(effect['again'], 1, signed=True)} points in place of "
        f"{fixed(effect['record'], 1, signed=True)}",
        f"losses differ by up to {at_most(other['largest_difference']['loss_nats'], 3)} nats and are "
        f"{fixed(-other['mean_difference']['loss_nats'], 3)} lower on average",
        f"differs as much from seed to seed ({span(by_seed, 1, scale=100)} points)",
    ]


if __name__ == "__main__":
    path, *sweeps = map(Path, sys.argv[1:])
    (path / "repeats.json").write_text(json.dumps(compare(path, sweeps), indent=1) + "\n", encoding="utf-8")
