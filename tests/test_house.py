"""docs/house.md lists what is there."""

from __future__ import annotations

from pathlib import Path

from tests.house import ROOT, modules, sentence


def test_every_module_says_what_it_is_in_its_first_sentence() -> None:
    package = ROOT / "headdyn"
    silent = [str(file.relative_to(ROOT)) for file in sorted(package.rglob("*.py")) if not sentence(file)]
    assert {Path(name).name for name in silent} <= {"__init__.py"}
    assert len(modules()) > 80 and all(len(sentence(file)) < 180 for file in modules())
