"""Which code a result is of: the commit where there is one, and every file of it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from headdyn.core.source_code import git_revision, source_digest


def test_a_package_in_somebodys_repository_has_no_commit_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    installed, tracked = tmp_path / ".venv" / "source_code.py", tmp_path / "source_code.py"
    installed.parent.mkdir()
    for path in (installed, tracked):
        path.touch()
    for command in (["init", "-q"], ["add", "source_code.py"], ["commit", "-q", "-m", "theirs"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr("headdyn.core.source_code.__file__", str(installed))
    assert git_revision() is None
    monkeypatch.setattr("headdyn.core.source_code.__file__", str(tracked))
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert git_revision() == head[:12]


def test_every_source_counts_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, single, other = tmp_path / "package", tmp_path / "single.py", tmp_path / "other"
    for folder in (package, other):
        folder.mkdir()
        (folder / "code.py").write_text("one")
    single.write_text("one")
    monkeypatch.setattr("headdyn.core.source_code.PACKAGE", package)
    alone, within, outside = ModuleType("single"), ModuleType("package.part"), ModuleType("other")
    alone.__file__, within.__file__, outside.__path__ = str(single), str(package / "code.py"), [str(other)]
    modules = [alone, within, outside]
    digests = [source_digest(), source_digest(modules)]
    assert source_digest([within]) == digests[0] != digests[1]
    for path in (single, package / "code.py", other / "code.py", package / "page.css", other / "names.json"):
        path.write_text("two")
        assert source_digest(modules) not in digests, path
        digests.append(source_digest(modules))
    (package / "code.pyc").write_text("two")
    assert source_digest(modules) == digests[-1]
