"""Power against grades of planting: what is done once, counted by hand, drawn, and refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from headdyn.core.source_code import git_revision
from headdyn.core.store import Store
from headdyn.studies.organisms import power as module
from headdyn.studies.organisms.__main__ import main
from headdyn.studies.organisms.detection import default_settings
from headdyn.studies.organisms.power import DETECTORS, figure, parse_grades, power, summarise
from headdyn.studies.organisms.settings import Organism
from tests.figure_checks import rows as table_rows
from tests.studies.organisms.test_detection import QUICK, small

FOUND = "even/odd found, last checkpoint"


def made(strength: float, found: bool, **planting: Any) -> dict[str, Any]:
    usual = {"strength": strength, "redundancy": 1, "layer": 1, "position": "block"}
    quiet = {
        "kind": "planted",
        "strength_nats": 1.0,
        "found_by_trajectory": False,
        "half_rank": None,
        "all_flips": True,
    }
    row = {"planting": usual | planting, "alignment": "span", "found": found, "onset_off_by": None, **quiet}
    return row | {"even_success": 1.0, "odd_success": 0.0}


def test_power_is_counted_by_grade() -> None:
    rows = [made(0.5, True), made(0.5, False), made(1.0, True), made(1.0, True), made(0.5, True, redundancy=2)]
    base = default_settings("planted", 0)
    grades = {"strength": [0.5, 1.0], "redundancy": [1, 2]}
    of = {(r["grade"], r["value"]): r for r in summarise(rows, grades, base, QUICK) if r["detector"] == FOUND}
    assert {place: (r["yes"], r["suites"]) for place, r in of.items()} == {
        ("strength", 0.5): (1, 2),  # not the one that differs in redundancy too
        ("strength", 1.0): (2, 2),
        ("redundancy", 1): (2, 2),  # the usual strength
    }
    assert of["strength", 1.0]["ci_low"] == pytest.approx(0.025**0.5)
    assert [row["value"] for row in table_rows(figure(list(of.values()), "strength"), "value")] == [50, 100]


def test_suites_of_every_grade_are_done_once_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[float, str, str, int | None]] = []

    def examined(organism: Any, store: Store, analysis: Any) -> dict[str, Any]:
        done.append((organism.strength, organism.position, analysis.alignment, analysis.layer))
        return made(organism.strength, organism.strength > 0.4)

    monkeypatch.setattr(module, "examine", examined)
    grades = parse_grades(["strength=0,1", "position=block,last", "layer=1", "redundancy=1"])
    for _ in range(2):
        summary = power(tmp_path, grades=grades, suites=1, store=Store(tmp_path), settings=small, analysis=QUICK)
    alike = [(1.0, position, by, 1) for position in ("block", "last") for by in ("left", "right", "span")]
    assert sorted(done, key=str) == sorted(
        [(0.0, "block", "span", 1), *alike], key=str
    )  # the usual strength, layer and redundancy: once
    assert json.loads((tmp_path / "power.json").read_text())["summary"] == json.loads(json.dumps(summary))
    (commit,) = {json.loads(path.read_text())["manifest"]["git"] for path in (tmp_path / "suites").iterdir()}
    assert commit == git_revision() and all("manifest" not in row for row in summary)
    more = power(tmp_path, grades={"strength": [0.5]}, suites=1, store=Store(tmp_path), settings=small, analysis=QUICK)
    assert {row["value"] for row in more} == {0, 0.5, 1}, "a summary is of all that is on record"
    assert (tmp_path / "power_strength.svg").exists() and (tmp_path / "power_position.svg").exists()
    assert {row["detector"] for row in summary} <= set(DETECTORS)


def test_a_suite_planted_weakly_in_two_groups_is_examined(tmp_path: Path) -> None:
    """The whole way: trained, analysed at every checkpoint, and summed up."""

    def settings(kind: str, suite: int) -> Organism:
        return dataclasses.replace(small(kind, suite), steps=40, kept="step1000,step64000,step143000")

    summary = power(
        tmp_path / "out", grades={"redundancy": [2]}, suites=1, store=Store(tmp_path), settings=settings, analysis=QUICK
    )
    (row,) = [json.loads(path.read_text()) for path in (tmp_path / "out" / "suites").iterdir()]
    assert row["planting"] == {"strength": 1.0, "redundancy": 2, "layer": 1, "position": "block", "onset": 0.25}
    assert {each["suites"] for each in summary} == {1} and set(DETECTORS) == {each["detector"] for each in summary}


def test_suites_are_numbered_from_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def examined(organism: Any, *_: Any) -> dict[str, Any]:
        done.append(organism.suite)
        return made(organism.strength, False)

    monkeypatch.setattr(module, "examine", examined)
    monkeypatch.setenv("HEADDYN_CACHE", str(tmp_path))
    main(["--suites", "2", "--first", "10", "--grade", "strength=0.5", "--out", str(tmp_path / "out")])
    assert done == [10, 11]


@pytest.mark.parametrize(
    ("grade", "message"),
    [
        ("depth=1,2", "--grade depth=1,2 must be KEY=VALUE,VALUE,… with KEY one of strength, redundancy"),
        ("strength", "--grade strength must be KEY=VALUE"),
        ("redundancy=many", "--grade redundancy=many has a value that is no int"),
        ("layer=7", "model.layer=7 is out of range"),
        ("redundancy=9", "redundancy=9 groups cannot be cut from the 6 heads"),
        ("strength=2", "strength=2.0 must be at most 1"),
        ("position=first", "position='first' must be one of"),
    ],
)
def test_grades_that_cannot_be_are_refused(grade: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--grade", grade])
    assert ended.value.code == 2 and message in capsys.readouterr().err
