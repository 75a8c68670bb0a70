from __future__ import annotations

import logging

import pytest

from headdyn.core import progress as progress_module
from headdyn.core.progress import Progress


def test_progress_is_logged_now_and_then(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 5.0, 20.0, 25.0, 40.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(now))
    progress = Progress("reading", "documents", 110)
    progress.skip(10)  # done before: of the sum, and not of the rate
    with caplog.at_level(logging.INFO):
        for _ in range(4):
            progress.add(10)
    assert [record.getMessage() for record in caplog.records] == [
        "reading: 30 documents of 110, 80 s left, 1 a second",
        "reading: 50 documents of 110, 60 s left, 1 a second",
    ]
