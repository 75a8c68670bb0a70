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
    factors: Mapping[str, Any]  # what the runs have in common
    revisions: Sequence[str]  # of the runs, in their order
    analyses: Mapping[str, SeriesAnalysis]
    seed: int


def judge_series(folder: Path, every_series: Sequence[SeriesRuns], should_stop: Callable[[], bool]) -> None:
    """Call the analyses on every series of a sweep; writes verdict.json, tables and figures into its folder.

    Tables get a column `series`, figures are in figures/, and verdict.json names the runs of each series. The analyses'
    seconds, which differ from call to call, are in series_seconds.json. Raises StageInterruptedError if `should_stop`
    says so: the analysis's finished parts and an earlier verdict remain. If anything else fails, its traceback is in
    log.txt, and an earlier verdict, which may be of fewer runs, is removed.
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
    from headdyn.core import machine  # torch, which a sweep without series does without

    here = machine.resolve("cpu", "fp32", 0)
    verdicts: list[dict[str, Any]] = []
    seconds: list[dict[str, Any]] = []
    tables: dict[str, list[pa.Table]] = {}
    pictures: dict[str, Figure] = {}
    for number, series in enumerate(every_series):
        steps = steps_of(series.revisions)
        points, contents = [], []
        progress = Progress("reading checkpoints", "checkpoints", len(series.runs))
        for run, revision in zip(series.runs, series.revisions, strict=True):
            contents.append((revision, content_of(run)))
            points.append(read_point(run, revision, steps[revision]))
            progress.add(1)
        for name, analysis in series.analyses.items():
            begun, parts = time.monotonic(), folder / KEPT_PARTS / f"{name}{number or ''}"
            with keeping(parts, identity_of(analysis, here, series.seed, contents), should_stop) as kept:
                findings = analysis(points, generator(series.seed, f"analysis/{name}"))
            took = {"analysis": name, "run": series.runs[0].name, "checkpoints": len(points)}
            seconds.append({**took, "seconds": time.monotonic() - begun + kept.seconds})
            summary, figures = findings.table.summary(), {}
            for title, figure in findings.figures.items():
                figures[title] = f"figures/{name}_{title}{number or ''}.json"
                pictures[figures[title]] = figure
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
                    "figures": figures,
                    "tables": list(findings.tables),
                }
            )
    for path, figure in pictures.items():
        figure.save(folder / path)
    for title, of_series in tables.items():
        write_series_table(of_series, folder, title)
    write_json(folder / SERIES_SECONDS, seconds)
    write_json(folder / VERDICT, verdicts)
