from __future__ import annotations

import logging
from pathlib import Path

import pytest

from headdyn.data.text import stages
from headdyn.data.text.stages import Progress, Stages


def test_a_step_is_done_once_and_again_only_if_it_was_cut_short(tmp_path: Path) -> None:
    calls: list[str] = []

    def work() -> dict[str, int]:
        calls.append("work")
        return {"value": 3}

    def cut_short() -> dict[str, int]:
        calls.append("cut")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path / "w").once("step", cut_short)
    for _ in range(3):
        assert Stages(tmp_path / "w").once("step", work) == {"value": 3}
    assert calls == ["cut", "work"]
    assert [file.name for file in (tmp_path / "w").iterdir()] == ["step.done.json"]


def test_progress_is_logged_now_and_then(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 5.0, 20.0, 25.0, 40.0])
    monkeypatch.setattr(stages.time, "monotonic", lambda: next(now))
    progress = Progress("reading", "documents", 110)
    progress.skip(10)  # done before: of the sum, and not of the rate
    with caplog.at_level(logging.INFO):
        for _ in range(4):
            progress.add(10)
    assert [record.getMessage() for record in caplog.records] == [
        "reading: 30 documents of 110, 80 s left, 1 a second",
        "reading: 50 documents of 110, 60 s left, 1 a second",
    ]
