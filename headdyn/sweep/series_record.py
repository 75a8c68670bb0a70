"""Series of checkpoints in a sweep's folder: the verdict on each, and its timeline with a row for each checkpoint."""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headdyn.core.json_files import read_json, write_json
from headdyn.core.records import Metric, write_table
from headdyn.core.whole_files import whole_file
from headdyn.sweep.factors import level_label, varying
from headdyn.sweep.jobs import Job, reading_order
from headdyn.sweep.outcomes import unnamed
from headdyn.sweep.record import VERDICT, SweepRecord

TIMELINE = "timeline"
_BESIDE = ("ci_low", "ci_high", "null")  # what a timeline has beside a metric's value
_NEEDED = {"series", "analysis", "factors", "runs", "verdict"}
# Entries that earlier records lack.
_DEFAULTS: Mapping[str, Any] = {"summary": {}, "meanings": {}, "figures": {}, "tables": [TIMELINE]}
_FORMER_NAMES: Mapping[str, str] = read_json(Path(__file__).with_name("former_names.json"))


@dataclass(frozen=True)
class Points:
    """A metric over the steps that have it; an absent interval end or null is NaN."""

    steps: Sequence[int]
    value: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    null: Sequence[float]

    @property
    def has_interval(self) -> bool:
        return any(math.isfinite(low) for low in self.low)


@dataclass(frozen=True, kw_only=True)
class Series:
    """The checkpoints of one training, in order. `title` distinguishes it from the sweep's other series; "" if alone.

    `figures` are the files of the analysis's figures, by title.
    """

    number: int
    title: str
    factors: Mapping[str, Any]
    verdict: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    jobs: Mapping[str, Job]
    figures: Mapping[str, Path]

    @property
    def group(self) -> str:
        return next((job.group for job in self.jobs.values() if job.complete), "")

    @cached_property
    def counted(self) -> list[Mapping[str, Any]]:
        """The timeline's rows of checkpoints that count: neither failed nor excluded, with a step."""
        return [row for row in self.rows if row["counts"] and row["step"] is not None]

    @property
    def complete(self) -> list[Job]:
        """The jobs of checkpoints that count, in the order of training."""
        return [self.jobs[row["revision"]] for row in self.counted if row["revision"] in self.jobs]

    @property
    def measures(self) -> Mapping[str, Mapping[str, Any]]:
        """The judgement of each measure; empty where too few checkpoints count."""
        return self.verdict.get("measures", {})

    @property
    def split(self) -> Mapping[str, Any]:
        """The verdict on the split of the heads among all splits; only a `reason` if none was measured."""
        return self.verdict.get("split", {"reason": self.verdict.get("reason", "no split was measured")})

    @property
    def split_measures(self) -> list[str]:
        """The measures of that split, which are those with a band of the other splits."""
        return [name for name in self.measures if any(f"{name}_band" in row for row in self.rows)]

    @property
    def primary(self) -> str | None:
        """The measure that is shown first: the split's last one (it has no threshold to jump at), else the first."""
        return next(reversed(self.split_measures), next(iter(self.measures), None))

    @property
    def model(self) -> str:
        """The model as it was named in the command, or its kind."""
        for job in self.jobs.values():
            name = job.run.manifest.get("config", {}).get("model", {}).get("name")
            if name:
                return str(name)
        return str(self.factors.get("model", ""))

    @property
    def truth(self) -> Mapping[str, Any]:
        """What is known of the checkpoints by construction; empty if nothing is."""
        manifests = [job.run.manifest for job in self.complete]
        return next((m[key] for m in manifests for key in ("truth", "organism") if key in m), {})

    def metric(self, name: str) -> Metric:
        return next((job.glossary[name] for job in self.jobs.values() if name in job.glossary), unnamed(name))

    def points(self, metric: str) -> Points | None:
        """A metric over the steps; None if no checkpoint that counts has it."""
        having = [row for row in self.counted if math.isfinite(_finite(row.get(metric)))]
        if not having:
            return None
        low, high, null = ([_finite(row.get(f"{metric}_{part}")) for row in having] for part in _BESIDE)
        return Points([row["step"] for row in having], [row[metric] for row in having], low, high, null)


def read_series(sweep: SweepRecord) -> list[Series]:
    """Every series of a sweep that has a verdict, in the order of verdict.json."""
    by_name = {job.run.name: job for job in sweep.jobs}
    entries = verdicts(sweep.folder)
    titles = series_titles(entries)
    return [
        Series(
            number=entry["series"],
            title=titles[entry["series"]],
            factors=entry["factors"],
            verdict=entry["verdict"],
            rows=_timeline(sweep.folder, entry["series"]),
            jobs={revision: by_name[name] for revision, name in entry["runs"].items() if name in by_name},
            figures={title: sweep.folder / file for title, file in entry["figures"].items()},
        )
        for entry in entries
        if "counted" in entry["verdict"]
    ]


