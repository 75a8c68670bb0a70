from pathlib import Path
from typing import Any

from headdyn.report.sections.quality import Check, checks, series_checks
from headdyn.sweep.merge import merge
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_record import collect_series, read_series
from tests.report.series_folders import STEPS, emerging, run, scalars, series, verdict


def checks_by_question(folder: Path) -> dict[str, Check]:
    return {check.question: check for check in series_checks(read_series(SweepRecord.read(folder)))}


def test_early_checkpoints_are_expected_near_zero(tmp_path: Path) -> None:
    question = "Is the strength of Δ near chance at early checkpoints?"
    (tmp_path / "a").mkdir()
    assert checks_by_question(emerging(tmp_path / "a"))[question].verdict == "ok"
    values = [scalars(0.25, 0.25, 1.0), *[scalars(0.25, 0.25, 0.0)] * 3]
    entries = [run(tmp_path, step, value) for step, value in zip(STEPS, values, strict=True)]
    check = checks_by_question(series(tmp_path, entries, verdict(None, None), values, strength_nats_band=[2.0] * 4))[
        question
    ]
    assert (
        check.verdict == "note"
        and "1 of 1 intervals in the first 10 % of training exclude chance: step1000" in check.facts
    )


def test_checkpoints_that_are_not_what_they_say_fail(tmp_path: Path) -> None:
    question = "Were the checkpoints loaded, and are they different ones?"
    (tmp_path / "a").mkdir()
    ok = checks_by_question(emerging(tmp_path / "a"))[question]
    assert (ok.verdict, ok.facts) == ("ok", "4 states hashed, 4 distinct; none excluded, none failed")
    for name, told, fact in (
        ("b", {"duplicates": [["step1000", "step32000"]]}, "step1000 = step32000 have the same weights"),
        ("c", {"failed": {"step1000": "cut off"}}, "step1000 did not load or run: cut off"),
        ("d", {"unhashed": ["step1000"]}, "no hash of step1000"),
    ):
        (tmp_path / name).mkdir()
        check = checks_by_question(emerging(tmp_path / name, verdict(**told)))[question]
        assert check.verdict == "fails" and fact in check.facts


def test_a_dtype_that_is_not_stated_fails(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert checks_by_question(emerging(tmp_path / "a"))["Is the dtype stated?"].verdict == "ok"
    silent = {"checkpoint": {"state_hash": "0"}}
    assert checks_by_question(emerging(tmp_path, manifest=silent))["Is the dtype stated?"].verdict == "fails"


def test_repeatability_is_only_said_to_be_verified_where_something_was_repeated(tmp_path: Path) -> None:
    question = "Are the results repeatable?"
    for name in "abc":
        (tmp_path / name).mkdir()
    one, same = emerging(tmp_path / "a"), emerging(tmp_path / "b", protocol="original")
    alone = checks_by_question(one)[question]
    assert alone.verdict == "note" and "not verified here" in alone.facts
    merge([one, same], tmp_path / "ab")
    collect_series([one, same]).write(tmp_path / "ab")
    twice = checks_by_question(tmp_path / "ab")[question]
    assert twice.verdict == "ok"
    assert (
        "4 sets of equal weights measured more than once: the largest difference among 36 numbers is 0" in twice.facts
    )
    changed: list[dict[str, Any]] = [{"plain_nats": {"value": -1.25}}, {}, {}, {}]
    other = emerging(tmp_path / "c", protocol="original", more=changed)
    merge([one, other], tmp_path / "ac")
    collect_series([one, other]).write(tmp_path / "ac")
    apart = checks_by_question(tmp_path / "ac")[question]
    assert apart.verdict == "fails" and "0.2500" in apart.facts


def test_checkpoints_are_not_asked_for_seeds_of_a_design(tmp_path: Path) -> None:
    questions = [check.question for check in checks(SweepRecord.read(emerging(tmp_path)))]
    assert "Are there enough seeds for intervals of factors?" not in questions
    assert "Which runs share a training?" not in questions
    assert "Did every job finish?" in questions
