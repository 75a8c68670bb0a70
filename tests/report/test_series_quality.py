from pathlib import Path
from typing import Any

from headdyn.report.quality import Check, checks
from headdyn.report.series.quality import series_checks
from headdyn.report.series.record import collect_series, read_series
from headdyn.sweep.merge import merge
from headdyn.sweep.record import SweepRecord
from tests.report.series_folders import STEPS, emerging, run, scalars, series, verdict

SEED = {"seed_strength": {"value": 1.0, "null": 0.0, "n": 1, "unit": "prompt"}}
PLANTED = {
    "organism": {
        "organism": "planted",
        "suite": 0,
        "layer": 1,
        "heads": [0, 2],
        "onset": {"step": 35_750.0, "after_revision": "step32000", "by_revision": "step40000"},
    }
}


def asked(folder: Path) -> dict[str, Check]:
    return {check.question: check for check in series_checks(read_series(SweepRecord.read(folder)))}


def final(folder: Path) -> Check:
    return asked(folder)["Does the final checkpoint show the known result?"]


def test_without_a_known_result_the_end_is_not_judged(tmp_path: Path) -> None:
    check = final(emerging(tmp_path))
    assert (check.verdict, check.facts[:33]) == ("note", "no known result for some/suite, s")


def test_the_end_is_held_against_the_studys_figure_for_its_model(tmp_path: Path) -> None:
    for value, outcome in ((1.0, "ok"), (0.0, "fails")):
        folder = tmp_path / outcome
        folder.mkdir()
        told = {"seed_strength": {"value": value, "n": 1, "unit": "prompt"}}
        more: list[dict[str, Any]] = [told] * 4
        check = final(emerging(folder, model="EleutherAI/pythia-160m", protocol="seed", more=more))
        assert check.verdict == outcome and "the study reports +1" in check.facts
    corrected = tmp_path / "corrected"
    corrected.mkdir()
    check = final(emerging(corrected, model="EleutherAI/pythia-160m"))
    assert check.verdict == "note" and "not run under protocol=seed" in check.facts


def test_a_suite_with_a_known_answer_is_held_against_it(tmp_path: Path) -> None:
    for name, kind, found, outcome in (
        ("a", "planted", True, "ok"),
        ("b", "planted", False, "fails"),
        ("c", "diffuse", True, "fails"),
        ("d", "diffuse", False, "ok"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        truth = {"organism": PLANTED["organism"] | {"organism": kind}}
        check = final(emerging(folder, verdict(found=found), manifest=truth))
        assert check.verdict == outcome, check
    assert "even/odd must not be found; it was not found" in check.facts


def test_the_onset_is_held_against_where_planting_began(tmp_path: Path) -> None:
    question = "Is the onset dated where planting began?"
    for name, at, after, outcome in (
        ("a", 64_000, 32_000, "ok"),
        ("b", 143_000, 64_000, "ok"),
        ("c", 1_000, None, "fails"),
        ("d", None, None, "fails"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        check = asked(emerging(folder, verdict(at, after), manifest=PLANTED))[question]
        assert check.verdict == outcome, check
    (tmp_path / "e").mkdir()
    assert question not in asked(emerging(tmp_path / "e"))


def test_an_end_that_did_not_run_is_not_judged(tmp_path: Path) -> None:
    values = [scalars(0.25, 0.25, 0.0), scalars(0.25, 0.25, 0.0), None, None]
    entries = [run(tmp_path, step, value, manifest=PLANTED) for step, value in zip(STEPS, values, strict=True)]
    told = verdict(None, None, failed={"step64000": "cut off", "step143000": "cut off"})
    told["counted"] = told["counted"][:2]
    found = asked(series(tmp_path, entries, told, values))
    check = found["Does the final checkpoint show the known result?"]
    assert (check.verdict, check.facts) == ("note", "the last checkpoint, step143000, does not count: cut off")
    assert found["Is the onset dated where planting began?"].verdict == "note"


def test_early_checkpoints_are_expected_near_zero(tmp_path: Path) -> None:
    question = "Are early checkpoints near zero (strength_nats)?"
    (tmp_path / "a").mkdir()
    assert asked(emerging(tmp_path / "a"))[question].verdict == "ok"
    values = [scalars(0.25, 0.25, 1.0), *[scalars(0.25, 0.25, 0.0)] * 3]
    entries = [run(tmp_path, step, value) for step, value in zip(STEPS, values, strict=True)]
    check = asked(series(tmp_path, entries, verdict(None, None), values))[question]
    assert (
        check.verdict == "note" and "1 of 1 intervals in the first 10 % of training exclude 0: step1000" in check.facts
    )


def test_checkpoints_that_are_not_what_they_say_fail(tmp_path: Path) -> None:
    question = "Were the checkpoints loaded, and are they different ones?"
    (tmp_path / "a").mkdir()
    ok = asked(emerging(tmp_path / "a"))[question]
    assert (ok.verdict, ok.facts) == ("ok", "4 states hashed, 4 distinct; none excluded, none failed")
    for name, told, fact in (
        ("b", {"duplicates": [["step1000", "step32000"]]}, "step1000 = step32000 have the same weights"),
        ("c", {"failed": {"step1000": "cut off"}}, "step1000 did not load or run: cut off"),
        ("d", {"unhashed": ["step1000"]}, "no hash of step1000"),
    ):
        (tmp_path / name).mkdir()
        check = asked(emerging(tmp_path / name, verdict(**told)))[question]
        assert check.verdict == "fails" and fact in check.facts


def test_a_dtype_that_is_not_stated_fails(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert asked(emerging(tmp_path / "a"))["Is the dtype stated?"].verdict == "ok"
    silent = {"checkpoint": {"state_hash": "0"}}
    assert asked(emerging(tmp_path, manifest=silent))["Is the dtype stated?"].verdict == "fails"


def test_repeatability_is_only_said_to_be_verified_where_something_was_repeated(tmp_path: Path) -> None:
    question = "Are the results repeatable?"
    for name in "abc":
        (tmp_path / name).mkdir()
    one, same = emerging(tmp_path / "a"), emerging(tmp_path / "b", protocol="seed")
    alone = asked(one)[question]
    assert alone.verdict == "note" and "not verified here" in alone.facts
    merge([one, same], tmp_path / "ab")
    collect_series([one, same]).write(tmp_path / "ab")
    twice = asked(tmp_path / "ab")[question]
    assert twice.verdict == "ok"
    assert (
        "4 sets of equal weights measured more than once: the largest difference among 12 numbers is 0" in twice.facts
    )
    changed: list[dict[str, Any]] = [{"plain_nats": {"value": -1.25}}, {}, {}, {}]
    other = emerging(tmp_path / "c", protocol="seed", more=changed)
    merge([one, other], tmp_path / "ac")
    collect_series([one, other]).write(tmp_path / "ac")
    apart = asked(tmp_path / "ac")[question]
    assert apart.verdict == "fails" and "0.2500" in apart.facts


def test_checkpoints_are_not_asked_for_seeds_of_a_design(tmp_path: Path) -> None:
    questions = [check.question for check in checks(SweepRecord.read(emerging(tmp_path)))]
    assert "Are there enough seeds for intervals of factors?" not in questions
    assert "Which runs share a training?" not in questions
    assert "Did every job finish?" in questions
