from pathlib import Path
from typing import Any

import pytest

from headdyn.core.json_files import read_json, write_json
from headdyn.core.records import HeadTable
from headdyn.core.run_folder import RunRecord
from headdyn.sweep.matched_loss import matched_loss, matched_points, pooled
from tests.report.folders import run


def test_the_higher_arm_is_taken_at_its_end_and_the_other_between_the_losses_around() -> None:
    losses = {"shuffled": {0: 4.1, 100: 3.2, 200: 2.9, 400: 2.4}, "topic": {0: 4.0, 100: 3.9, 200: 3.05, 400: 3.0}}
    points = matched_points(losses)
    assert points is not None and points["topic"] == {400: 1.0}
    assert points["shuffled"] == {100: pytest.approx(1 / 3), 200: pytest.approx(2 / 3)}
    swapped = matched_points({"shuffled": losses["topic"], "topic": losses["shuffled"]})
    assert swapped == {"shuffled": points["topic"], "topic": points["shuffled"]}


def test_the_last_passage_counts_and_an_equal_loss_needs_no_neighbour() -> None:
    topic = {0: 4.0, 400: 3.0}
    up_and_down = matched_points({"shuffled": {0: 4.0, 50: 2.9, 100: 3.2, 200: 2.8, 300: 2.7}, "topic": topic})
    assert up_and_down is not None
    assert up_and_down["shuffled"] == {100: pytest.approx(0.5), 200: pytest.approx(0.5)}
    assert matched_points({"shuffled": {0: 4.0, 100: 3.0, 200: 2.8}, "topic": topic}) == {
        "shuffled": {100: 1.0},
        "topic": {400: 1.0},
    }


def test_arms_whose_losses_do_not_overlap_have_no_point() -> None:
    assert matched_points({"shuffled": {0: 2.9, 100: 2.5}, "topic": {0: 4.0, 100: 3.0}}) is None


def test_pairs_at_matched_loss(tmp_path: Path) -> None:
    analysed = []

    def analyse(run: RunRecord, step: int) -> HeadTable:
        analysed.append((run.name, step))
        return HeadTable.whole("selectivity", step / 1000, ci_low=0.0, ci_high=1.0, n=128, unit="sequence")

    slow = {"snapshot_losses_nats": {"0": 4.1, "100": 3.6, "200": 3.4}}
    entries = [run(tmp_path), run(tmp_path, ordering="topic", values=slow)]
    # Of recalibrated arms there is no pair of orderings, even where their last losses are equal: those tell of the drop.
    recovered = {"val_loss_nats": {"0": 3.9, "120": 3.2}, "recovered": True, "until_recovered": True}
    for ordering in ("shuffled", "topic"):
        entries += [run(tmp_path, ordering=ordering, position="drope", values=slow | {"recalibration": recovered})]
    whole = HeadTable.whole("selectivity", 0.3, ci_low=0.2, ci_high=0.4, n=128, unit="sequence")
    for entry in entries[1:]:
        whole.write(tmp_path / entry["name"] / "heads.parquet")
    rows = matched_loss([RunRecord.read(tmp_path / entry["name"]) for entry in entries], analyse)
    (row,) = (row for row in rows if row["factor"] == "data_ordering")
    # Where a head was held in training, the loss is not that of the weights: no pair.
    manifest = read_json(tmp_path / entries[1]["name"] / "manifest.json")
    write_json(
        tmp_path / entries[1]["name"] / "manifest.json",
        {**manifest, "config": {**manifest["config"], "train": {"clamp": {"pattern": "match"}}}},
    )
    held = matched_loss([RunRecord.read(tmp_path / entry["name"]) for entry in entries], analyse)
    assert not [each for each in held if each["factor"] == "data_ordering"]
    # Topic order ended at 3.4; the shuffled arm fell from 4.1 (step 0) to 3.2 (step 100), 7/9 of the way.
    assert row["snapshots"] == {"shuffled": [0, 100], "topic": [200]}
    assert row["steps"] == {"shuffled": 78, "topic": 200}
    assert row["losses_nats"] == {"shuffled": pytest.approx(3.4), "topic": 3.4}
    assert row["loss_difference"] == pytest.approx(0, abs=1e-12)
    assert row["shuffled"] == {"value": pytest.approx(0.1 * 7 / 9)}
    assert row["difference"] == pytest.approx(0.3 - 0.1 * 7 / 9)
    assert row["runs"]["topic"] == entries[1]["name"]
    assert analysed[:2] == [(entries[0]["name"], 0), (entries[0]["name"], 100)]  # an arm at its end has been analysed


