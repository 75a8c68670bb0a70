"""What follows when a sweep's jobs have ended: contrasts at matched loss, analyses of series, table and report."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from rich.console import Console

from headdyn.analysis.contract import SeriesAnalysis
from headdyn.config import RunConfig
from headdyn.core.json_files import write_json
from headdyn.core.records import HeadTable
from headdyn.core.run_folder import RunRecord, snapshot_table, snapshot_table_is_sound
from headdyn.core.store import modified
from headdyn.report.page import PAGE, is_current, made_of
from headdyn.report.terminal import print_summary
from headdyn.sweep.factors import varying
from headdyn.sweep.matched_loss import MATCHED_ANALYSES, matched_loss
from headdyn.sweep.record import SWEEP, VERDICT, SweepRecord, now, rewrite, sweep_json, write_run_table
from headdyn.sweep.series import SeriesRuns
from headdyn.workers import Task, Workers


def finish(folder: Path, jobs: Sequence[RunConfig], workers: Workers, arguments: Sequence[str] | None = None) -> int:
    """Write a sweep's summary, effects and report, and show its table.

    `workers` analyse the snapshots at which runs are compared, and series of checkpoints; `arguments` are those of the
    command line, for the record. Returns the exit status: 130 if asked to stop, 1 if a job or analysis is incomplete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "name": folder.name,
        "command": None if arguments is None else shlex.join(["python", "-m", "headdyn.run", *arguments]),
        "written": _written(folder) or now(),
        "jobs": [{"name": job.name, "factors": dict(job.factors)} for job in jobs],
        "swept": varying([job.factors for job in jobs]),
    }
    write_json(folder / SWEEP, content)
    configs = {job.name: job for job in jobs}
    runs = [RunRecord.read(folder / job.name) for job in jobs]
    write_run_table(folder)
    complete = [run for run in runs if run.status == "complete"]

    snapshots: dict[tuple[Path, int], RunRecord] = {}

    def note_snapshot(run: RunRecord, step: int) -> HeadTable:
        snapshots[run.folder, step] = run
        return HeadTable.concat([])

    matched_loss(complete, note_snapshot)  # only notes the snapshots that it will read below
    tasks = [
        Task(f"{run.name} at step {step}", "analyse_snapshot", (configs[run.name], step, run.folder, MATCHED_ANALYSES))
        for (_, step), run in snapshots.items()
        if not snapshot_table_is_sound(run.folder, step)
    ]
    every_series = series_of(jobs, runs)
    earlier = modified(folder / VERDICT)
    if every_series:
        tasks.append(Task("series of checkpoints", "judge_series", (folder, every_series)))
    stopped = workers.do(tasks)
    workers.dismiss()  # they take two seconds to end, during which the page is drawn
    unanalysed = {run.name for (_, step), run in snapshots.items() if not snapshot_table_is_sound(run.folder, step)}
    matched = [run for run in complete if run.name not in unanalysed]
    rewrite(folder, matched_loss(matched, lambda run, step: HeadTable.read(snapshot_table(run.folder, step))))
    sweep = SweepRecord.read(folder)
    if not is_current(folder / PAGE, made_of(sweep)):
        from headdyn.report.sweep_page import write_sweep_page  # which takes most of a second to import

        write_json(folder / SWEEP, {**content, "written": now()})
        write_sweep_page(folder)
    print_summary(Console(), sweep, folder / PAGE)
    if stopped:
        return 130
    judged = not every_series or modified(folder / VERDICT) not in (None, earlier)
    return 0 if len(complete) == len(runs) and judged and not unanalysed else 1


def _written(folder: Path) -> str | None:
    """When the sweep's page was last written, from sweep.json; None without such a record."""
    try:
        return sweep_json(folder).get("written")
    except ValueError:
        return None


def series_of(jobs: Sequence[RunConfig], runs: Sequence[RunRecord]) -> list[SeriesRuns]:
    """The jobs that differ in their revision alone, series by series, where an analysis of series was chosen."""
    by_series: dict[str, list[tuple[RunConfig, RunRecord]]] = {}
    for job, run in zip(jobs, runs, strict=True):
        if job.series and any("series" in analysis.needs for analysis in job.analysis.values()):
            by_series.setdefault(job.series, []).append((job, run))
    return [
        SeriesRuns(
            runs=[run for _, run in members],
            revisions=[str(job.factors["revision"]) for job, _ in members],
            factors={name: value for name, value in members[0][0].factors.items() if name != "revision"},
            analyses={
                name: cast(SeriesAnalysis, analysis)
                for name, analysis in members[0][0].analysis.items()
                if "series" in analysis.needs
            },
            seed=members[0][0].seed,
        )
        for members in by_series.values()
    ]
