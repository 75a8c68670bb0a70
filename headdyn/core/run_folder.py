"""A run's folder, written and read. Its manifest says what the run is, how it was made, and whether it is complete."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from safetensors import SafetensorError, safe_open

from headdyn.core.json_files import read_json, write_json
from headdyn.core.records import Findings, HeadTable, Metric, write_table
from headdyn.core.source_code import provenance
from headdyn.core.store import Entry, StageInterruptedError, file_hash, write_json_if_possible
from headdyn.core.tracking import Tracker

if TYPE_CHECKING:
    from headdyn.core.figures import Figure

MANIFEST, METRICS, SUMMARY, HEADS = "manifest.json", "metrics.jsonl", "summary.json", "heads.parquet"
LOG, PATTERNS = "log.txt", "patterns.safetensors"
# The files whose checksums are in a complete run's manifest; a checksum of the manifest's own content is beside them.
_CHECKED = (SUMMARY, METRICS, "*.parquet", "*.safetensors", "figures/*.json")
KEPT_PARTS = "kept_parts"  # folder of saved parts of analyses; a run removes it when complete, a series does not
# The entries that every manifest has from the beginning of its run, and their types.
_FACTS: Mapping[str, type] = {
    **dict.fromkeys(("status", "name", "started", "python"), str),
    **dict.fromkeys(("factors", "machine", "config", "versions", "stages", "seconds", "sha256"), dict),
}
_TRACKED_AS = {"corpus": "dataset"}  # W&B's type of a stage's result; those of other stages are models


def snapshot_table(folder: Path, step: int) -> Path:
    """The file with the results of analysing a snapshot of the run's training."""
    return folder / f"heads_step{step:06d}.parquet"


def write_snapshot_table(folder: Path, step: int, table: HeadTable) -> None:
    """Write `snapshot_table`, and beside it a JSON file with the run's name and the table's checksum."""
    path = snapshot_table(folder, step)
    path.with_suffix(".json").unlink(missing_ok=True)
    table.write(path)
    write_json(path.with_suffix(".json"), {"run": folder.name, "sha256": file_hash(path)})


def snapshot_table_is_sound(folder: Path, step: int) -> bool:
    """Whether the table exists and is what was written. Earlier versions wrote no checksum: then any table will do."""
    path = snapshot_table(folder, step)
    try:
        if path.with_suffix(".json").exists():
            return bool(read_json(path.with_suffix(".json")) == {"run": folder.name, "sha256": _digest(path)})
        return len(HeadTable.read(path)) > 0
    except (ValueError, OSError):
        return False


def renamed(factors: Mapping[str, Any]) -> dict[str, Any]:
    """A run's factors under today's names: older records call the protocol `original` by the name "seed"."""
    return {**factors, "protocol": "original"} if factors.get("protocol") == "seed" else dict(factors)


def read_manifest(folder: Path, *, results: bool = True) -> dict[str, Any]:
    """The run's manifest, or `{"status": "absent"}` if there is none yet.

    If the file is no run's record, or was changed after the run, the status is "damaged", and `error` says why and what
    to do. With `results`, the other files of a complete run are compared with their checksums: if one is missing or
    changed, the status is "damaged" too.
    """
    path = folder / MANIFEST
    if not path.exists():
        return {"status": "absent"}
    manifest: dict[str, Any] = {}
    try:
        content = read_json(path)
        facts = {"sha256": {}, **content} if isinstance(content, dict) else {}  # older records have no checksums
        lacking = [name for name, kind in _FACTS.items() if not isinstance(facts.get(name), kind)]
        if lacking:
            raise ValueError(
                f"{path} is no run's record: it lacks {', '.join(lacking)}; give a run's, or run its command again"
            )
        manifest = {**facts, "factors": renamed(facts["factors"])}
        sums = dict(facts["sha256"])
        if sums.pop(MANIFEST, None) not in (None, _content_hash(facts)):
            raise ValueError(f"{path} is damaged, it is not what the run wrote; run its command again")
        if (protocol := manifest["config"].get("protocol")) and protocol.get("name") == "seed":
            protocol["name"] = "original"
        # An analysis enters the glossary before its results are written: without entries there are none.
        if results and manifest["status"] == "complete" and manifest.get("glossary"):
            _require_results(folder, sums)
    except ValueError as error:
        return {**manifest, "status": "damaged", "error": str(error)}
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a run's manifest. A complete run's has checksums, to which one of the manifest's own content is added."""
    if "sha256" in manifest:
        manifest = {**manifest, "sha256": {**manifest["sha256"], MANIFEST: _content_hash(manifest)}}
    write_json(folder / MANIFEST, manifest)


def add_checksums(folder: Path, paths: Sequence[Path]) -> None:
    """Add files that a report wrote to the checksums of a complete run; records without checksums stay as they are."""
    manifest = read_manifest(folder, results=False)
    if manifest["status"] == "complete" and manifest["sha256"]:
        written = _checksums(folder, paths)
        if not written.items() <= manifest["sha256"].items():
            write_manifest(folder, {**manifest, "sha256": manifest["sha256"] | written})


