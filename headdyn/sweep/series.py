"""Analyses of whole series of checkpoints: called when a sweep's runs have ended, recorded in verdict.json."""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from headdyn.analysis.contract import SeriesAnalysis
from headdyn.analysis.series.points import content_of, read_point
from headdyn.core.figures import Figure
from headdyn.core.json_files import write_json
from headdyn.core.kept_parts import identity_of, keeping
from headdyn.core.progress import Progress
from headdyn.core.randomness import generator
from headdyn.core.run_folder import KEPT_PARTS, LOG, RunRecord
from headdyn.core.store import StageInterruptedError
from headdyn.models.revisions import steps_of
from headdyn.sweep.record import SERIES_SECONDS, VERDICT
from headdyn.sweep.series_record import write_series_table


@dataclass(frozen=True, kw_only=True)
class SeriesRuns:
    """The runs that differ in their revision alone, and the analyses that compare them."""

    runs: Sequence[RunRecord]
    factors: Mapping[str, Any]  # those that the runs have in common
    revisions: Sequence[str]  # one for each run, in the same order
    analyses: Mapping[str, SeriesAnalysis]
    seed: int


def judge_series(folder: Path, every_series: Sequence[SeriesRuns], should_stop: Callable[[], bool]) -> None:
    """Call the analyses on every series of a sweep, and write verdict.json, tables and figures into its `folder`.

    Tables get a column `series`, figures are in figures/, and verdict.json names the runs of each series. The seconds
    that each analysis took are in series_seconds.json, because they differ from call to call. Raises
    StageInterruptedError if `should_stop` says so: finished parts of an analysis and an earlier verdict remain. Any
    other error is raised too; log.txt gets its traceback, and an earlier verdict, which may be of fewer runs, is
    removed.
    """
    try:
        _judge(folder, every_series, should_stop)
    except StageInterruptedError:
        raise
    except Exception:
        (folder / VERDICT).unlink(missing_ok=True)
        with (folder / LOG).open("a", encoding="utf-8") as log:
            log.write(traceback.format_exc())
        raise


def _judge(folder: Path, every_series: Sequence[SeriesRuns], should_stop: Callable[[], bool]) -> None:
    from headdyn.core import machine  # imports torch, which a sweep without series does not need

    this_machine = machine.resolve("cpu", "fp32", 0)
    verdicts: list[dict[str, Any]] = []
    seconds: list[dict[str, Any]] = []
    tables: dict[str, list[pa.Table]] = {}
    figures: dict[str, Figure] = {}
    for number, series in enumerate(every_series):
        steps = steps_of(series.revisions)
        points, contents = [], []
        progress = Progress("reading checkpoints", "checkpoints", len(series.runs))
        for run, revision in zip(series.runs, series.revisions, strict=True):
            contents.append((revision, content_of(run)))
            points.append(read_point(run, revision, steps[revision]))
            progress.add(1)
        for name, analysis in series.analyses.items():
            begun, identity = time.monotonic(), identity_of(analysis, this_machine, series.seed, contents)
            with keeping(folder / KEPT_PARTS / f"{name}{number or ''}", identity, should_stop) as saved_parts:
                findings = analysis(points, generator(series.seed, f"analysis/{name}"))
            call = {"analysis": name, "run": series.runs[0].name, "checkpoints": len(points)}
            seconds.append({**call, "seconds": time.monotonic() - begun + saved_parts.seconds})
            summary = findings.table.summary()
            paths = {title: f"figures/{name}_{title}{number or ''}.json" for title in findings.figures}
            figures |= {paths[title]: figure for title, figure in findings.figures.items()}
            for title, table in findings.tables.items():
                tables.setdefault(title, []).append(table.append_column("series", [[number] * len(table)]))
            verdicts.append(
                {
                    "series": number,
                    "analysis": name,
                    "factors": dict(series.factors),
                    "runs": {revision: run.name for run, revision in zip(series.runs, series.revisions, strict=True)},
                    "verdict": findings.verdict,
                    "summary": summary,
                    "meanings": {metric: analysis.metrics[metric].meaning for metric in summary},
                    "figures": paths,
                    "tables": list(findings.tables),
                }
            )
    for path, figure in figures.items():
        figure.save(folder / path)
    for title, parts in tables.items():
        write_series_table(parts, folder, title)
    write_json(folder / SERIES_SECONDS, seconds)
    write_json(folder / VERDICT, verdicts)