def test_a_drope_arm_is_compared_with_its_rope_parent_at_the_loss_it_ended_with(tmp_path: Path) -> None:
    facts = {"val_loss_nats": {"0": 3.9, "60": 3.3, "120": 3.2}, "recovered": True, "until_recovered": True}
    training = {"snapshot_losses_nats": {"0": 4.1, "200": 3.3, "400": 3.1}}
    entries = [run(tmp_path, values=training), run(tmp_path, position="drope", values=training)]
    summary = tmp_path / entries[1]["name"] / "summary.json"
    for entry, end in zip(entries, (0.3, 0.25), strict=True):
        HeadTable.whole("selectivity", end, n=128, unit="sequence").write(tmp_path / entry["name"] / "heads.parquet")
    between = {200: 0.1}

    def pair_of(facts: dict[str, Any]) -> list[dict[str, Any]]:
        write_json(summary, {**read_json(summary), "recalibration": facts})
        runs = [RunRecord.read(tmp_path / entry["name"]) for entry in entries]
        return matched_loss(
            runs, lambda run, step: HeadTable.whole("selectivity", between[step], n=128, unit="sequence")
        )

    (row,) = pair_of(facts)
    # RoPE fell from 3.3 (step 200) to 3.1 (its end), so that half of each is where it had 3.2.
    assert (row["factor"], row["snapshots"]) == ("position_enc", {"rope": [200, 400], "drope": [120]})
    assert row["losses_nats"] == {"rope": pytest.approx(3.2), "drope": 3.2}
    assert row["difference"] == pytest.approx(0.25 - 0.2)
    assert pair_of({**facts, "recovered": False}) == []  # a damaged model
    assert pair_of({**facts, "val_loss_nats": {"0": 3.9, "60": 3.0}}) == []  # better than its parent, whose end is all


def test_measures_of_the_loss_itself_are_not_compared_at_equal_loss(tmp_path: Path) -> None:
    entries = [run(tmp_path), run(tmp_path, ordering="topic", values={"snapshot_losses_nats": {"0": 4.1, "200": 3.4}})]
    names = ("loss_nats", "excess_nats", "gap_closed", "gap_closed_from_mixture", "selectivity")
    tables = [HeadTable.whole(name, 0.5, n=128, unit="sequence") for name in names]
    for entry in entries:
        HeadTable.concat(tables).write(tmp_path / entry["name"] / "heads.parquet")
    runs = [RunRecord.read(tmp_path / entry["name"]) for entry in entries]
    assert {row["outcome"] for row in matched_loss(runs, lambda *_: HeadTable.concat(tables))} == {"selectivity"}


def test_arms_that_differ_in_anything_but_order_are_no_pair(tmp_path: Path) -> None:
    entries = [run(tmp_path, seed=0), run(tmp_path, seed=1, ordering="topic")]

    def analyse(run: RunRecord, step: int) -> HeadTable:
        raise AssertionError("there is nothing to analyse")

    assert matched_loss([RunRecord.read(tmp_path / entry["name"]) for entry in entries], analyse) == []


def pair(seed: int, attention: str, difference: float) -> dict[str, Any]:
    return {
        "seed": seed,
        "attention": attention,
        "position_enc": "rope",
        "outcome": "selectivity",
        "difference": difference,
    }


def test_matched_differences_are_averaged_within_a_seed_then_over_seeds() -> None:
    pairs = [pair(0, "mha", 0.1), pair(0, "gqa", 0.3), pair(1, "mha", 0.2), pair(1, "gqa", 0.6)]
    (row,) = pooled(pairs)
    # Per seed 0.2 and 0.4; their mean 0.3, standard error 0.1, times 12.7062.
    assert (row["value"], row["ci_low"], row["ci_high"], row["n"]) == pytest.approx(
        (0.3, -0.97062, 1.57062, 2), abs=1e-5
    )


def test_a_seed_without_one_of_the_pairs_does_not_count() -> None:
    (row,) = pooled([pair(0, "mha", 0.1), pair(0, "gqa", 0.3), pair(1, "mha", 0.9)])
    assert (row["value"], row["n"]) == (pytest.approx(0.2), 1)
    assert row["ci_low"] is None and row["q"] is None


def test_cells_are_the_same_whatever_the_order_of_their_factors() -> None:
    pairs = [
        {**pair(0, "mha", 0.1), "factors": {"attention": "mha", "position_enc": "rope"}},
        {**pair(1, "mha", 0.3), "factors": {"position_enc": "rope", "attention": "mha"}},
    ]
    (row,) = pooled(pairs)
    assert (row["value"], row["n"]) == (pytest.approx(0.2), 2)