def _checksums(folder: Path, paths: Sequence[Path]) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in paths}


def _content_hash(manifest: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of a manifest without its checksums, in the form in which it is read from the disk."""
    content = json.loads(json.dumps({name: fact for name, fact in manifest.items() if name != "sha256"}))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _require_results(folder: Path, sums: Mapping[str, str]) -> None:
    missing = [name for name in (SUMMARY, HEADS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} says that it is complete, but lacks {' and '.join(missing)}; run its command again")
    _read_scalars(folder)
    HeadTable.check(folder / HEADS)
    for name, digest in sums.items():
        if _digest(folder / name) != digest:
            raise ValueError(f"{folder / name} is damaged, it is not what the run wrote; run its command again")
    try:
        if (folder / PATTERNS).exists():
            with safe_open(folder / PATTERNS, framework="np"):
                pass  # opening it reads its header and compares its length
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / PATTERNS} is damaged ({error}); run its command again") from error


def _read_scalars(folder: Path) -> dict[str, Any]:
    scalars = read_json(folder / SUMMARY)
    if not isinstance(scalars, dict):
        raise ValueError(f"{folder / SUMMARY} is damaged, it holds no scalars by name; run its command again")
    return scalars


def _digest(path: Path) -> str | None:
    """The file's checksum, or None if there is no file. A large file is read again only if its size or time changed."""
    if not path.is_file():
        return None
    facts = path.stat()
    return file_hash(path) if facts.st_size < 2**20 else _hash_once(path, facts.st_size, facts.st_mtime_ns)


@functools.cache
def _hash_once(path: Path, size: int, written: int) -> str:
    return file_hash(path)


@dataclass(frozen=True)
class RunRecord:
    """A run's record as its folder has it: complete, running, failed, interrupted, damaged or absent (`status`)."""

    folder: Path
    manifest: Mapping[str, Any]
    scalars: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """The record in the folder. One that cannot be read has the status "damaged"; no error is raised."""
        manifest = read_manifest(folder)
        readable = manifest["status"] not in ("absent", "damaged") and (folder / SUMMARY).exists()
        try:
            return cls(folder, manifest, _read_scalars(folder) if readable else {})
        except ValueError as error:
            return cls(folder, {**manifest, "status": "damaged", "error": str(error)}, {})

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def status(self) -> str:
        return str(self.manifest["status"])

    @property
    def factors(self) -> Mapping[str, Any]:
        return self.manifest.get("factors", {})

    def value(self, scalar: str) -> float | None:
        """The value of a scalar in summary.json, whether it has an interval or not; None if it is absent."""
        result = self.scalars.get(scalar)
        return result.get("value") if isinstance(result, Mapping) else result

    def metrics(self) -> dict[str, list[tuple[int, float]]]:
        """What the run logged step by step, as `read_metrics` gives it."""
        return read_metrics(self.folder / METRICS)

    def heads(self) -> HeadTable:
        """The rows of all of the run's analyses; none before the first has ended."""
        path = self.folder / HEADS
        return HeadTable.read(path) if path.exists() else HeadTable.concat([])


class LogFile(logging.FileHandler):
    """A run's log.txt. A line that cannot be written is left out; the run's next record will raise the error."""

    def format(self, record: logging.LogRecord) -> str:
        return logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s").format(record)

    def handleError(self, record: logging.LogRecord) -> None: ...


class RunFolder:
    """Writes one run's records, and sends its numbers to a tracker. Use as a context manager around the work.

    `facts` are entries of the manifest that are known before the run. Leaving the context normally marks the run
    complete. An exception marks it interrupted, or failed with the traceback; all that was recorded before remains.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self.path = path
        self.tracker: Tracker = Tracker()
        self.tables: list[HeadTable] = []
        self.scalars: dict[str, Any] = {}
        self.manifest: dict[str, Any] = {"status": "running", **facts}
        self._log = LogFile(path / LOG, encoding="utf-8", delay=True)

    def __enter__(self) -> Self:
        (self.path / "figures").mkdir(parents=True, exist_ok=True)
        logging.getLogger().addHandler(self._log)
        self.note(f"{self.path.name} begins")
        for pattern in (*_CHECKED, "heads_step*.json"):  # all that an earlier run of this folder measured and drew
            for file in self.path.glob(pattern):
                file.unlink()
        from headdyn.core.machine import begin_peak_memory  # torch, which reading a record does without

        self._begun = time.monotonic()
        self.manifest |= {"peak_memory_of": "run" if begin_peak_memory() else "process", **provenance()}
        self.manifest |= {"stages": {}, "seconds": {}}
        self.save_manifest()
        return self

    def note(self, line: str) -> None:
        """Write a line to log.txt alone."""
        self._log.handle(logging.LogRecord("headdyn", logging.INFO, "", 0, line, None, None))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from headdyn.core.machine import peak_memory_bytes

        logging.getLogger().removeHandler(self._log)
        self.manifest["seconds"]["total"] = time.monotonic() - self._begun
        self.manifest["peak_memory_bytes"] = peak_memory_bytes()
        if error is None:
            self._log.close()
            files = [path for pattern in _CHECKED for path in sorted(self.path.glob(pattern))]
            self.manifest |= {"status": "complete", "sha256": _checksums(self.path, files)}
            self.save_manifest()
            return
        if isinstance(error, KeyboardInterrupt | StageInterruptedError):
            self.manifest |= {"status": "interrupted", "error": str(error) or type(error).__name__}
        else:
            text, lines = f"{type(error).__name__}: {error}", traceback.format_exception(kind, error, trace)
            self.manifest |= {"status": "failed", "error": text, "traceback": "".join(lines)}
            error_record = {"name": __name__, "levelname": "ERROR", "msg": text, "exc_info": (kind, error, trace)}
            self._log.emit(logging.makeLogRecord(error_record))
        self._log.close()
        write_json_if_possible(self.path / MANIFEST, self.manifest)

    def save_manifest(self) -> None:
        write_manifest(self.path, self.manifest)

    def stage(self, kind: str, entry: Entry) -> None:
        """Record which cached stage the run uses, and whether this run built it."""
        recipe = read_json(entry.path / MANIFEST)["recipe"]
        self.tracker.stands_on(f"{kind}-{entry.key}", _TRACKED_AS.get(kind, "model"), recipe, built=entry.built)
        self.manifest["stages"][kind] = {"key": entry.key, "built": entry.built, "build_seconds": entry.build_seconds}
        self.save_manifest()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Record how many seconds the block took."""
        begun = time.monotonic()
        yield
        self.manifest["seconds"][name] = time.monotonic() - begun

    def count_earlier(self, name: str, seconds: float) -> None:
        """Add the seconds that an earlier try took for parts of this work to those that `timed` recorded."""
        self.manifest["seconds"][name] += seconds
        self._begun -= seconds  # so that the total includes them

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of one step to metrics.jsonl and send them to the tracker."""
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            for name, value in metrics.items():
                file.write(json.dumps({"step": step, "name": name, "value": value}) + "\n")
        self.tracker.log(metrics, step)

    def summarise(self, **scalars: Any) -> None:
        """Add scalars (numbers, or a mapping with value, ci_low, ci_high, null …) to summary.json and the tracker."""
        self.scalars |= scalars
        write_json(self.path / SUMMARY, self.scalars)
        self.tracker.summarise(scalars)

    def add(self, name: str, findings: Findings, **labels: Any) -> None:
        """Write an analysis's findings: its rows, labelled with run, model and step, its figures and further tables."""
        table = findings.table.with_q().labelled(**labels)
        self.tables.append(table)
        HeadTable.concat(self.tables).write(self.path / HEADS)
        self.tracker.table(f"heads/{name}", table)
        for title, figure in findings.figures.items():
            self.figure(name, title, figure)
        for title, further in findings.tables.items():
            write_table(further, self.path / f"{title}.parquet")
        self.summarise(**table.summary())

    def figure(self, section: str, title: str, figure: Figure) -> None:
        """Write a figure to figures/SECTION_TITLE.json (Vega-Lite), and send it to the tracker as SECTION/TITLE."""
        path = self.path / "figures" / f"{section}_{title}.json"
        figure.save(path)
        self.tracker.figure(f"{section}/{title}", path)

    def describe(self, name: str, about: str, metrics: Mapping[str, Metric]) -> None:
        """Write what an analysis (`about`) and its metrics mean into the manifest. A range's open end becomes None."""
        entries = {
            metric: {part: value if value not in (-math.inf, math.inf) else None for part, value in vars(m).items()}
            for metric, m in metrics.items()
        }
        self.manifest.setdefault("glossary", {})[name] = {"about": about, "metrics": entries}
        self.save_manifest()


class MetricsFollower:
    """Copies the entries of a stage's own metrics.jsonl into a run's record."""

    def __init__(self, source: Path, run: RunFolder) -> None:
        self.source, self.run, self.offset = source, run, 0

    def catch_up(self) -> None:
        """Copy the entries that were added since the last call."""
        if not self.source.exists():
            return
        with self.source.open("rb") as file:
            file.seek(self.offset)
            appended = file.read()
        whole = appended[: appended.rfind(b"\n") + 1]  # a line that is still being written waits for the next call
        self.offset += len(whole)
        by_step: dict[int, dict[str, float]] = {}
        for entry in map(json.loads, whole.splitlines()):
            by_step.setdefault(entry["step"], {})[entry["name"]] = entry["value"]
        for step, metrics in by_step.items():
            self.run.log(step, metrics)


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """A metrics.jsonl as {name: [(step, value), …]} in the order written; empty if there is no file.

    Raises ValueError, which names the file, for a line that is cut off.
    """
    series: dict[str, list[tuple[int, float]]] = {}
    try:
        for entry in map(json.loads, path.read_text(encoding="utf-8").splitlines() if path.exists() else ()):
            series.setdefault(entry["name"], []).append((entry["step"], entry["value"]))
    except ValueError as error:
        fix = "run its command again with force=true"
        raise ValueError(f"{path} is damaged, a line is no JSON ({error}); {fix}") from error
    return series
