from __future__ import annotations

from pathlib import Path

import pytest

from headdyn.data.text.stages import once


def test_a_step_is_done_once_and_again_only_if_it_was_cut_short(tmp_path: Path) -> None:
    calls: list[str] = []

    def work() -> dict[str, int]:
        calls.append("work")
        return {"value": 3}

    def cut_short() -> dict[str, int]:
        calls.append("cut")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        once(tmp_path / "w", "step", cut_short)
    for _ in range(3):
        assert once(tmp_path / "w", "step", work) == {"value": 3}
    assert calls == ["cut", "work"]
    assert [file.name for file in (tmp_path / "w").iterdir()] == ["step.done.json"]
