"""A sweep's records, read from its folder: every job, finished or not, and the statistics over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from headdyn.core.json_files import read_json, write_json
from headdyn.core.records import Metric, write_table
from headdyn.core.run_folder import MANIFEST, RunRecord, renamed
from headdyn.sweep.effects import MEAN, SIMPLE, factor_effects
from headdyn.sweep.factors import Factor, factor_names, factors_of, varying
from headdyn.sweep.groups import comparable
from headdyn.sweep.jobs import Job, build_jobs, of_prompts, reading_order
from headdyn.sweep.matched_loss import pooled
from headdyn.sweep.outcomes import metrics_of, outcomes_of, unnamed

SWEEP, EFFECTS, MATCHED, VERDICT = "sweep.json", "effects.json", "matched_loss.json", "verdict.json"
SERIES_SECONDS = "series_seconds.json"  # how long analyses of series took; no page shows it
_BESIDE = ("ci_low", "ci_high", "null", "p", "q", "n", "unit", "reason")  # columns beside a value in the run table


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """The records in a sweep's folder.

    `swept` are the keys that its command varied. `effects` are the rows of contrasts, slopes and interactions,
    `simple_effects` those of one factor at one level of another, `level_means` those of one level (effects.py). `pairs`
    are contrasts at matched loss, `pooled` their averages over seeds. `sources` are the sweeps of a merged one.
    """

    folder: Path
    name: str
    jobs: Sequence[Job]
    effects: Sequence[Mapping[str, Any]]
    pairs: Sequence[Mapping[str, Any]]
    pooled: Sequence[Mapping[str, Any]]
    simple_effects: Sequence[Mapping[str, Any]] = ()
    level_means: Sequence[Mapping[str, Any]] = ()
    swept: Sequence[str] = ()
    command: str | None = None
    written: str | None = None
    sources: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()

    @property
    def complete(self) -> list[Job]:
        return [job for job in self.jobs if job.complete]

    @property
    def failed(self) -> list[Job]:
        """The jobs that failed, were stopped, or never started."""
        return [job for job in self.jobs if not job.complete]

    @property
    def groups(self) -> dict[str, list[Job]]:
        """The complete jobs of each group of comparable runs, by its name; a single group has an empty name."""
        by_name: dict[str, list[Job]] = {}
        for job in self.complete:
            by_name.setdefault(job.group, []).append(job)
        return by_name

    @cached_property
    def outcomes(self) -> tuple[str, ...]:
        """The metrics that the sweep tests, the primary one first."""
        return outcomes_of(job.run for job in self.complete)

    @property
    def primary(self) -> str | None:
        """The primary outcome; None without outcomes."""
        return next(iter(self.outcomes), None)

    @cached_property
    def metrics(self) -> Mapping[str, Metric]:
        return metrics_of(job.run for job in self.jobs)

    def metric(self, name: str) -> Metric:
        """The description of a metric, by its name alone if no run describes it."""
        return self.metrics.get(name) or unnamed(name)

    @property
    def group_settings(self) -> dict[str, str]:
        """By group, the settings in which it differs from the others, as in a command; empty for a single group.

        Runs on prompts train nothing, so a protocol's settings are left out for them.
        """
        groups = comparable([job.run for job in self.jobs], self.swept)
        if len(groups) < 2:
            return {}
        trains = not of_prompts(self.complete)
        return {
            group.name: ", ".join(s for s in group.spelled.split(", ") if trains or not s.startswith("protocol."))
            for group in groups
        }

    @property
    def factors(self) -> list[Factor]:
        """The factors of which complete jobs have two or more levels."""
        return factors_of([job.run for job in self.complete], factor_names(self.swept))

    @property
    def varied(self) -> dict[str, list[str]]:
        """The keys in which jobs differ, with their levels, by which a reader can filter a page's runs."""
        factors = [job.factors for job in self.jobs]
        names = varying(factors, reading_order(factors))
        levels = {name: list(dict.fromkeys(str(job.factors.get(name)) for job in self.jobs)) for name in names}
        return levels | ({"group": list(self.groups)} if len(self.groups) > 1 else {})

    @property
    def siblings(self) -> list[list[Job]]:
        """Complete jobs grouped by their training; within a group, heads of the same index correspond."""
        by_training: dict[str, list[Job]] = {}
        for job in self.complete:
            by_training.setdefault(job.training, []).append(job)
        return list(by_training.values())

    @classmethod
    def of(cls, job: Job) -> SweepRecord:
        """A single run as a sweep of one job."""
        folder = job.run.folder
        return cls(folder=folder, name=folder.name, jobs=[job], effects=[], pairs=[], pooled=[])

    @classmethod
    def read(cls, folder: Path) -> SweepRecord:
        """The records in a finished sweep's folder. Raises ValueError for any other folder."""
        content = sweep_json(folder)
        folders = [folder / job.get("folder", job["name"]) for job in content["jobs"]]
        runs = [(RunRecord.read(f), renamed(job["factors"])) for f, job in zip(folders, content["jobs"], strict=True)]
        matched, rows = matched_loss_json(folder), read_json(folder / EFFECTS) if (folder / EFFECTS).exists() else []
        return cls(
            folder=folder,
            name=content["name"],
            jobs=build_jobs(runs, content["swept"]),
            effects=[row for row in rows if row.get("kind") not in (SIMPLE, MEAN)],
            simple_effects=[row for row in rows if row.get("kind") == SIMPLE],
            level_means=[row for row in rows if row.get("kind") == MEAN],
            pairs=matched["pairs"],
            pooled=matched["pooled"],
            swept=content["swept"],
            command=content.get("command"),
            written=content.get("written"),
            sources=content.get("sources", ()),
            notes=content.get("notes", ()),
        )


