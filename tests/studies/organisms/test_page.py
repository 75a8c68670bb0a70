"""What was found of a suite is held against what was planted into it."""

from __future__ import annotations

from pathlib import Path

from headdyn.report.sections.quality import Check
from headdyn.studies.organisms import checks
from headdyn.sweep.record import SweepRecord
from tests.report.series_folders import STEPS, emerging, run, scalars, series, verdict

PLANTED = {
    "truth": {
        "organism": "planted",
        "suite": 0,
        "layer": 1,
        "heads": [0, 2],
        "onset": {"step": 35_750.0, "after_revision": "step32000", "by_revision": "step40000"},
    }
}
FINAL, ONSET = "Does the final checkpoint show the known result?", "Is the onset dated where planting began?"


def checks_by_question(folder: Path) -> dict[str, Check]:
    return {check.question: check for check in checks(SweepRecord.read(folder))}


def test_a_suite_with_a_known_answer_is_held_against_it(tmp_path: Path) -> None:
    for name, kind, found, outcome in (
        ("a", "planted", True, "ok"),
        ("b", "planted", False, "fails"),
        ("c", "diffuse", True, "fails"),
        ("d", "diffuse", False, "ok"),
    ):
        truth = {"truth": PLANTED["truth"] | {"organism": kind}}
        check = checks_by_question(emerging(tmp_path / name, verdict(found=found), manifest=truth))[FINAL]
        assert check.verdict == outcome, check
    assert "even/odd must not be found; it was not found" in check.facts


def test_records_from_before_the_truth_was_called_so_are_held_against_it(tmp_path: Path) -> None:
    former = {"organism": PLANTED["truth"]}
    assert checks_by_question(emerging(tmp_path, manifest=former))[FINAL].verdict == "ok"


def test_the_onset_is_held_against_where_planting_began(tmp_path: Path) -> None:
    for name, at, after, outcome in (
        ("a", 64_000, 32_000, "ok"),
        ("b", 143_000, 64_000, "ok"),
        ("c", 1_000, None, "fails"),
        ("d", None, None, "fails"),
    ):
        check = checks_by_question(emerging(tmp_path / name, verdict(at, after), manifest=PLANTED))[ONSET]
        assert check.verdict == outcome, check
    assert checks_by_question(emerging(tmp_path / "e")) == {}


def test_an_end_that_did_not_run_is_not_judged(tmp_path: Path) -> None:
    values = [scalars(0.25, 0.25, 0.0), scalars(0.25, 0.25, 0.0), None, None]
    entries = [run(tmp_path, step, value, manifest=PLANTED) for step, value in zip(STEPS, values, strict=True)]
    own_verdict = verdict(None, None, failed={"step64000": "cut off", "step143000": "cut off"})
    own_verdict["counted"] = own_verdict["counted"][:2]
    found = checks_by_question(series(tmp_path, entries, own_verdict, values))
    assert (found[FINAL].verdict, found[FINAL].facts) == (
        "note",
        "the last checkpoint, step143000, does not count: cut off",
    )
    assert found[ONSET].verdict == "note"
