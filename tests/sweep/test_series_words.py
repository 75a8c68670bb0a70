from pathlib import Path
from typing import Any

import pytest

from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_record import read_series
from headdyn.sweep.series_words import (
    counted,
    duration,
    headline,
    heads,
    interval,
    order,
    other_measures,
    split_answer,
    stage,
)
from tests.report.series_folders import emerging, judgement_at, verdict


def only(root: Path, own_verdict: dict[str, Any] | None = None) -> Any:
    return read_series(SweepRecord.read(emerging(root, own_verdict)))[0]


def test_an_emergence_is_told_as_an_interval_with_its_class_and_pace(tmp_path: Path) -> None:
    lead, *details = split_answer(only(tmp_path))
    assert lead.startswith("Yes: even/odd specialisation emerges after step 32 000 and by step 64 000")
    assert "22 % to 45 % of training" in lead and "mid, or early" in lead
    assert "p = 0.33" in lead and "the least that so many splits can give" in lead
    assert details == ["A scan over all splits ranks even/odd first."]


def test_how_long_a_rise_took_is_told_by_its_bounds_and_in_older_records_by_one_interval() -> None:
    old = {"jump_steps": [32_000, 64_000], "jump_width_share": 32 / 143, "jump_share": 0.75}
    new = old | {"rise_10_to_90_steps": [16_000, 64_000], "rise_10_to_90_shares": [0.0, 48 / 143]}
    assert duration(new) == "from 10 to 90 % in 0 % to 34 % of training, within steps 16 000 to 64 000"
    assert duration(old) == "steps 32 000 to 64 000, 22 % of training, hold 75 % of the rise"


def test_heads_that_took_each_others_place_are_named(tmp_path: Path) -> None:
    shares = {"kept_to_next": {"1-2": 1.0}, "kept_to_last": {"1": 1.0}, "chance": 0.25}
    moved = {"1": [[0, 2, 0.93], [2, 0, 0.9], [1, 3, 0.1]]}
    own_verdict = verdict(
        heads=shares | {"by_behaviour": {**shares, "kept_to_next": {"1-2": 0.5}, "moved_by_last": moved}}
    )
    by_weights, by_behaviour = heads(only(tmp_path, own_verdict))
    assert "100 % of the heads are most like the head of their own index (chance 25 %)" in by_weights
    assert by_behaviour == (
        "By what they do, 50 % (chance 25 %). From the first checkpoint to the last, head 0 does what head 2 did and "
        "head 2 does what head 0 did (correlation of 0.5 or more)."
    )


def test_the_order_of_measures_is_told_with_their_intervals(tmp_path: Path) -> None:
    intervals = {"strength_nats": [1_000, 32_000], "strength": [32_000, 64_000]}
    pair = {"intervals": intervals, "surely_before": [["strength_nats", "strength"]]}
    one = only(tmp_path, verdict(order={"half_height": pair, "first_departure": {**pair, "surely_before": []}}))
    departure, half = order(one)
    names = [one.metric(name).label for name in intervals]
    assert departure.endswith("These intervals overlap, so that no order is certain.")
    assert half.startswith(f"By half height, in steps: {names[0]} (1 000, 32 000], {names[1]} (32 000, 64 000]")
    assert half.endswith(f"So {names[0]} came before {names[1]}.")
    assert order(only(tmp_path / "other")) == []


def test_none_is_said_to_be_none(tmp_path: Path) -> None:
    one = only(tmp_path, verdict(None, None))
    lead, *rest = split_answer(one)
    assert lead.startswith("Not beyond chance") and "p = 1.00" in lead and "Yes" not in lead
    assert any("ranks heads 0 and 1 first, not the even ones" in text for text in rest)
    assert headline(one) == lead[:-1] + "."


def test_a_threshold_passed_by_chance_is_no_evidence(tmp_path: Path) -> None:
    lead = split_answer(only(tmp_path, verdict(found=False)))[0]
    assert lead.startswith("Not beyond chance") and "no evidence of even/odd structure" in lead


