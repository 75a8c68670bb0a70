"""How far runs made again differ from the record: `python -m tests.experiments.repeats FOLDER SWEEP…` writes FOLDER/repeats.json.

Runs are matched by their levels and seed; their manifests are those of manifests.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from headdyn.core.run_folder import RunRecord
from headdyn.sweep.record import SweepRecord
from tests.experiments.records import fixed, read, rows

LEVELS = ("attention", "data_ordering", "position_enc", "seed")
LAST = "step800"  # the last of a training's snapshots
USUAL = {"position_enc": "rope"}  # where a sweep of snapshots does not say
OUTCOMES = ("loss_nats", "selectivity", "selectivity_top", "probe_accuracy_middle")


def compare(folder: Path, sweeps: list[Path]) -> dict[str, Any]:
    """By precision: how many runs were made again, and the largest difference from the record's by outcome.

    Beside these the mean difference (again less record) and order's effect on selectivity in the runs made again and in
    the same ones on record. Of a training's snapshots the last counts. Raises KeyError for a run that is not on record.
    """
    recorded = {tuple(str(row[name]) for name in LEVELS): row for row in rows(folder / "summary.csv")}
    by_precision: dict[str, dict[tuple[str, ...], RunRecord]] = {}
    for sweep in sweeps:
        for job in SweepRecord.read(sweep).complete:
            if job.factors.get("revision", LAST) == LAST:
                levels = tuple(str(job.factors.get(name, USUAL.get(name))) for name in LEVELS)
                by_precision.setdefault(job.run.manifest["machine"]["precision"], {})[levels] = job.run
    made: dict[str, Any] = {}
    for precision, runs in by_precision.items():
        differences = {
            name: [run.value(name) - float(recorded[levels][name]) for levels, run in runs.items() if run.value(name)]
            for name in OUTCOMES
        }
        selectivity = {levels: run.value("selectivity") for levels, run in runs.items()}
        made[precision] = {
            "runs": len(runs),
            "of": len(recorded),
            "commits": sorted({run.manifest["git"] for run in runs.values()}),
            "largest_difference": {name: max(map(abs, each)) for name, each in differences.items()},
            "mean_difference": {name: fmean(each) for name, each in differences.items()},
            "order_on_selectivity": {
                "again": effect_of_order(selectivity),
                "record": effect_of_order({levels: float(recorded[levels]["selectivity"]) for levels in runs}),
            },
        }
    return made


def effect_of_order(values: dict[tuple[str, ...], float]) -> float:
    """Topic order less shuffled, averaged over the pairs of runs that differ in nothing else."""
    pairs = [
        values[levels] - values[shuffled]
        for levels in values
        if (shuffled := tuple("shuffled" if level == "topic" else level for level in levels)) != levels
        and shuffled in values
    ]
    return fmean(pairs)


def sentences(folder: Path) -> list[str]:
    """How many runs of a record were made again in the record's precision, and how far they differ; then in the other."""
    made = read(folder / "repeats.json")
    same, other = made["bf16"], made["fp32"]
    loss, points = same["largest_difference"]["loss_nats"], 100 * same["largest_difference"]["selectivity"]
    effect = {which: 100 * value for which, value in other["order_on_selectivity"].items()}
    return [
        f"{same['runs']} of the {same['of']} runs were made again on later code: losses differ from the record by at most "
        f"{fixed(loss, 6)} nats, selectivity by at most {fixed(points, 4)} points",
        f"{other['runs']} runs of the first seed in float32 in place of bfloat16 have selectivities up to "
        f"{fixed(100 * other['largest_difference']['selectivity'], 1)} points higher or lower",
        f"order's effect in them is {fixed(effect['again'], 1, signed=True)} points in place of "
        f"{fixed(effect['record'], 1, signed=True)}",
        f"their losses are {fixed(-other['mean_difference']['loss_nats'], 3)} nats lower on average",
    ]


if __name__ == "__main__":
    path, *sweeps = map(Path, sys.argv[1:])
    (path / "repeats.json").write_text(json.dumps(compare(path, sweeps), indent=1) + "\n", encoding="utf-8")
