"""What analyses of series leave in a sweep's folder; the analyses themselves are tested in tests/analysis/series."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from headdyn.analysis.contract import SeriesFindings
from headdyn.core.json_files import read_json
from headdyn.core.records import HeadTable, Metric
from headdyn.core.run_folder import RunRecord
from headdyn.sweep.series import SeriesRuns, judge_series
from headdyn.sweep.series_record import series_titles


@dataclass(frozen=True)
class CountsCheckpoints:
    """An analysis of a series with two tables, of which the timeline is for spreadsheets too."""

    metrics: ClassVar = {"checkpoints": Metric(meaning="how many there are")}

    def __call__(self, points, generator):
        return SeriesFindings(
            table=HeadTable.whole("checkpoints", float(len(points)), n=len(points), unit="run"),
            tables={"timeline": pa.table({"step": [0, 8]}), "splits": pa.table({"split": [1]})},
            verdict={"answer": len(points)},
        )


def series(folder: Path) -> SeriesRuns:
    runs = [RunRecord(folder / name, {"status": "complete"}, {}) for name in ("first", "last")]
    return SeriesRuns(
        runs=runs, factors={"seed": 3}, revisions=["step0", "step8"], analyses={"counts": CountsCheckpoints()}, seed=3
    )


def test_a_series_is_titled_by_every_key_in_which_it_differs_from_others():
    common = {"model": "trained", "data": "markov_mixture", "experiment": "markov_phases"}
    entries = [
        {"series": number, "factors": common | {"data.num_chains": chains, "seed": seed}}
        for number, (chains, seed) in enumerate([(4, 0), (4, 1), (64, 0)])
    ]
    assert series_titles(entries) == {0: "chains 4 s0", 1: "chains 4 s1", 2: "chains 64 s0"}
    assert series_titles(entries[:1]) == {0: ""}


def test_two_series_leave_a_verdict_each_and_their_rows_in_one_table(tmp_path, monkeypatch):
    monkeypatch.setattr("headdyn.sweep.series.read_point", lambda run, revision, step: (run.name, revision, step))
    monkeypatch.setattr("headdyn.sweep.series.content_of", lambda run: run.name)
    judge_series(tmp_path, [series(tmp_path), series(tmp_path)], lambda: False)
    verdicts = read_json(tmp_path / "verdict.json")
    assert [(v["series"], v["verdict"], v["runs"]) for v in verdicts] == [
        (number, {"answer": 2}, {"step0": "first", "step8": "last"}) for number in (0, 1)
    ]
    took = read_json(tmp_path / "series_seconds.json")
    assert [(each["analysis"], each["run"], each["checkpoints"]) for each in took] == [("counts", "first", 2)] * 2
    assert pq.read_table(tmp_path / "splits.parquet").to_pydict() == {"split": [1, 1], "series": [0, 1]}
    with (tmp_path / "timeline.csv").open() as file:
        assert list(csv.reader(file)) == [["step", "series"], ["0", "0"], ["8", "0"], ["0", "1"], ["8", "1"]]
    assert {path.name for path in tmp_path.glob("*.csv")} == {"timeline.csv"}
