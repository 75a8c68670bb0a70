"""The manifests of a record's runs: `python -m tests.experiments.manifests FOLDER SWEEP…` writes FOLDER/manifests.json.

Of every sweep the command, and what its runs have in common; of every run its name (which ends with its settings' hash), commit,
start, seconds, and the first half of its summary's SHA-256. A sweep takes the place of one of the same command.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from headdyn.core.json_files import read_json
from headdyn.core.run_folder import RunRecord
from headdyn.sweep.record import SweepRecord

COMMON = ("python", "versions", "machine")


def manifest(sweep: Path) -> dict[str, Any]:
    """A sweep's command, and the manifests of its runs in short. Raises ValueError if runs differ in what is common."""
    runs = [job.run.manifest for job in SweepRecord.read(sweep).complete]
    common = {json.dumps({name: run[name] for name in COMMON}, sort_keys=True) for run in runs}
    if len(common) != 1:
        raise ValueError(f"{sweep}: its runs differ in {', '.join(COMMON)}: {sorted(common)}")
    return {
        "command": read_json(sweep / "sweep.json")["command"],
        **json.loads(common.pop()),
        "columns": ["name", "commit", "started", "seconds", "summary_sha256"],
        "runs": [
            [run[name] for name in ("name", "git", "started")]
            + [round(run["seconds"]["total"], 1), run["sha256"]["summary.json"][:32]]
            for run in runs
        ],
    }


def manifest_of_run(run: RunRecord) -> dict[str, Any]:
    """The manifest of a run that stands alone, in short."""
    names = ("name", "git", "started", *COMMON)
    return {name: run.manifest[name] for name in names} | {
        "summary_sha256": run.manifest["sha256"]["summary.json"][:32]
    }


def main(folder: Path, sweeps: list[Path]) -> None:
    path, made = folder / "manifests.json", [manifest(sweep) for sweep in sweeps]
    commands = {sweep["command"] for sweep in made}
    stay = [sweep for sweep in (read_json(path) if path.exists() else []) if sweep["command"] not in commands]
    lines = json.dumps([sweep | {"runs": None} for sweep in stay + made], indent=1).split('"runs": null')
    runs = [",\n   ".join(map(json.dumps, sweep["runs"])) for sweep in stay + made]
    text = "".join(f'{line}"runs": [\n   {rows}]' for line, rows in zip(lines, runs, strict=False)) + lines[-1]
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
