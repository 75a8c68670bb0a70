"""Analyses of whole series of checkpoints: called when a sweep's runs have ended, recorded in verdict.json."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from headdyn.analysis.contract import SeriesAnalysis
from headdyn.analysis.series.points import read_point
from headdyn.core.json_files import write_json
from headdyn.core.randomness import generator
from headdyn.core.run_folder import RunRecord
from headdyn.models.revisions import steps_of
from headdyn.sweep.record import SERIES_SECONDS, VERDICT


@dataclass(frozen=True, kw_only=True)
class Series:
    """The runs that differ in their revision alone, and the analyses that compare them."""

    runs: Sequence[RunRecord]
    factors: Mapping[str, Any]  # what the runs have in common
    revisions: Sequence[str]  # of the runs, in their order
    analyses: Mapping[str, SeriesAnalysis]
    seed: int


def judge_series(folder: Path, every_series: Sequence[Series]) -> None:
    """Call the analyses on every series of a sweep; leaves verdict.json, their tables and figures in its folder.

    Tables get a column `series`, figures stand in figures/, and verdict.json says which runs a record is of. How long
    the analyses took, which is another at every call, stands in series_seconds.json. Nothing is written where there is
    no series.
    """
    verdicts: list[dict[str, Any]] = []
    seconds: list[dict[str, Any]] = []
    tables: dict[str, list[pa.Table]] = {}
    for number, series in enumerate(every_series):
        steps = steps_of(series.revisions)
        points = [
            read_point(run, revision, steps[revision])
            for run, revision in zip(series.runs, series.revisions, strict=True)
        ]
        for name, analysis in series.analyses.items():
            begun = time.monotonic()
            findings = analysis(points, generator(series.seed, f"analysis/{name}"))
            took = {"analysis": name, "run": series.runs[0].name, "checkpoints": len(points)}
            seconds.append({**took, "seconds": time.monotonic() - begun})
            summary, figures = findings.table.summary(), {}
            for title, figure in findings.figures.items():
                figures[title] = f"figures/{name}_{title}{number or ''}.json"
                figure.save(folder / figures[title])
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
    if verdicts:
        write_json(folder / VERDICT, verdicts)
        write_json(folder / SERIES_SECONDS, seconds)
    for title, parts in tables.items():
        table = pa.concat_tables(parts, promote_options="default")
        pa.parquet.write_table(table, folder / f"{title}.parquet")
        if title == "timeline":
            pa.csv.write_csv(table, folder / "timeline.csv")
