"""What a run leaves: a folder whose manifest says what it is, how it was made and whether it is whole."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import math
import platform
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from headdyn.core.json_files import read_json, write_json
from headdyn.core.records import Findings, HeadTable, Metric
from headdyn.core.source_code import git_revision
from headdyn.core.store import Entry, StageInterruptedError, file_hash, write_json_if_possible
from headdyn.core.tracking import Tracker

if TYPE_CHECKING:
    from headdyn.core.figures import Figure

MANIFEST, METRICS, SUMMARY, HEADS = "manifest.json", "metrics.jsonl", "summary.json", "heads.parquet"
LOG, PATTERNS = "log.txt", "patterns.safetensors"
# What a complete run leaves a checksum of in its manifest, which holds one of its own content beside them.
_CHECKED = (SUMMARY, METRICS, "*.parquet", "*.safetensors", "figures/*.json")
KEPT_PARTS = "kept_parts"  # what is done of an analysis: of a run's until it is complete, of a series' for good
# What every manifest of RunFolder says, from its first moment on, and of which kind.
_FACTS: Mapping[str, type] = {
    **dict.fromkeys(("status", "name", "started", "python"), str),
    **dict.fromkeys(("factors", "machine", "config", "versions", "stages", "seconds", "sha256"), dict),
}
_TRACKED_AS = {"corpus": "dataset"}  # what W&B calls a stage's result; the others' are models
PACKAGES = (
    *("headdyn", "torch", "numpy", "scipy", "scikit-learn"),
    *("transformers", "muon-optimizer", "hydra-core", "wandb"),
)


def snapshot_table(folder: Path, step: int) -> Path:
    """Where the analyses of a snapshot of the run's training are kept."""
    return folder / f"heads_step{step:06d}.parquet"


def renamed(factors: Mapping[str, Any]) -> dict[str, Any]:
    """A run's factors as they are called today: older records call the protocol `original` seed."""
    return {**factors, "protocol": "original"} if factors.get("protocol") == "seed" else dict(factors)


def read_manifest(folder: Path, *, results: bool = True) -> dict[str, Any]:
    """The run's manifest; `{"status": "absent"}` where there is none yet.

    Its status is "damaged", and its `error` says why and what to do, where the file is no run's record, or is not what
    the run wrote. With `results`, so it is too where the manifest says complete while another file that the run wrote
    is missing or is not what it wrote, by the checksums in the manifest.
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
        if results and manifest["status"] == "complete" and manifest.get("glossary"):  # each analysis's comes before it
            _require_results(folder, sums)
    except ValueError as error:
        return {**manifest, "status": "damaged", "error": str(error)}
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a run's manifest; that of a complete run with a checksum of its own content."""
    if "sha256" in manifest:
        manifest = {**manifest, "sha256": {**manifest["sha256"], MANIFEST: _content_hash(manifest)}}
    write_json(folder / MANIFEST, manifest)


def _content_hash(manifest: Mapping[str, Any]) -> str:
    """Of all that a manifest says but its checksums, in hex, as it is once written and read again."""
    content = json.loads(json.dumps({name: fact for name, fact in manifest.items() if name != "sha256"}))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _require_results(folder: Path, sums: Mapping[str, str]) -> None:
    missing = [name for name in (SUMMARY, HEADS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} says that it is complete, but lacks {' and '.join(missing)}; run its command again")
    _read_scalars(folder)
    HeadTable.check(folder / HEADS)
    for path in (folder / name for name, digest in sums.items() if _digest(folder / name) != digest):
        raise ValueError(f"{path} is damaged, it is not what the run wrote; run its command again")
    try:
        if (folder / PATTERNS).exists():
            with safe_open(folder / PATTERNS, framework="np"):
                pass  # its header is read, and its length compared
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / PATTERNS} is damaged ({error}); run its command again") from error


def _read_scalars(folder: Path) -> dict[str, Any]:
    scalars = read_json(folder / SUMMARY)
    if not isinstance(scalars, dict):
        raise ValueError(f"{folder / SUMMARY} is damaged, it holds no scalars by name; run its command again")
    return scalars


def _digest(path: Path) -> str | None:
    """The file's checksum; None where there is no file. A large one is read once while its size and time stay."""
    if not path.is_file():
        return None
    facts = path.stat()
    return file_hash(path) if facts.st_size < 2**20 else _hash_once(path, facts.st_size, facts.st_mtime_ns)


