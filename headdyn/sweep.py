"""Many runs → one: what became of every job, contrasts at matched loss, and the report."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from rich.console import Console

from headdyn.analysis.series.emergence import SeriesAnalysis
from headdyn.analysis.series.points import read_point
from headdyn.config import RunConfig
from headdyn.core.figures import save_png
from headdyn.core.randomness import generator
from headdyn.core.records import HeadTable, write_json
from headdyn.core.run_folder import RunRecord
from headdyn.pipeline import analyse_snapshot, build_analysis
from headdyn.report.effects import OUTCOMES
from headdyn.report.run_table import write_run_table
from headdyn.report.sweep_page import write_sweep_page
from headdyn.report.sweep_record import SWEEP, VERDICT, SweepRecord, now, rewrite
from headdyn.report.terminal import print_summary

log = logging.getLogger(__name__)

# The orderings are also compared at matched loss, by these analyses.
MATCHED_ANALYSES = ("loss", "attention", "probes")


def finish(folder: Path, jobs: Sequence[RunConfig], arguments: Sequence[str] | None = None) -> bool:
    """Write a sweep's summary, effects and report, and show its table. Returns whether every job is complete.

    `arguments` are the command line's, for the record.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "name": folder.name,
        "command": None if arguments is None else shlex.join(["python", "-m", "headdyn.run", *arguments]),
        "written": now(),
        "jobs": [{"name": job.name, "factors": dict(job.factors)} for job in jobs],
    }
    write_json(folder / SWEEP, content)
    runs = [RunRecord.read(folder / job.name) for job in jobs]
    write_run_table(folder)
    complete = [run for run in runs if run.status == "complete"]
    rewrite(folder, matched_loss(complete, {job.name: job for job in jobs}))
    judge_series(folder, jobs, runs)
    page = write_sweep_page(folder)
    print_summary(Console(), SweepRecord.read(folder), page)
    return len(complete) == len(runs)


def judge_series(folder: Path, jobs: Sequence[RunConfig], runs: Sequence[RunRecord]) -> None:
    """Call the analyses of whole series on every series of the sweep; leaves verdict.json, their tables and figures.

    A series are the jobs that differ in their revision alone. Its tables get a column `series`, its figures stand in
    figures/, and its record in verdict.json says which runs it is of. Nothing is left where no analysis asks for it.
    """
    series: dict[str, list[tuple[RunConfig, RunRecord]]] = {}
    for job, run in zip(jobs, runs, strict=True):
        if job.series and any("series" in choice.needs for choice in job.analysis.values()):
            series.setdefault(job.series, []).append((job, run))
    verdicts: list[dict[str, Any]] = []
    tables: dict[str, list[pa.Table]] = {}
    for number, members in enumerate(series.values()):
        first = members[0][0]
        factors = {name: value for name, value in first.factors.items() if name != "revision"}
        points = [read_point(run, str(job.factors["revision"])) for job, run in members]
        for name, choice in first.analysis.items():
            if "series" not in choice.needs:
                continue
            analysis = cast(SeriesAnalysis, build_analysis(choice))
            findings = analysis(points, generator(first.seed, f"analysis/{name}"))
            summary, figures = findings.table.summary(), {}
            for title, figure in findings.figures.items():
                figures[title] = f"figures/{name}_{title}{number or ''}.png"
                save_png(figure, folder / figures[title])
            for title, table in findings.tables.items():
                tables.setdefault(title, []).append(table.append_column("series", [[number] * len(table)]))
            verdicts.append(
                {
                    "series": number,
                    "analysis": name,
                    "factors": factors,
                    "runs": {str(job.factors["revision"]): job.name for job, _ in members},
                    "verdict": findings.verdict,
                    "summary": summary,
                    "meanings": {metric: analysis.metrics[metric].meaning for metric in summary},
                    "figures": figures,
                    "tables": list(findings.tables),
                }
            )
    if verdicts:
        write_json(folder / VERDICT, verdicts)
    for title, parts in tables.items():
        table = pa.concat_tables(parts, promote_options="default")
        pa.parquet.write_table(table, folder / f"{title}.parquet")
        if title == "timeline":
            pa.csv.write_csv(table, folder / "timeline.csv")


def matched_loss(runs: Sequence[RunRecord], configs: Mapping[str, RunConfig]) -> list[dict[str, Any]]:
    """Topic-ordered against shuffled training where both have the same held-out loss (science.md §2), a row an outcome.

    Order slows training, so that equal steps compare unequal models. The arm that ended higher is taken as it ended;
    of the other, the snapshot nearest to that loss. Arms with a recalibration are left out: their loss is the drop's.
    """
    cells: dict[tuple[Any, ...], dict[str, RunRecord]] = {}
    for run in runs:
        config = configs[run.name]
        if config.trains and config.position_enc.recalibration is None and "snapshot_losses_nats" in run.scalars:
            others = {name: level for name, level in run.factors.items() if name != "data_ordering"}
            cell = tuple(sorted((name, str(level)) for name, level in others.items()))
            cells.setdefault(cell, {})[str(run.factors["data_ordering"])] = run
    found = []
    for arms in cells.values():
        if set(arms) == {"shuffled", "topic"}:
            found += _pair(arms["shuffled"], arms["topic"], configs)
    return found


def _pair(shuffled: RunRecord, topic: RunRecord, configs: Mapping[str, RunConfig]) -> list[dict[str, Any]]:
    arms = {"shuffled": shuffled, "topic": topic}
    losses = {name: {int(s): v for s, v in run.scalars["snapshot_losses_nats"].items()} for name, run in arms.items()}
    steps = matched_steps(losses)
    sides = {name: _summary_at(configs[run.name], run, steps[name], max(losses[name])) for name, run in arms.items()}
    at = {name: losses[name][steps[name]] for name in arms}
    pair = {
        "attention": shuffled.factors["attention"],
        "position_enc": shuffled.factors["position_enc"],
        "seed": shuffled.factors["seed"],
        "runs": {name: run.name for name, run in arms.items()},
        "steps": steps,
        "losses_nats": at,
        "loss_difference": at["topic"] - at["shuffled"],
    }
    return [
        {
            **pair,
            "outcome": outcome,
            **{name: sides[name][outcome] for name in arms},
            "difference": sides["topic"][outcome]["value"] - sides["shuffled"][outcome]["value"],
        }
        for outcome in OUTCOMES
        if all(sides[name].get(outcome, {}).get("value") is not None for name in arms)
    ]


def matched_steps(losses: Mapping[str, Mapping[int, float]]) -> dict[str, int]:
    """Where to take each arm: the one whose last loss is higher at its end, the others at the loss nearest to that."""
    last = {name: max(by_step) for name, by_step in losses.items()}
    higher = max(losses, key=lambda name: losses[name][last[name]])
    target = losses[higher][last[higher]]
    nearest = {name: min(by_step, key=lambda step: abs(by_step[step] - target)) for name, by_step in losses.items()}
    return {**nearest, higher: last[higher]}


def _summary_at(config: RunConfig, run: RunRecord, step: int, last: int) -> dict[str, dict[str, Any]]:
    """The model rows of a training's snapshot; at its last step the run has them already."""
    table: HeadTable = run.heads() if step == last else analyse_snapshot(config, step, run.folder, MATCHED_ANALYSES)
    return table.summary()
