from pathlib import Path

import pyarrow.csv
import pytest

from headdyn.report.__main__ import build
from headdyn.sweep.record import write_run_table
from tests.report.folders import run, sweep


def test_the_summary_has_a_row_a_job_and_keeps_reasons(tmp_path: Path) -> None:
    gone = {"selectivity": {"reason": "fewer than two topics occur"}}
    entries = [run(tmp_path, values=gone), run(tmp_path, ordering="topic", status="failed")]
    write_run_table(sweep(tmp_path, entries))
    rows = pyarrow.csv.read_csv(tmp_path / "summary.csv").to_pylist()
    assert [row["status"] for row in rows] == ["complete", "failed"]
    assert (
        rows[0]["loss_nats"] == 2.4
        and rows[0]["loss_nats_ci_low"] == pytest.approx(2.39)
        and rows[0]["attention"] == "mha"
    )
    assert rows[0]["selectivity"] in (None, "") and rows[0]["selectivity_reason"] == "fewer than two topics occur"
    assert rows[1]["error"] == "RuntimeError: the loss is no number <b>" and rows[1]["loss_nats"] is None
    assert not any("snapshot_losses" in name for name in rows[0])


def test_a_merged_sweep_has_the_rows_of_all(tmp_path: Path) -> None:
    parts = [sweep(tmp_path / str(seed), [run(tmp_path / str(seed), seed=seed)]) for seed in (0, 1)]
    build(parts, tmp_path / "both")
    rows = pyarrow.csv.read_csv(tmp_path / "both" / "summary.csv").to_pylist()
    assert [(row["seed"], row["loss_nats"]) for row in rows] == [(0, 2.4), (1, 2.4)]