def test_beyond_chance_without_emergence_claims_no_date(tmp_path: Path) -> None:
    lead = split_answer(only(tmp_path, verdict(None, None, found=True)))[0]
    assert "beyond chance" in lead and "no measure of it passes its threshold" in lead and "emerges" not in lead


def test_measures_that_tell_two_stories_are_said_to(tmp_path: Path) -> None:
    own_verdict = verdict(agreement={"class": True, "pace": False, "emerges_at_step": False})
    assert any("differ in pace and step" in text for text in split_answer(only(tmp_path, own_verdict)))


def test_what_was_left_out_has_its_reason(tmp_path: Path) -> None:
    own_verdict = verdict(
        excluded={"step1000": "its weights are those of step0"}, failed={"step32000": "the file is cut off"}
    )
    own_verdict["counted"] = ["step64000", "step143000"]
    one = only(tmp_path, own_verdict)
    assert headline(one).endswith(". 2 of 4 checkpoints count.")
    lead, *reasons = counted(one)
    assert lead == "2 of 4 checkpoints count:"
    assert reasons == [
        "step1000 excluded: its weights are those of step0.",
        "step32000 failed: the file is cut off.",
    ]


def test_too_few_checkpoints_have_no_verdict(tmp_path: Path) -> None:
    own_verdict = {key: value for key, value in verdict().items() if key not in ("measures", "split", "heads")}
    one = only(tmp_path, own_verdict | {"reason": "1 checkpoints that count are no series"})
    assert other_measures(one) == ["No verdict: 1 checkpoints that count are no series."]
    assert split_answer(one) == [] and heads(one) == []
    assert headline(one) == "No verdict: 1 checkpoints that count are no series."


def test_splits_that_were_not_measured_everywhere_have_no_verdict(tmp_path: Path) -> None:
    measures = {"selectivity": judgement_at(32_000, 1_000)}
    own_verdict = verdict(measures=measures, split={"reason": "no splits were measured at every checkpoint"})
    assert split_answer(only(tmp_path, own_verdict)) == [
        "No verdict on even/odd: no splits were measured at every checkpoint."
    ]


def test_other_measures_are_dated_and_missing_ones_named(tmp_path: Path) -> None:
    measures = {"selectivity": judgement_at(32_000, 1_000), "specialisation": judgement_at(None, None)}
    own_verdict = verdict(measures=measures, unmeasured=["weight_silhouette"])
    lead, missing = other_measures(only(tmp_path, own_verdict))
    assert "Selectivity emerges after step 1 000 and by step 32 000" in lead
    assert "no emergence shown of specialisation" in lead
    assert missing == "Not measured at any checkpoint, so not dated: weight silhouette."


@pytest.mark.parametrize(
    ("at", "after", "text"),
    [(64_000, 32_000, "(32 000, 64 000]"), (1_000, None, "≤ 1 000, the first checkpoint"), (None, None, "none")],
)
def test_intervals(at: int | None, after: int | None, text: str) -> None:
    assert interval(judgement_at(at, after)) == text


def test_a_class_that_the_checkpoints_cannot_tell_names_both() -> None:
    assert stage(judgement_at(64_000, 32_000)) == "mid, or early: the checkpoints lie too far apart to tell"
    assert stage(judgement_at(64_000, 32_000, possible_classes=["mid"])) == "mid"


def test_head_identity_is_told_with_chance(tmp_path: Path) -> None:
    (text,) = heads(only(tmp_path))
    assert "50 to 100 % of the heads" in text and "chance 25 %" in text


def test_what_an_original_procedure_measured_is_left_to_its_study(tmp_path: Path) -> None:
    measures = {"selectivity": judgement_at(32_000, 1_000), "original_strength": judgement_at(1_000, None)}
    own_verdict = verdict(measures=measures, unmeasured=["original_other"])
    assert not any("original" in sentence for sentence in other_measures(only(tmp_path, own_verdict)))