def verdicts(folder: Path) -> list[dict[str, Any]]:
    """The results of analyses of series, one entry for each analysis of each series.

    Entries that older sweeps lack get their defaults. Raises ValueError for a file that is no such record.
    """
    path = folder / VERDICT
    entries = read_json(path) if path.exists() else []
    if not isinstance(entries, list) or not all(isinstance(e, dict) and set(e) >= _NEEDED for e in entries):
        lacking = ", ".join(sorted(_NEEDED))
        raise ValueError(f"{path} is no record of series: it needs {lacking} of each; run the sweep's command again")
    return [{**_DEFAULTS, **entry, "verdict": _renamed(entry["verdict"])} for entry in entries]


def _renamed(record: Any) -> Any:
    """A record with its entries' former names replaced by today's."""
    if isinstance(record, dict):
        return {_FORMER_NAMES.get(name, name): _renamed(value) for name, value in record.items()}
    return record


def series_titles(entries: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """The title of each series, by number: the levels in which it differs from the others; "" for a single one."""
    factors = [entry["factors"] for entry in entries]
    varied = varying(factors, reading_order(factors))
    return {
        entry["series"]: " ".join(
            f"protocol={level}" if name == "protocol" else level_label(name, level)
            for name in varied
            if (level := entry["factors"].get(name)) is not None
        )
        for entry in entries
    }


def write_series_table(parts: Sequence[pa.Table], folder: Path, name: str) -> None:
    """Write the tables of several series as one, NAME.parquet; a timeline as .csv too."""
    whole = pa.concat_tables(parts, promote_options="default")
    for kind in ("parquet", "csv") if name == TIMELINE else ("parquet",):
        write_table(whole, folder / f"{name}.{kind}")


@dataclass(frozen=True, kw_only=True)
class CollectedSeries:
    """The series of several sweeps, with new numbers: entries of verdict.json, tables by name, figures by file."""

    entries: Sequence[Mapping[str, Any]]
    tables: Mapping[str, Sequence[pa.Table]]
    figures: Mapping[str, Path]

    def write(self, out: Path) -> None:
        """Write the series to `out` as a sweep does; writes nothing if there are none."""
        for file, source in self.figures.items():
            (out / file).parent.mkdir(exist_ok=True)
            with whole_file(out / file) as copy:
                shutil.copyfile(source, copy)
        if self.entries:
            write_json(out / VERDICT, self.entries)
        for name, parts in self.tables.items():
            write_series_table(parts, out, name)


def collect_series(folders: Sequence[Path]) -> CollectedSeries:
    """The series of all folders; the same analysis of the same runs counts once. Writes nothing.

    Analyses of the same runs share a number. Raises ValueError, with the file, for a damaged record or missing figure.
    """
    entries: list[dict[str, Any]] = []
    numbers: dict[tuple[tuple[str, str], ...], int] = {}
    tables: dict[str, dict[int, pa.Table]] = {}
    figures: dict[str, Path] = {}
    for folder in folders:
        for entry in verdicts(folder):
            if any(entry["runs"] == known["runs"] and entry["analysis"] == known["analysis"] for known in entries):
                continue
            number = numbers.setdefault(tuple(sorted(entry["runs"].items())), len(numbers))
            placed = {
                title: f"figures/{entry['analysis']}_{title}{number or ''}{Path(file).suffix}"
                for title, file in entry["figures"].items()
            }
            figures |= {placed[title]: folder / file for title, file in entry["figures"].items()}
            entries.append({**entry, "series": number, "figures": placed})
            for name in entry["tables"]:
                rows = _table(folder, name, entry["series"])
                if rows is not None:
                    place = rows.schema.get_field_index("series")
                    numbered = rows.set_column(place, "series", pa.array([number] * len(rows), pa.int64()))
                    tables.setdefault(name, {}).setdefault(number, numbered)
    for source in figures.values():
        if not source.is_file():
            raise ValueError(f"{source} is gone, which {VERDICT} names; run the sweep's command again")
    return CollectedSeries(
        entries=entries, tables={name: list(parts.values()) for name, parts in tables.items()}, figures=figures
    )


def _table(folder: Path, name: str, number: int) -> pa.Table | None:
    path = folder / f"{name}.parquet"
    if not path.exists():
        return None
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is damaged, it holds no table ({error}); run the sweep's command again") from error
    names = [_FORMER_NAMES.get(name, name) for name in table.column_names]
    return table.filter(pc.equal(table["series"], number)).rename_columns(names)


def _timeline(folder: Path, number: int) -> list[dict[str, Any]]:
    table = _table(folder, TIMELINE, number)
    return [] if table is None else table.to_pylist()


def _finite(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan
