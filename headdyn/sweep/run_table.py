"""A sweep's runs as one table for other tools: summary.csv and summary.parquet."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from headdyn.core.records import write_table
from headdyn.core.run_folder import RunRecord
from headdyn.sweep.record import sweep_json

_PARTS = ("ci_low", "ci_high", "null", "p", "q", "n", "unit", "reason")


def write_run_table(folder: Path) -> None:
    """One row for each job that sweep.json names: its factors, status and scalars, with interval and null beside them.

    Raises ValueError as `sweep_json` does.
    """
    rows = []
    for job in sweep_json(folder)["jobs"]:
        run = RunRecord.read(folder / job.get("folder", job["name"]))
        row: dict[str, Any] = {"run": job["name"], **job["factors"], "status": run.status}
        row["error"] = run.manifest.get("error")
        for name, scalar in run.scalars.items():
            if not isinstance(scalar, Mapping):
                row[name] = scalar
            elif "value" in scalar or "reason" in scalar:  # not mappings such as the snapshots' losses
                row[name] = scalar.get("value")
                row |= {f"{name}_{part}": scalar[part] for part in _PARTS if part in scalar}
        row["total_seconds"] = run.manifest.get("seconds", {}).get("total")
        row["peak_memory_mib"] = run.manifest.get("peak_memory_bytes", 0) / 2**20 or None
        rows.append(row)
    names = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    for kind in ("parquet", "csv"):
        write_table(table, folder / f"summary.{kind}")
