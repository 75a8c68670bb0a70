"""Repeats a recorded run from its manifest and compares the results: `python -m headdyn.run --repeat FOLDER`.

The repeat has a cache of its own, so that corpus, training and analyses are all done again. It uses the device,
precision and number of threads of the recorded run.
"""

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headdyn.checking import from_record
from headdyn.config import RunConfig
from headdyn.core.json_files import read_json
from headdyn.core.records import HeadTable
from headdyn.core.run_folder import HEADS, METRICS, RunRecord
from headdyn.core.settings import ConfigError

KEY = ("step", "layer", "head", "metric")
_SPEEDS = ("tokens_per_second",)
COMPARED = ("value", "ci_low", "ci_high", "null", "p", "q", "n", "reason")


def plan_repeat(folder: Path) -> tuple[RunConfig, RunRecord]:
    """The settings and the record of the run to repeat. Raises ConfigError if there is none to repeat."""
    resolved = folder.resolve()
    if resolved.parent.name == _repeat_name(resolved.name):  # `repeat` would remove this record before it compares
        raise ConfigError(f"--repeat {folder}: it is a repeat itself; name the folder of the run that it repeats")
    record = RunRecord.read(folder)
    if record.status != "complete":
        fault = record.manifest.get("error", f"its run is {record.status}")
        raise ConfigError(f"--repeat {folder}: {fault}; name the folder of a complete run")
    machine = record.manifest["machine"]
    settings = {**record.manifest["config"], **{key: machine[key] for key in ("device", "precision", "threads")}}
    settings["tracking"] = {**settings["tracking"], "backend": "none"}
    return from_record(settings, record.factors, record.manifest.get("absent", {})), record


def repeat(config: RunConfig, record: RunRecord, root: Path) -> bool:
    """Repeat the run below `root` and print how the results compare. Returns whether all are the same to the bit."""
    place = root / _repeat_name(record.name)
    folder = place / record.name  # the run keeps its name, which figures show
    shutil.rmtree(place, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["HEADDYN_CACHE"] = str(place / "cache")
    from headdyn.pipeline import run

    run(config, folder)
    again = RunRecord.read(folder)
    differences, files = compare(record.heads(), again.heads()), differing_files(record, again)
    for line in changed_surroundings(record.manifest, again.manifest):
        print(line)
    same = f"all {len(again.heads())} rows of {record.name} are the same to the bit"
    if not differences and not files:
        print(f"matched: {same}{', and so are its curves, patterns and figures' if record.manifest['sha256'] else ''}")
        return True
    if files:
        print(f"differs: {', '.join(files)} of {record.name}; the repeat is in {folder}")
    if not differences:
        print(same)
    else:
        row, column, size = max(differences, key=lambda difference: difference[2])
        print(
            f"differs: {len({row for row, _, _ in differences})} of {len(record.heads())} rows of {record.name}; the "
            f"largest difference is {size:.3g}, in {column} of {row}; the repeat is in {folder}"
        )
    return False


def _repeat_name(name: str) -> str:
    """The name of the folder below which a run is repeated."""
    return f"{name}-repeated"


def compare(first: HeadTable, second: HeadTable) -> list[tuple[str, str, float]]:
    """Every difference between two tables: the row in words, the column, the size (infinite if a value is missing)."""
    tables = [{tuple(row[name] for name in KEY): row for row in table.rows()} for table in (first, second)]
    differences = []
    for key in {**tables[0], **tables[1]}:
        rows = [table.get(key, {}) for table in tables]
        words = " ".join(f"{name} {part}" for name, part in zip(KEY, key, strict=True) if part is not None)
        for column in COMPARED:
            a, b = (row.get(column) for row in rows)
            if a != b:
                size = abs(a - b) if isinstance(a, int | float) and isinstance(b, int | float) else math.inf
                differences.append((words, column, size))
    return differences


def differing_files(first: RunRecord, second: RunRecord) -> list[str]:
    """The files of the first run that differ in the second: curves, tables, patterns and figures, but not its rows.

    Curves of speed and the look of figures are not compared; of records without checksums only the curves are.
    """
    curves = [{name: curve for name, curve in run.metrics().items() if name not in _SPEEDS} for run in (first, second)]
    before, after = first.manifest["sha256"], second.manifest["sha256"]
    compared = [name for name in before if name.endswith((".parquet", ".safetensors")) and name != HEADS]
    files = [name for name in compared if before[name] != after.get(name)]
    figures = [name for name in before if name.startswith("figures/")]
    files += [name for name in figures if name not in after or _datasets(first, name) != _datasets(second, name)]
    return [METRICS, *files] if curves[0] != curves[1] else files


def _datasets(run: RunRecord, figure: str) -> Any:
    return read_json(run.folder / figure)["datasets"]


def changed_surroundings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What may explain different numbers, one line each: changed versions, code or corpus."""
    lines = [
        f"{name} was {version}, is {after['versions'].get(name)}"
        for name, version in before["versions"].items()
        if version != after["versions"].get(name)
    ]
    if before.get("git") != after.get("git"):
        lines.append(f"the code was {before.get('git')}, is {after.get('git')}")
    keys = [manifest["stages"].get("corpus", {}).get("key") for manifest in (before, after)]
    if keys[0] != keys[1]:
        lines.append("the corpus differs: its text or the code that builds it has changed")
    return lines