def single_job(folder: Path) -> Job:
    """A run as a job of its own. Raises ValueError if the folder is no run's, or if the run is not complete."""
    if not is_run(folder):
        raise ValueError(f"{folder} is no run's folder: it has no {MANIFEST}")
    run = RunRecord.read(folder.resolve())
    if run.status == "damaged":
        raise ValueError(run.manifest["error"])
    if run.status != "complete":
        error = run.manifest.get("error", "its record says no more")
        raise ValueError(f"{folder} is {run.status}, not complete: {error}; run its command again, then the report")
    return build_jobs([(run, run.factors)])[0]


def is_run(folder: Path) -> bool:
    """Whether the folder is a run's, whatever the run's status."""
    return (folder / MANIFEST).is_file()


def sweep_json(folder: Path) -> dict[str, Any]:
    """The content of sweep.json, with the keys `swept` that the command varied.

    Raises ValueError for the folder of an unfinished sweep, and for any other folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give a run's (outputs/RUN) or a sweep's (multirun/SWEEP)")
    if (folder / SWEEP).is_file():
        content = read_json(folder / SWEEP)
        if not isinstance(content, dict) or not {"name", "jobs"} <= set(content):
            raise ValueError(f"{folder / SWEEP} is not a sweep's record: it lacks name or jobs")
        if not all(isinstance(job, dict) and {"name", "factors"} <= set(job) for job in content["jobs"]):
            raise ValueError(f"{folder / SWEEP} is not a sweep's record: a job lacks its name or factors")
        # Earlier records lack `swept`; for a merged one it cannot be determined.
        varied = [] if content.get("sources") else varying([job["factors"] for job in content["jobs"]])
        return {"swept": varied, **content}
    if runs := list(folder.glob(f"*/{MANIFEST}")):
        raise ValueError(
            f"{folder} is an unfinished sweep: {len(runs)} run folders, but no {SWEEP}; the same command finishes it "
            "(complete runs are kept), or give the run folders themselves"
        )
    raise ValueError(f"{folder} holds neither a run ({MANIFEST}) nor a sweep ({SWEEP})")


def write_run_table(folder: Path) -> None:
    """Write summary.csv and summary.parquet, the sweep's runs as one table for other tools.

    One row for each job that sweep.json names: its factors, status and scalars, with interval and null beside them.
    Raises ValueError as `sweep_json` does.
    """
    rows = []
    for job in sweep_json(folder)["jobs"]:
        run = RunRecord.read(folder / job.get("folder", job["name"]))
        row = {"run": job["name"], **job["factors"], "status": run.status, "error": run.manifest.get("error")}
        for name, scalar in run.scalars.items():
            if not isinstance(scalar, Mapping):
                row[name] = scalar
            elif "value" in scalar or "reason" in scalar:  # not mappings such as the snapshots' losses
                row[name] = scalar.get("value")
                row |= {f"{name}_{part}": scalar[part] for part in _BESIDE if part in scalar}
        row["total_seconds"] = run.manifest.get("seconds", {}).get("total")
        row["peak_memory_mib"] = run.manifest.get("peak_memory_bytes", 0) / 2**20 or None
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    for kind in ("parquet", "csv"):
        write_table(table, folder / f"summary.{kind}")


def rewrite(folder: Path, pairs: Sequence[Mapping[str, Any]]) -> None:
    """Compute effects.json and matched_loss.json from the runs that sweep.json names, and write them."""
    content = sweep_json(folder)
    runs = [RunRecord.read(folder / job.get("folder", job["name"])) for job in content["jobs"]]
    group_of = {run.name: group.name for group in comparable(runs, content["swept"]) for run in group.runs}
    grouped = [{**pair, "group": group_of.get(next(iter(pair["runs"].values())), "")} for pair in pairs]
    write_json(folder / EFFECTS, factor_effects(runs, swept=content["swept"]))
    write_json(folder / MATCHED, {"pairs": grouped, "pooled": pooled(grouped)})


def matched_loss_json(folder: Path) -> dict[str, Any]:
    """A sweep's contrasts at matched loss, `pairs` and `pooled`. Raises ValueError for a damaged file."""
    path = folder / MATCHED
    content = read_json(path) if path.exists() else {"pairs": [], "pooled": []}
    if not isinstance(content, dict) or not {"pairs", "pooled"} <= set(content):
        raise ValueError(f"{path} is not a sweep's contrasts: it lacks pairs or pooled; run the sweep's command again")
    return content


def now() -> str:
    """The present time in UTC, for a record."""
    return datetime.now(UTC).isoformat(timespec="seconds")
