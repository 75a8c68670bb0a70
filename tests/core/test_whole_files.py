import os
from pathlib import Path

import pytest

from headdyn.core.whole_files import whole_file


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_written_whole_or_the_earlier_one_remains(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")
    with pytest.raises(OSError, match="no room"), whole_file(path, durable=durable) as file:
        file.write_text("ne")
        assert path.read_text() == "old"
        raise OSError("no room")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("a.csv", "old")]
    with whole_file(path, durable=durable) as file:
        file.write_text("new")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("a.csv", "new")]


def test_what_must_outlive_a_loss_of_power_is_synced_before_and_after_the_rename(tmp_path, monkeypatch) -> None:
    steps = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (steps.append("sync"), sync(descriptor)))
    monkeypatch.setattr(Path, "replace", lambda *paths: (steps.append("rename"), replace(*paths)))
    for durable, expected in ((True, ["sync", "rename", "sync"]), (False, ["rename"])):
        steps.clear()
        with whole_file(tmp_path / "a", durable=durable) as file:
            file.write_bytes(b"a")
        assert steps == expected
