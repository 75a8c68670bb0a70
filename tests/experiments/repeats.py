"""How far runs made again differ from the record: `python -m tests.experiments.repeats FOLDER SWEEP…` writes FOLDER/repeats.json.

Runs are matched by their levels and seed; their manifests are those of manifests.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from headdyn.sweep.record import SweepRecord
from tests.experiments.records import fixed, read, rows

LEVELS = ("attention", "data_ordering", "position_enc", "seed")
LAST = "step800"  # the last of a training's snapshots
USUAL = {"position_enc": "rope"}  # where a sweep of snapshots does not say
OUTCOMES = ("loss_nats", "selectivity", "selectivity_top", "probe_accuracy_middle")


def compare(folder: Path, sweeps: list[Path]) -> dict[str, Any]:
    """How many runs were made again, and by outcome the largest difference from the record's.

    Of a training's snapshots the last counts. Raises KeyError for a run that is not on record.
    """
    recorded = {tuple(str(row[name]) for name in LEVELS): row for row in rows(folder / "summary.csv")}
    again = [
        (tuple(str(job.factors.get(name, USUAL.get(name))) for name in LEVELS), job.run)
        for sweep in sweeps
        for job in SweepRecord.read(sweep).complete
        if job.factors.get("revision", LAST) == LAST
    ]
    return {
        "runs": len({levels for levels, _ in again}),
        "of": len(recorded),
        "commits": sorted({run.manifest["git"] for _, run in again}),
        "largest_difference": {
            name: max(
                abs(float(recorded[levels][name]) - run.value(name))
                for levels, run in again
                if run.value(name) is not None
            )
            for name in OUTCOMES
        },
    }


def sentence(folder: Path) -> str:
    """How many runs of a record were made again, and how far they differ."""
    made = read(folder / "repeats.json")
    loss, points = made["largest_difference"]["loss_nats"], 100 * made["largest_difference"]["selectivity"]
    return (
        f"{made['runs']} of the {made['of']} runs were made again on later code: losses differ from the record by at most "
        f"{fixed(loss, 6)} nats, selectivity by at most {fixed(points, 4)} points"
    )


if __name__ == "__main__":
    path, *sweeps = map(Path, sys.argv[1:])
    (path / "repeats.json").write_text(json.dumps(compare(path, sweeps), indent=1) + "\n", encoding="utf-8")
