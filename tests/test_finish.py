import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headdyn.core.records import HeadTable
from headdyn.core.run_folder import snapshot_table
from headdyn.finish import finish
from headdyn.workers import Task
from tests.report.folders import measured, run


def jobs_of(entries: Sequence[dict[str, Any]]) -> list[Any]:
    """What finish needs of the checked configurations."""
    return [SimpleNamespace(name=e["name"], factors=e["factors"], series="", analysis={}) for e in entries]


class Workers:
    """In place of worker processes: a snapshot's table whose selectivity is step/1000, not the real analysis."""

    def __init__(self) -> None:
        self.analysed: list[tuple[str, int]] = []

    def dismiss(self) -> None:
        pass

    def do(self, tasks: Sequence[Task]) -> bool:
        for task in tasks:
            config, step, folder, _ = task.arguments
            self.analysed.append((config.name, step))
            table = HeadTable.whole("selectivity", step / 1000, ci_low=0.0, ci_high=1.0, n=128, unit="sequence")
            table.write(snapshot_table(folder, step))
        return False


def test_finish_leaves_the_records_and_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [run(tmp_path, ordering=o, position=p) for o in ("shuffled", "topic") for p in ("rope", "drope")]
    assert finish(tmp_path, jobs_of(entries), Workers(), ["-m", "experiment=matrix", "analysis=[loss,attention]"]) == 0
    for name in ("sweep.json", "effects.json", "matched_loss.json", "summary.csv", "summary.parquet", "report.html"):
        assert (tmp_path / name).exists()
    command = json.loads((tmp_path / "sweep.json").read_text())["command"]
    assert command == "python -m headdyn.run -m experiment=matrix 'analysis=[loss,attention]'"  # quoted for a shell
    assert "Topic less shuffled, averaged over the other factors" in " ".join(capsys.readouterr().out.split())


def test_finish_tells_of_failed_jobs_and_still_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [run(tmp_path), run(tmp_path, ordering="topic", status="failed")]
    assert finish(tmp_path, jobs_of(entries), Workers()) == 1
    assert (tmp_path / "report.html").exists()
    assert "RuntimeError: the loss is no number <b>" in " ".join(capsys.readouterr().out.split())


def test_a_swept_mode_is_a_factor(tmp_path: Path) -> None:
    entries = [
        run(
            tmp_path / "x",
            ordering=o,
            mode=m,
            settings={"train": {"steps": s}},
            values={"loss_nats": measured(2 + s / 1000)},
        )
        for m, s in (("smoke", 100), ("laptop", 200))
        for o in ("shuffled", "topic")
    ]
    assert finish(tmp_path / "x", jobs_of(entries), Workers()) == 0
    assert json.loads((tmp_path / "x" / "sweep.json").read_text())["swept"] == ["data_ordering", "mode"]
    rows = json.loads((tmp_path / "x" / "effects.json").read_text())
    (row,) = [r for r in rows if r["factors"] == ["mode"] and r["outcome"] == "loss_nats" and r["kind"] == "contrast"]
    assert row["group"] == "" and row["levels"] == {"mode": ["smoke", "laptop"]}
    assert row["value"] == pytest.approx(0.1)


def test_a_snapshots_table_that_was_cut_off_is_made_again_and_a_whole_one_is_kept(tmp_path: Path) -> None:
    slow = {"snapshot_losses_nats": {"0": 4.1, "100": 3.6, "200": 3.1}}
    entries = [run(tmp_path), run(tmp_path, ordering="topic", values=slow)]
    first, second, third = Workers(), Workers(), Workers()
    assert finish(tmp_path, jobs_of(entries), first) == 0
    assert finish(tmp_path, jobs_of(entries), second) == 0
    assert len(first.analysed) == 1 and second.analysed == []
    (table,) = tmp_path.glob("*/heads_step*.parquet")
    table.write_bytes(table.read_bytes()[:200])
    assert finish(tmp_path, jobs_of(entries), third) == 0
    assert third.analysed == first.analysed
    assert HeadTable.read(table).rows()[0]["metric"] == "selectivity"
