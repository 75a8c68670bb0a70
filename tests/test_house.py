"""docs/house.md lists what is there."""

from __future__ import annotations

from pathlib import Path

from tests.house import HOUSE, ROOT, modules, sentence, with_index
from tests.mutants import BY_HAND, by_hand


def test_every_module_says_what_it_is_in_its_first_sentence() -> None:
    package = ROOT / "headdyn"
    silent = [str(file.relative_to(ROOT)) for file in sorted(package.rglob("*.py")) if not sentence(file)]
    assert {Path(name).name for name in silent} <= {"__init__.py"}
    assert len(modules()) > 80 and all(len(sentence(file)) < 180 for file in modules())


def test_the_index_in_the_document_is_that_of_the_files() -> None:
    text = HOUSE.read_text(encoding="utf-8")
    assert with_index(text) == text, "run `make index`"


def test_the_mistakes_by_hand_are_of_today_s_code() -> None:
    assert len(by_hand()) == len(BY_HAND)  # each asserts that its text stands once in its module