@functools.cache
def _hash_once(path: Path, size: int, written: int) -> str:
    return file_hash(path)


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder tells it, whatever became of it; what a failed run left is here too."""

    folder: Path
    manifest: Mapping[str, Any]
    scalars: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Raises no error for what is in the folder: a record that cannot be read has the status "damaged"."""
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
        """A scalar of summary.json, with or without its interval; None where it is absent."""
        result = self.scalars.get(scalar)
        return result.get("value") if isinstance(result, Mapping) else result

    def metrics(self) -> dict[str, list[tuple[int, float]]]:
        return read_metrics(self.folder / METRICS)

    def heads(self) -> HeadTable:
        path = self.folder / HEADS
        return HeadTable.read(path) if path.exists() else HeadTable.concat([])


class LogFile(logging.FileHandler):
    """A run's log.txt. Where a line cannot be written, the run's next record fails and says why; the log is silent."""

    def format(self, record: logging.LogRecord) -> str:
        return logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s").format(record)

    def handleError(self, record: logging.LogRecord) -> None: ...


class RunFolder:
    """Writes one run's records, and mirrors its numbers to a tracker. Use as a context manager around the work.

    Leaving it normally marks the run complete; an exception marks it failed, with the traceback, or interrupted. A
    fault later in the run therefore leaves whatever was recorded before it.
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
        for stale in (METRICS, SUMMARY, HEADS, "heads_step*.parquet"):
            for file in self.path.glob(stale):
                file.unlink()
        from headdyn.core.machine import begin_peak_memory  # torch, which reading a record does without

        self._begun = time.monotonic()
        self.manifest |= {
            "peak_memory_of": "run" if begin_peak_memory() else "process",
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {name: _version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "git": git_revision(),
            "stages": {},
            "seconds": {},
        }
        self.save_manifest()
        return self

    def note(self, line: str) -> None:
        """A line for log.txt alone."""
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
            files = (path for pattern in _CHECKED for path in sorted(self.path.glob(pattern)))
            sums = {path.relative_to(self.path).as_posix(): file_hash(path) for path in files}
            self.manifest |= {"status": "complete", "sha256": sums}
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
        """Note which cached stage the run stands on, and whether it built it."""
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
        """Add to what `timed` recorded the seconds of parts that an earlier try computed."""
        self.manifest["seconds"][name] += seconds
        self._begun -= seconds  # the total holds them too

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append metrics of one step to metrics.jsonl and send them to the tracker."""
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
        """Keep an analysis's findings: rows labelled with run, model and step, figures, further tables."""
        table = findings.table.with_q().labelled(**labels)
        self.tables.append(table)
        HeadTable.concat(self.tables).write(self.path / HEADS)
        self.tracker.table(f"heads/{name}", table)
        for title, figure in findings.figures.items():
            self.figure(name, title, figure)
        for title, further in findings.tables.items():
            pq.write_table(further, self.path / f"{title}.parquet")
        self.summarise(**table.summary())

    def figure(self, section: str, title: str, figure: Figure) -> None:
        """Keep a figure as figures/SECTION_TITLE.json (Vega-Lite), and send it to the tracker as SECTION/TITLE."""
        path = self.path / "figures" / f"{section}_{title}.json"
        figure.save(path)
        self.tracker.figure(f"{section}/{title}", path)

    def describe(self, name: str, about: str, metrics: Mapping[str, Metric]) -> None:
        """Keep what an analysis's numbers mean in the manifest, where a report finds it: None is a range's open end."""
        entries = {
            metric: {name: value if value not in (-math.inf, math.inf) else None for name, value in vars(m).items()}
            for metric, m in metrics.items()
        }
        self.manifest.setdefault("glossary", {})[name] = {"about": about, "metrics": entries}
        self.save_manifest()


class MetricsFollower:
    """Replays a stage's own metrics.jsonl into a run: what is there already, then what is appended since."""

    def __init__(self, source: Path, run: RunFolder) -> None:
        self.source, self.run, self.offset = source, run, 0

    def catch_up(self) -> None:
        if not self.source.exists():
            return
        with self.source.open("rb") as file:
            file.seek(self.offset)
            appended = file.read()
        whole = appended[: appended.rfind(b"\n") + 1]  # a line still being written is left for the next time
        self.offset += len(whole)
        by_step: dict[int, dict[str, float]] = {}
        for entry in map(json.loads, whole.splitlines()):
            by_step.setdefault(entry["step"], {})[entry["name"]] = entry["value"]
        for step, metrics in by_step.items():
            self.run.log(step, metrics)


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """A metrics.jsonl as {name: [(step, value), …]} in the order written; no file, no metrics.

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


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
