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
_SUFFIXES = ("ci_low", "ci_high", "null")  # of the columns METRIC_SUFFIX that `Points` have beside the value
_NEEDED = {"series", "analysis", "factors", "runs", "verdict"}
# Keys that earlier records lack, with their defaults.
_DEFAULTS: Mapping[str, Any] = {"summary": {}, "meanings": {}, "figures": {}, "tables": [TIMELINE]}
_FORMER_NAMES: Mapping[str, str] = read_json(Path(__file__).with_name("former_names.json"))


@dataclass(frozen=True)
class Points:
    """A metric's values at the steps that have one, before `Metric.scale`; an absent interval end or null is NaN."""

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
    """The checkpoints of one training, and one analysis of them.

    `title` distinguishes the series from the sweep's others; "" if it is the only one. `rows` are those of its
    timeline, one per checkpoint in the order of training. `jobs` are given by revision, `figures` (files) by title.
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
        """The group of comparable runs (groups.py) to which the checkpoints belong; "" if there is only one."""
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
        """The judgement on each measure, by the measure's name; empty if too few checkpoints count."""
        return self.verdict.get("measures", {})

    @property
    def split(self) -> Mapping[str, Any]:
        """The verdict on whether one split of the heads stands out among all; only a `reason` if none was measured."""
        return self.verdict.get("split", {"reason": self.verdict.get("reason", "no split was measured")})

    @property
    def split_measures(self) -> list[str]:
        """The names of the measures of that split: those with a column NAME_band, chance's band, in the timeline."""
        return [name for name in self.measures if any(f"{name}_band" in row for row in self.rows)]

    @property
    def primary(self) -> str | None:
        """The measure to show first: the last of the split's, which has no threshold to jump at, or else the first."""
        return next(reversed(self.split_measures), next(iter(self.measures), None))

    @property
    def model(self) -> str:
        """The model's name in the settings, or else the option of `model=`."""
        names = (job.run.manifest.get("config", {}).get("model", {}).get("name") for job in self.jobs.values())
        return str(next(filter(None, names), self.factors.get("model", "")))

    @property
    def truth(self) -> Mapping[str, Any]:
        """What is known of the checkpoints by construction; empty if nothing is."""
        manifests = [job.run.manifest for job in self.complete]
        keys = ("truth", "organism")  # the second one in earlier records
        return next((manifest[key] for manifest in manifests for key in keys if key in manifest), {})

    def metric(self, name: str) -> Metric:
        """The description of a metric, from the first run that has it."""
        return next((job.glossary[name] for job in self.jobs.values() if name in job.glossary), unnamed(name))

    def points(self, metric: str) -> Points | None:
        """A metric's values over training, or those of another column; None if no checkpoint that counts has any."""
        rows = [row for row in self.counted if math.isfinite(_finite(row.get(metric)))]
        if not rows:
            return None
        low, high, null = ([_finite(row.get(f"{metric}_{part}")) for row in rows] for part in _SUFFIXES)
        return Points([row["step"] for row in rows], [row[metric] for row in rows], low, high, null)


def read_series(sweep: SweepRecord) -> list[Series]:
    """Every series whose verdict says which checkpoints count, in the order of verdict.json. Raises as `verdicts`."""
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
    """The entries of verdict.json, one for each analysis of each series; empty if there is no such file.

    Keys that earlier records lack get their defaults. Raises ValueError for a file that is no such record.
    """
    path = folder / VERDICT
    entries = read_json(path) if path.exists() else []
    if not isinstance(entries, list) or not all(isinstance(e, dict) and set(e) >= _NEEDED for e in entries):
        needed = ", ".join(sorted(_NEEDED))
        raise ValueError(f"{path} is no record of series: each needs {needed}; run the sweep's command again")
    return [{**_DEFAULTS, **entry, "verdict": _renamed(entry["verdict"])} for entry in entries]


def _renamed(record: Any) -> Any:
    """A record whose former keys are replaced by today's, at every depth."""
    if isinstance(record, dict):
        return {_FORMER_NAMES.get(name, name): _renamed(value) for name, value in record.items()}
    return record


def series_titles(entries: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """The title of each series, by number: its levels of the factors that vary; "" for a single series."""
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
    """Write the tables of all series as one, to NAME.parquet; the timeline also as .csv."""
    whole = pa.concat_tables(parts, promote_options="default")
    for kind in ("parquet", "csv") if name == TIMELINE else ("parquet",):
        write_table(whole, folder / f"{name}.{kind}")


@dataclass(frozen=True, kw_only=True)
class CollectedSeries:
    """The series of several sweeps, with new numbers.

    `entries` are those of verdict.json. `tables` hold by name the tables of all series. `figures` are the files to
    copy, by their path in the folder of the collection.
    """

    entries: Sequence[Mapping[str, Any]]
    tables: Mapping[str, Sequence[pa.Table]]
    figures: Mapping[str, Path]

    def write(self, out: Path) -> None:
        """Write the series to `out` as a sweep does; writes nothing if there are none."""
        for path, source in self.figures.items():
            (out / path).parent.mkdir(exist_ok=True)
            with whole_file(out / path) as copy:
                shutil.copyfile(source, copy)
        if self.entries:
            write_json(out / VERDICT, self.entries)
        for name, parts in self.tables.items():
            write_series_table(parts, out, name)


def collect_series(folders: Sequence[Path]) -> CollectedSeries:
    """The series in all sweeps' folders. An analysis of the same runs in two of them counts once. Writes nothing.

    Analyses of the same runs share a number. Raises ValueError, which names the file, if a record is damaged or a
    figure is missing.
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
            paths = {
                title: f"figures/{entry['analysis']}_{title}{number or ''}{Path(file).suffix}"
                for title, file in entry["figures"].items()
            }
            figures |= {paths[title]: folder / file for title, file in entry["figures"].items()}
            entries.append({**entry, "series": number, "figures": paths})
            for name in entry["tables"]:
                table = _table(folder, name, entry["series"])
                if table is not None:
                    column = table.schema.get_field_index("series")
                    numbered = table.set_column(column, "series", pa.array([number] * len(table), pa.int64()))
                    tables.setdefault(name, {}).setdefault(number, numbered)
    for source in figures.values():
        if not source.is_file():
            raise ValueError(f"{source} is missing, although {VERDICT} names it; run the sweep's command again")
    return CollectedSeries(
        entries=entries, tables={name: list(parts.values()) for name, parts in tables.items()}, figures=figures
    )


def _table(folder: Path, name: str, number: int) -> pa.Table | None:
    """The rows of one series in a table of the sweep; None if there is no such table."""
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
    """The value, or NaN if it is no finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan
