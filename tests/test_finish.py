import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import headdyn.finish
from headdyn.core.records import HeadTable
from headdyn.finish import finish
from tests.report.folders import measured, run


def jobs_of(entries: Sequence[dict[str, Any]]) -> list[Any]:
    """What finish needs of the checked configurations."""
    return [SimpleNamespace(name=e["name"], factors=e["factors"], series="", analysis={}) for e in entries]


@pytest.fixture
def analysed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Snapshots that were analysed, with a table whose selectivity is step/1000 in place of the real analysis."""
    asked: list[tuple[str, int]] = []

    def analyse(config: Any, step: int, folder: Path, names: Sequence[str]) -> HeadTable:
        asked.append((config.name, step))
        return HeadTable.whole("selectivity", step / 1000, ci_low=0.0, ci_high=1.0, n=128, unit="sequence")

    monkeypatch.setattr(headdyn.finish, "analyse_snapshot", analyse)
    return asked


def test_finish_leaves_the_records_and_the_report(
    tmp_path: Path, analysed: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [run(tmp_path, ordering=o, position=p) for o in ("shuffled", "topic") for p in ("rope", "drope")]
    assert finish(tmp_path, jobs_of(entries), ["-m", "experiment=matrix", "analysis=[loss,attention]"])
    for name in ("sweep.json", "effects.json", "matched_loss.json", "summary.csv", "summary.parquet", "report.html"):
        assert (tmp_path / name).exists()
    command = json.loads((tmp_path / "sweep.json").read_text())["command"]
    assert command == "python -m headdyn.run -m experiment=matrix 'analysis=[loss,attention]'"  # quoted for a shell
    assert "Topic less shuffled, averaged over the other factors" in " ".join(capsys.readouterr().out.split())


def test_finish_tells_of_failed_jobs_and_still_reports(
    tmp_path: Path, analysed: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [run(tmp_path), run(tmp_path, ordering="topic", status="failed")]
    assert not finish(tmp_path, jobs_of(entries))
    assert (tmp_path / "report.html").exists()
    assert "RuntimeError: the loss is no number <b>" in " ".join(capsys.readouterr().out.split())


def test_a_swept_mode_is_a_factor(tmp_path: Path, analysed: list[tuple[str, int]]) -> None:
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
    assert json.loads((tmp_path / "x" / "sweep.json").read_text())["swept"] == ["data_ordering", "mode"]
    rows = json.loads((tmp_path / "x" / "effects.json").read_text())
    (row,) = [r for r in rows if r["factors"] == ["mode"] and r["outcome"] == "loss_nats" and r["kind"] == "contrast"]
    assert row["group"] == "" and row["levels"] == {"mode": ["smoke", "laptop"]}
    assert row["value"] == pytest.approx(0.1)
