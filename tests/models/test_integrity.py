from __future__ import annotations

from headdyn.models.integrity import check_integrity


def test_revisions_that_differ_all_count() -> None:
    found = check_integrity({"step0": "a", "step1": "b", "step143000": "c"}, "step143000")
    assert found.duplicates == () and found.excluded == {}


def test_the_end_of_training_keeps_its_name_and_its_copies_lose_theirs() -> None:
    found = check_integrity({"step0": "a", "step1000": "z", "step2000": "b", "step143000": "z"}, "step143000")
    assert found.duplicates == (("step1000", "step143000"),)
    assert found.excluded == {"step1000": "its weights are those of step143000, the end of training"}


def test_of_two_others_nothing_tells_which_is_right() -> None:
    found = check_integrity({"step0": "a", "step1": "a", "step2": "a", "step4": "b"}, "step143000")
    assert list(found.excluded) == ["step0", "step1", "step2"]
    assert found.excluded["step1"] == "its weights are those of step0, step2, so one of the names is wrong"


def test_without_a_trusted_end_no_copy_counts() -> None:
    hashes = {"step8": "z", "step16": "z", "step1": "a", "step2": "a"}
    assert list(check_integrity(hashes).excluded) == ["step8", "step16", "step1", "step2"]
    assert list(check_integrity(hashes, "step16").excluded) == ["step8", "step1", "step2"]
