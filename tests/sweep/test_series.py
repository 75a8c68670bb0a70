"""Analyses of whole series that are stopped: they go on to the same records, unless what they read has changed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headdyn.analysis.series import prediction
from headdyn.analysis.series.emergence import Emergence
from headdyn.analysis.series.head_matching import save_circuits
from headdyn.analysis.series.head_roles import HeadRoles
from headdyn.analysis.series.points import CIRCUITS
from headdyn.core import kept_parts, progress
from headdyn.core.records import Findings, HeadTable
from headdyn.core.run_folder import KEPT_PARTS, LOG, RunFolder, RunRecord
from headdyn.core.store import StageInterruptedError
from headdyn.sweep import series
from headdyn.sweep.record import SERIES_SECONDS, VERDICT
from headdyn.sweep.series import SeriesRuns, judge_series
from tests.small_models import MHA, drawn

REVISIONS = ("step0", "step10", "step100")
ROLES = ("previous_token", "induction")
ANALYSES = {
    "head_roles": HeadRoles(least=dict.fromkeys(ROLES, 0.2), relabellings=999),  # 2 × 2 roles × 2 earlier checkpoints
    "emergence": Emergence(bootstrap_draws=100, relabellings=99),  # matches heads of three pairs of checkpoints
}
PARTS = 8 + 3


def checkpoint(folder: Path, number: int) -> RunRecord:
    """A run of a checkpoint with attention statistics of three layers, and the circuits of one."""
    generator = np.random.default_rng(number)
    common = {"null": 0.05, "n": 9, "unit": "sequence"}
    heads = [HeadTable.per_head(role, generator.random((3, 4)), **common) for role in ROLES]
    facts = {"name": folder.name, "factors": {}, "machine": {}, "config": {}, "checkpoint": {"state_hash": f"{number}"}}
    with RunFolder(folder, facts) as record:
        record.add("attention", Findings(table=HeadTable.concat(heads)), step=int(folder.name[4:]))
        save_circuits(drawn(MHA, number), 1, record.path / CIRCUITS)
    return RunRecord.read(folder)


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Judges a series in a folder until so many parts are computed; returns how many were."""
    runs = [checkpoint(tmp_path / "runs" / revision, number) for number, revision in enumerate(REVISIONS)]
    computed: list[bytes] = []
    monkeypatch.setattr(kept_parts, "SAVE_EVERY_SECONDS", 0)
    add = kept_parts._Saver.add
    monkeypatch.setattr(kept_parts._Saver, "add", lambda *given: (computed.append(given[2]), add(*given))[1])

    def judge(folder: str, stop_after: float = np.inf, seed: int = 0) -> int:
        computed.clear()
        (tmp_path / folder / "figures").mkdir(parents=True, exist_ok=True)
        both = SeriesRuns(runs=runs, factors={}, revisions=REVISIONS, analyses=ANALYSES, seed=seed)
        judge_series(tmp_path / folder, [both], lambda: len(computed) >= stop_after)
        return len(computed)

    return judge


def records(folder: Path) -> dict[str, bytes]:
    """Everything that was written, but seconds, logs and parts."""
    names = (SERIES_SECONDS, LOG, KEPT_PARTS)
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if not set(names).intersection(path.relative_to(folder).parts)
    }


@pytest.mark.parametrize("stop_after", [1, 5, PARTS - 1])
def test_a_stopped_series_goes_on_to_the_same_records(
    tmp_path: Path, judged: Callable[..., int], stop_after: int, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 0)
    with caplog.at_level(logging.INFO):
        assert judged("whole") == PARTS
    for step in ("reading checkpoints", "predicting the last ranks of induction", "matching heads"):
        assert any(line.startswith(f"{step}: ") and " s left" in line for line in caplog.messages), step
    with pytest.raises(StageInterruptedError):
        judged("stopped", stop_after)
    assert not records(tmp_path / "stopped") and not (tmp_path / "stopped" / LOG).exists()  # nothing half-made
    assert judged("stopped") == PARTS - stop_after
    whole = records(tmp_path / "whole")
    assert {VERDICT, "head_prediction.parquet", "head_matches.parquet"} <= whole.keys()
    assert records(tmp_path / "stopped") == whole


def test_seconds_hold_those_of_the_try_that_was_stopped(
    tmp_path: Path, judged: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, interval = [0.0], prediction.interval

    def in_a_second(*arguments):
        clock[0] += 1
        return interval(*arguments)

    monkeypatch.setattr(prediction, "interval", in_a_second)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with pytest.raises(StageInterruptedError):
        judged("stopped", 3)
    judged("stopped")
    took = {
        entry["analysis"]: entry["seconds"] for entry in json.loads((tmp_path / "stopped" / SERIES_SECONDS).read_text())
    }
    assert took == {"head_roles": 8, "emergence": 0} and clock == [8]


def test_an_earlier_verdict_stays_when_a_repeat_is_stopped_and_goes_when_it_fails(
    tmp_path: Path, judged: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged("folder")
    before = (tmp_path / "folder" / VERDICT).read_bytes()

    def reading(error: Exception) -> None:
        def fails(*_):
            raise error

        monkeypatch.setattr(series, "read_point", fails)

    reading(StageInterruptedError("asked to stop"))
    with pytest.raises(StageInterruptedError):
        judged("folder")
    assert (tmp_path / "folder" / VERDICT).read_bytes() == before
    reading(ValueError("heads.parquet is damaged"))
    with pytest.raises(ValueError, match="damaged"):
        judged("folder")
    assert not (tmp_path / "folder" / VERDICT).exists()
    assert "heads.parquet is damaged" in (tmp_path / "folder" / LOG).read_text()


@pytest.mark.parametrize("changed", ["the rows of a checkpoint", "the circuits of a checkpoint", "seed"])
def test_what_was_kept_of_other_checkpoints_is_not_taken(
    tmp_path: Path, judged: Callable[..., int], changed: str
) -> None:
    with pytest.raises(StageInterruptedError):
        judged("stopped", PARTS - 1)
    folder, seed = tmp_path / "runs" / REVISIONS[1], int(changed == "seed")
    if changed == "the rows of a checkpoint":
        table = HeadTable.read(folder / "heads.parquet")
        HeadTable.from_rows([{**row, "value": row["value"] / 2} for row in table.rows()]).write(
            folder / "heads.parquet"
        )
    elif changed == "the circuits of a checkpoint":
        save_circuits(drawn(MHA, 9), 1, folder / CIRCUITS)
    assert judged("stopped", seed=seed) == PARTS
    judged("fresh", seed=seed)
    assert records(tmp_path / "stopped") == records(tmp_path / "fresh")
