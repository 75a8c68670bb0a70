"""A sweep as its folder tells it: every job, finished or not, and what was computed over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headdyn.core.records import read_json, write_json
from headdyn.core.run_folder import MANIFEST, RunRecord
from headdyn.sweep.effects import factor_effects
from headdyn.sweep.groups import comparable
from headdyn.sweep.jobs import Job as Job
from headdyn.sweep.jobs import build_jobs, factor_names
from headdyn.sweep.matched_loss import pooled

SWEEP, EFFECTS, MATCHED, VERDICT = "sweep.json", "effects.json", "matched_loss.json", "verdict.json"


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """A sweep folder's records. `pairs` are contrasts of the orderings at matched loss, `pooled` the same over seeds.

    `sources` names the sweeps that a merged one was made of.
    """

    folder: Path
    name: str
    jobs: Sequence[Job]
    effects: Sequence[Mapping[str, Any]]
    pairs: Sequence[Mapping[str, Any]]
    pooled: Sequence[Mapping[str, Any]]
    command: str | None = None
    written: str | None = None
    sources: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = field(default=())

    @property
    def complete(self) -> list[Job]:
        """The jobs whose runs finished."""
        return [job for job in self.jobs if job.complete]

    @property
    def failed(self) -> list[Job]:
        """The jobs that failed, were stopped, or never started."""
        return [job for job in self.jobs if not job.complete]

    @property
    def groups(self) -> list[str]:
        """The names of the groups of comparable runs; one group's name is empty."""
        return list(dict.fromkeys(job.group for job in self.complete))

    @property
    def group_settings(self) -> dict[str, str]:
        """In what each of several groups differs from the others, as it is spelled in a command."""
        found = comparable([job.run for job in self.jobs])
        spelled = {
            g.name: ", ".join(f"{key.removesuffix('.name')}={value}" for key, value in g.differs.items()) for g in found
        }
        return spelled if len(found) > 1 else {}

    @property
    def varied(self) -> dict[str, list[str]]:
        """The factors in which jobs differ, with their levels in the order met; the filter's choices."""
        names = factor_names([job.factors for job in self.jobs])
        levels = {name: list(dict.fromkeys(str(job.factors.get(name)) for job in self.jobs)) for name in names}
        varied = {name: seen for name, seen in levels.items() if len(seen) > 1}
        return varied | ({"group": self.groups} if len(self.groups) > 1 else {})

    @property
    def siblings(self) -> list[list[Job]]:
        """Complete jobs by the training they stand on, so that a head is the same head in all of them."""
        by_training: dict[str, list[Job]] = {}
        for job in self.complete:
            by_training.setdefault(job.training, []).append(job)
        return list(by_training.values())

    @classmethod
    def read(cls, folder: Path) -> SweepRecord:
        """Raises ValueError for a folder that is no finished sweep's."""
        content = sweep_json(folder)
        runs = [(RunRecord.read(folder / job.get("folder", job["name"])), job["factors"]) for job in content["jobs"]]
        matched, effects = _matched(folder), folder / EFFECTS
        return cls(
            folder=folder,
            name=content["name"],
            jobs=build_jobs(runs),
            effects=read_json(effects) if effects.exists() else [],
            pairs=matched["pairs"],
            pooled=matched["pooled"],
            command=content.get("command"),
            written=content.get("written"),
            sources=content.get("sources", ()),
            notes=content.get("notes", ()),
        )


def single_job(folder: Path) -> Job:
    """A run by itself. Raises ValueError for a folder that is no run's, or whose run did not finish."""
    if not is_run(folder):
        raise ValueError(f"{folder} is no run's folder: it has no {MANIFEST}")
    run = RunRecord.read(folder.resolve())
    if run.status == "damaged":
        raise ValueError(run.manifest["error"])
    if run.status != "complete":
        error = run.manifest.get("error", "its record says no more")
        raise ValueError(f"{folder} is {run.status}, not complete: {error}; run its command again, then the report")
    return build_jobs([(run, run.factors)])[0]


def is_sweep(folder: Path) -> bool:
    """Whether the folder is a sweep's that has ended."""
    return (folder / SWEEP).is_file()


def is_run(folder: Path) -> bool:
    """Whether the folder is a run's, finished or not, whole or damaged."""
    return (folder / MANIFEST).is_file()


def sweep_json(folder: Path) -> dict[str, Any]:
    """The sweep's own record. Raises ValueError for an unfinished or a foreign folder."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give a run's (outputs/RUN) or a sweep's (multirun/SWEEP)")
    if is_sweep(folder):
        content = read_json(folder / SWEEP)
        if not isinstance(content, dict) or not {"name", "jobs"} <= set(content):
            raise ValueError(f"{folder / SWEEP} is not a sweep's record: it lacks name or jobs")
        if not all(isinstance(job, dict) and {"name", "factors"} <= set(job) for job in content["jobs"]):
            raise ValueError(f"{folder / SWEEP} is not a sweep's record: a job lacks its name or factors")
        return content
    runs = [path.parent.name for path in folder.glob(f"*/{MANIFEST}") if is_run(path.parent)]
    if runs:
        raise ValueError(
            f"{folder} is an unfinished sweep: {len(runs)} run folders, but no {SWEEP}; the same command finishes it "
            "(complete runs are kept), or give the run folders themselves"
        )
    raise ValueError(f"{folder} holds neither a run ({MANIFEST}) nor a sweep ({SWEEP})")


def matched_pairs(folder: Path) -> list[dict[str, Any]]:
    """The contrasts at matched loss that a sweep's folder holds; none where it was not made."""
    return _matched(folder)["pairs"]


def rewrite(folder: Path, pairs: Sequence[Mapping[str, Any]]) -> None:
    """Write effects.json and matched_loss.json of the jobs that sweep.json names, from their records."""
    jobs = sweep_json(folder)["jobs"]
    results = computed([RunRecord.read(folder / job.get("folder", job["name"])) for job in jobs], pairs)
    for name, content in results.items():
        write_json(folder / name, content)


def computed(runs: Sequence[RunRecord], pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is worked out over runs, by the file that holds it."""
    group_of = {run.name: group.name for group in comparable(runs) for run in group.runs}
    told = [{**pair, "group": group_of.get(pair["runs"]["topic"], "")} for pair in pairs]
    return {EFFECTS: factor_effects(runs), MATCHED: {"pairs": told, "pooled": pooled(told)}}


def _matched(folder: Path) -> dict[str, Any]:
    path = folder / MATCHED
    content = read_json(path) if path.exists() else {"pairs": [], "pooled": []}
    if not isinstance(content, dict) or not {"pairs", "pooled"} <= set(content):
        raise ValueError(f"{path} is not a sweep's contrasts: it lacks pairs or pooled; run the sweep's command again")
    return content


def now() -> str:
    """The time for a record, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
