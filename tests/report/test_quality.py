from pathlib import Path
from typing import Any

import numpy as np

from headdyn.core.json_files import write_json
from headdyn.report.sections.quality import checks
from headdyn.sweep.record import SweepRecord
from tests.report.folders import measured, run, sweep


def verdicts(folder: Path, *entries: dict[str, Any]) -> dict[str, tuple[str, str]]:
    found = checks(SweepRecord.read(sweep(folder, entries)))
    return {check.question: (check.verdict, check.facts) for check in found}


def test_a_sound_sweep(tmp_path: Path) -> None:
    found = verdicts(tmp_path, run(tmp_path, seed=0), run(tmp_path, seed=1))
    assert not [question for question, (verdict, _) in found.items() if verdict == "fails"]
    assert found["Does any model beat the Bayes floor?"][1].endswith(
        "is 0.400 [0.390, 0.410] nats above the floor on the same sequences"
    )
    assert found["Does every value lie in the range its metric declares?"][0] == "ok"
    assert found["Are there enough seeds for intervals of factors?"] == ("ok", "2 seeds (0, 1)")


def test_a_model_below_the_floor_fails(tmp_path: Path) -> None:
    found = verdicts(tmp_path, run(tmp_path, values={"excess_nats": measured(-0.05)}))
    assert found["Does any model beat the Bayes floor?"][0] == "fails"
    within_error = verdicts(tmp_path / "b", run(tmp_path / "b", values={"excess_nats": measured(-0.005)}))
    assert within_error["Does any model beat the Bayes floor?"][0] == "ok"


def test_a_value_outside_its_range_fails(tmp_path: Path) -> None:
    found = verdicts(tmp_path, run(tmp_path, selectivity_LH=np.array([[0.7, 0.1]])))  # within_ratio becomes 1.2
    verdict, facts = found["Does every value lie in the range its metric declares?"]
    assert verdict == "fails" and "within_ratio = 1.2" in facts


def test_tokens_that_tell_the_topic_are_noted(tmp_path: Path) -> None:
    found = verdicts(tmp_path, run(tmp_path, values={"probe_token_identity": measured(0.6)}))
    assert found["Do single tokens tell the topic?"][0] == "note"


def test_absent_numbers_are_named_with_their_reasons(tmp_path: Path) -> None:
    gone = {"selectivity": {"reason": "fewer than two topics occur"}}
    verdict, facts = verdicts(tmp_path, run(tmp_path, values=gone))["Is any number absent?"]
    assert verdict == "note" and "selectivity: fewer than two topics occur" in facts


def test_other_code_and_other_corpora_are_noticed(tmp_path: Path) -> None:
    entries = [run(tmp_path), run(tmp_path, ordering="topic")]
    folder = tmp_path / entries[1]["name"]
    manifest = SweepRecord.read(sweep(tmp_path, entries)).jobs[1].run.manifest
    write_json(
        folder / "manifest.json",
        {**manifest, "git": "fedcba+", "stages": {**manifest["stages"], "corpus": {"key": "x", "built": True}}},
    )
    found = verdicts(tmp_path, *entries)
    assert found["The same code everywhere?"] == ("note", "0123456789ab | fedcba+; + means uncommitted changes")
    assert found["Do all runs of a seed see the same corpus?"][0] == "fails"


def test_unfinished_jobs_fail_the_first_check(tmp_path: Path) -> None:
    found = verdicts(tmp_path, run(tmp_path), run(tmp_path, ordering="topic", status="failed"))
    assert found["Did every job finish?"] == ("fails", "1 of 2 jobs; not: topic")
