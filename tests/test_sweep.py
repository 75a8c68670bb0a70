import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import headdyn.sweep
from headdyn.core.records import HeadTable
from headdyn.core.run_folder import RunRecord
from headdyn.sweep import finish, matched_loss, matched_steps
from tests.report.folders import measured, run


def jobs_of(entries: Sequence[dict[str, Any]]) -> list[Any]:
    """What finish needs of the checked configurations."""
    recalibrated = {"drope": object(), "rope_control": object()}
    return [
        SimpleNamespace(
            name=entry["name"],
            factors=entry["factors"],
            trains=True,
            series="",
            analysis={},
            position_enc=SimpleNamespace(recalibration=recalibrated.get(entry["factors"]["position_enc"])),
        )
        for entry in entries
    ]


@pytest.fixture
def analysed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Snapshots that were analysed, with a table whose selectivity is step/1000 in place of the real analysis."""
    asked: list[tuple[str, int]] = []

    def analyse(config: Any, step: int, folder: Path, names: Sequence[str]) -> HeadTable:
        asked.append((config.name, step))
        return HeadTable.whole("selectivity", step / 1000, ci_low=0.0, ci_high=1.0, n=128, unit="sequence")

    monkeypatch.setattr(headdyn.sweep, "analyse_snapshot", analyse)
    return asked


def test_the_higher_arm_is_taken_at_its_end_and_the_other_at_the_nearest_loss() -> None:
    losses = {"shuffled": {0: 4.1, 100: 3.2, 200: 2.9, 400: 2.4}, "topic": {0: 4.0, 100: 3.9, 200: 3.05, 400: 3.0}}
    assert matched_steps(losses) == {"topic": 400, "shuffled": 200}
    assert matched_steps({"shuffled": losses["topic"], "topic": losses["shuffled"]}) == {"topic": 200, "shuffled": 400}


def test_pairs_at_matched_loss(tmp_path: Path, analysed: list[tuple[str, int]]) -> None:
    slow = {"snapshot_losses_nats": {"0": 4.1, "100": 3.6, "200": 3.1}}
    entries = [run(tmp_path), run(tmp_path, ordering="topic", values=slow), run(tmp_path, position="drope")]
    whole = HeadTable.whole("selectivity", 0.3, ci_low=0.2, ci_high=0.4, n=128, unit="sequence")
    whole.write(tmp_path / entries[1]["name"] / "heads.parquet")
    configs = {job.name: job for job in jobs_of(entries)}
    (row,) = matched_loss([RunRecord.read(tmp_path / entry["name"]) for entry in entries], configs)
    # Topic order ended at 3.1; of the shuffled arm's 4.1, 3.2 and 2.4 the nearest is step 100's.
    assert row["steps"] == {"shuffled": 100, "topic": 200}
    assert row["losses_nats"] == {"shuffled": 3.2, "topic": 3.1}
    assert row["loss_difference"] == pytest.approx(-0.1)
    assert row["difference"] == pytest.approx(0.3 - 0.1)
    assert row["runs"]["topic"] == entries[1]["name"]
    assert analysed == [(entries[0]["name"], 100)]  # an arm at its end has been analysed already


def test_arms_that_differ_in_anything_but_order_are_no_pair(tmp_path: Path, analysed: list[tuple[str, int]]) -> None:
    entries = [run(tmp_path, seed=0), run(tmp_path, seed=1, ordering="topic")]
    configs = {job.name: job for job in jobs_of(entries)}
    assert matched_loss([RunRecord.read(tmp_path / entry["name"]) for entry in entries], configs) == []
    assert analysed == []


def test_finish_leaves_the_records_and_the_report(
    tmp_path: Path, analysed: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [run(tmp_path, ordering=o, position=p) for o in ("shuffled", "topic") for p in ("rope", "drope")]
    assert finish(tmp_path, jobs_of(entries), ["-m", "experiment=matrix", "analysis=[loss,attention]"])
    for name in ("sweep.json", "effects.json", "matched_loss.json", "summary.csv", "summary.parquet", "report.html"):
        assert (tmp_path / name).exists()
    command = json.loads((tmp_path / "sweep.json").read_text())["command"]
    assert command == "python -m headdyn.run -m experiment=matrix 'analysis=[loss,attention]'"  # quoted for a shell
    assert "Does the order of the data matter?" in capsys.readouterr().out


def test_finish_tells_of_failed_jobs_and_still_reports(
    tmp_path: Path, analysed: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [run(tmp_path), run(tmp_path, ordering="topic", status="failed")]
    assert not finish(tmp_path, jobs_of(entries))
    assert (tmp_path / "report.html").exists()
    assert "RuntimeError: the loss is no number <b>" in " ".join(capsys.readouterr().out.split())


def test_runs_that_vary_in_something_else_do_not_stop_the_report(
    tmp_path: Path, analysed: list[tuple[str, int]]
) -> None:
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
    assert finish(tmp_path / "x", jobs_of(entries))
    rows = json.loads((tmp_path / "x" / "effects.json").read_text())
    assert {row["group"] for row in rows} == {"smoke", "laptop"}
