"""Merges several sweeps and runs into the record of one sweep."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headdyn.core.json_files import write_json
from headdyn.core.run_folder import RunRecord
from headdyn.sweep.record import SWEEP, is_run, matched_loss_json, now, rewrite, single_job, sweep_json
from headdyn.sweep.series_record import collect_series


def merge(folders: Sequence[Path], out: Path) -> None:
    """Write to `out` the records of one sweep that consists of the runs in all `folders`, of sweeps or single runs.

    Seeds are pooled; runs with different settings stay apart. A run that is in two folders counts once, the complete
    one if only one is. Raises ValueError as `sweep_json` and `collect_series` do, for a single run that is not
    complete, and if `out` is one of the folders. Nothing is written then.
    """
    if any(out.resolve() == folder.resolve() for folder in folders):
        raise ValueError(f"--out={out} is one of the folders to merge; name a new one")
    contents = [_content(folder) for folder in folders]
    series = collect_series(folders)
    jobs: dict[str, dict[str, Any]] = {}
    runs: dict[str, RunRecord] = {}
    pairs: dict[str, dict[str, Any]] = {}
    sources, notes, swept = [], [], dict[str, None]()
    for folder, content in zip(folders, contents, strict=True):
        sources.append({"name": content["name"], "folder": _relative(folder, out), "command": content.get("command")})
        swept |= dict.fromkeys(content["swept"])
        for job in content["jobs"]:
            run = RunRecord.read((folder / job.get("folder", job["name"])).resolve())
            if run.name in jobs:
                notes.append(f"{run.name} is in more than one of the sweeps; it counts once")
                if runs[run.name].status == "complete":
                    continue
            runs[run.name] = run
            jobs[run.name] = {"name": run.name, "folder": _relative(run.folder, out), "factors": job["factors"]}
        for pair in matched_loss_json(folder)["pairs"]:
            pairs[json.dumps([pair["runs"], pair["outcome"]], sort_keys=True)] = pair
    merged = {
        "name": out.name,
        "command": None,
        "written": now(),
        "jobs": list(jobs.values()),
        "swept": list(swept),
        "sources": sources,
        "notes": list(dict.fromkeys(notes)),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / SWEEP, merged)
    rewrite(out, list(pairs.values()))
    series.write(out)


def _content(folder: Path) -> dict[str, Any]:
    """The content of sweep.json; for a single run's folder, that of a sweep with this run alone."""
    if not is_run(folder):
        return sweep_json(folder)
    job = single_job(folder)
    swept = job.run.manifest.get("config", {}).get("swept", [])
    return {"name": folder.name, "jobs": [{"name": ".", "factors": job.factors}], "swept": swept}


def _relative(folder: Path, start: Path) -> str:
    return os.path.relpath(folder.resolve(), start.resolve())
