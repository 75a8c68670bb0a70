import base64
from pathlib import Path
from typing import Any

import altair
import numpy as np
import pytest
import vl_convert
from safetensors.numpy import load_file

from headdyn.core.records import HeadTable
from headdyn.report.sections.heads import explorer
from headdyn.report.sections.patterns import head_metrics, heads_of_training, patterns_that_fit
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord, single_job
from tests.report.folders import heads, run, sweep
from tests.report.series_folders import STEPS, emerging

PLENTY = 9_000_000


def job(folder: Path, **settings: object) -> Job:
    return single_job(folder / run(folder, **settings)["name"])  # type: ignore[arg-type]


def explored(record: SweepRecord) -> dict[str, Any]:
    """The specification of the heads of a sweep, and its tables by name."""
    jobs = record.complete
    return explorer(record, jobs, patterns_that_fit(jobs, PLENTY))


def unpacked(codes: bytes, length: int) -> np.ndarray:
    """[T, T] weights, by the definition: the row-wise lower triangle of (byte / 255)²."""
    weight = np.zeros((length, length))
    weight[np.tril_indices(length)] = (np.frombuffer(codes, np.uint8) / 255.0) ** 2
    return weight


def test_kept_patterns_are_the_weights_within_a_shade(tmp_path: Path) -> None:
    one = job(tmp_path, length=12)
    patterns = patterns_that_fit([one], PLENTY)[0]
    assert set(patterns.codes) == {(0, 0), (0, 1), (1, 0), (1, 1)} and patterns.left_out == ""
    stored = load_file(one.run.folder / "patterns.safetensors")
    for n in range(2):
        weight = unpacked(patterns.codes[1, 0][n], 12)
        true = stored["pattern.1"][n, 0].astype(float)
        assert np.all(np.abs(weight - true) <= 0.004 * np.sqrt(true) + 1e-5)
        assert np.abs(weight - stored["pattern.1"][n, 1]).max() > 0.05  # another head's would be noticed
    assert patterns.tokens_NT.tolist() == stored["tokens"].tolist()
    assert patterns.topic_names == ["rivers", "trains"]


def test_a_budget_keeps_the_telling_heads_and_says_what_it_left_out(tmp_path: Path) -> None:
    one = job(tmp_path, length=32)  # head 0.1 is the selective one
    whole = sum(
        4 * (len(each) // 3 + 1) for codes in patterns_that_fit([one], PLENTY)[0].codes.values() for each in codes
    )
    assert patterns_that_fit([one], whole)[0].left_out == ""
    halved = patterns_that_fit([one], whole - 1)[0]
    assert len(halved.tokens_NT) == 1 and halved.left_out == "1 of 2 sequences are here"
    least = patterns_that_fit([one], 1)[0]
    assert list(least.codes) == [(0, 1)]
    assert "1 of 4 heads are here" in least.left_out


def test_a_metric_absent_for_every_head_is_shown_nowhere(tmp_path: Path) -> None:
    entry = run(tmp_path)
    table = tmp_path / entry["name"] / "heads.parquet"
    nothing = HeadTable.per_head("effect_nats", np.full((2, 2), np.nan), n=4, unit="head", reason="it needs prompts")
    HeadTable.concat([HeadTable.read(table), nothing.labelled(run="run", model="m", step=200)]).write(table)
    assert "effect_nats" not in head_metrics(single_job(table.parent).heads)
    metrics = {row["metric"] for row in explored(SweepRecord.read(sweep(tmp_path, [entry])))["datasets"]["heads"]}
    assert metrics == {"topic selectivity (points)", "within-topic attention (%)", "attention entropy (nats)"}


def test_maps_have_every_heads_numbers_in_a_readers_units_and_absent_ones_are_null(tmp_path: Path) -> None:
    entry = run(tmp_path, selectivity_LH=np.array([[0.123456, np.nan], [-0.02, 0.3]]))
    spec = explored(SweepRecord.read(sweep(tmp_path, [entry])))
    (row,) = [row for row in spec["datasets"]["heads"] if row["metric"] == "topic selectivity (points)"]
    assert (row["layer"], row["head"]) == ([0, 0, 1, 1], [0, 1, 0, 1])
    assert row["value"] == [12.35, None, -2.0, 30.0] and row["low"] == [11.35, None, -3.0, 29.0]
    assert row["q"] == [0.001, 0.5, 0.5, 0.001] and row["null"] == [0.0] * 4
    params = {param["name"]: param for param in spec["params"]}
    assert params["metric"]["value"] == "topic selectivity (points)"
    assert params["ranges"]["value"]["topic selectivity (points)"] == (-30.0, 30.0, "purpleorange", ".1f")
    assert params["ranges"]["value"]["attention entropy (nats)"][2] == "cividis"


def test_one_scale_serves_all_runs(tmp_path: Path) -> None:
    weak, strong = np.array([[0.1, 0.0]]), np.array([[0.1, 0.4]])
    entries = [run(tmp_path, selectivity_LH=weak), run(tmp_path, seed=1, selectivity_LH=strong)]
    spec = explored(SweepRecord.read(sweep(tmp_path, entries)))
    (ranges,) = [param["value"] for param in spec["params"] if param["name"] == "ranges"]
    assert ranges["topic selectivity (points)"][1] == 40.0


def test_arms_of_a_training_share_the_course_of_its_snapshots_up_to_the_unchanged_arm(tmp_path: Path) -> None:
    before, after = np.array([[0.0, 0.3], [0.0, 0.0]]), np.array([[0.0, 0.9], [0.0, 0.0]])
    entries = [run(tmp_path, selectivity_LH=before), run(tmp_path, position="drope", selectivity_LH=after)]
    record = SweepRecord.read(sweep(tmp_path, entries))
    rows = explored(record)["datasets"]["heads"]
    assert not [row for row in rows if row["course"]]
    assert {row["arms"] for row in rows} == {"family 0"}  # a click shows both
    heads(np.array([[0.0, 0.1], [0.0, 0.0]])).write(record.jobs[0].run.folder / "heads_step000100.parquet")
    rows = explored(record)["datasets"]["heads"]
    course = [row for row in rows if row["course"] and row["metric"] == "topic selectivity (points)"]
    assert [row["step"] for row in course] == [100, 200]
    assert [[row[name][1] for row in course] for name in ("value", "low", "high", "null")] == [
        [10.0, 30.0],
        [9.0, 29.0],
        [11.0, 31.0],
        [0.0, 0.0],
    ]
    entropy = [row for row in rows if row["course"] and row["metric"] == "attention entropy (nats)"]
    assert entropy[0]["low"] == [None] * 4 and entropy[0]["null"] == [3.0] * 4  # it has no interval


def test_checkpoints_of_a_series_share_one_course_and_are_shown_one_at_a_time(tmp_path: Path) -> None:
    rows = explored(SweepRecord.read(emerging(tmp_path)))["datasets"]["heads"]
    course = [row for row in rows if row["course"] and row["metric"].startswith("head effect")]
    assert [row["step"] for row in course] == list(STEPS) and {row["family"] for row in rows} == {0}
    value = [value for layer, value in zip(course[0]["layer"], course[0]["value"], strict=True) if layer == 1]
    assert value == [0.0, 0.25, 0.5, 0.75]
    assert len({row["arms"] for row in rows if row["run"] is not None}) == len(STEPS)


def test_the_pages_patterns_hold_their_tokens_topics_and_boundaries(tmp_path: Path) -> None:
    entries = [run(tmp_path, length=12), run(tmp_path, position="drope", length=12)]
    tables = explored(SweepRecord.read(sweep(tmp_path, entries)))["datasets"]
    assert len(tables["patterns"]) == 2 * 2 * 4  # runs, sequences, heads
    one = tables["patterns"][0]
    stored = load_file(tmp_path / entries[0]["name"] / "patterns.safetensors")
    true = stored["pattern.0"][0, one["head"]].astype(float)
    assert np.abs(unpacked(base64.b64decode(one["codes"]), 12) - true).max() < 0.005
    tokens = {row["run_sequence"]: row for row in tables["tokens"]}[one["run_sequence"]]
    assert tokens["tokens"] == stored["tokens"][0].tolist() and tokens["topics"] == ["rivers"] * 6 + ["trains"] * 6
    assert tables["edges"] == [{"arms": "family 0", "sequence": n, "edge": 6} for n in (1, 2)]


@pytest.mark.parametrize("kind", ["arms", "checkpoints"])
def test_the_specification_is_valid_and_drawn(tmp_path: Path, kind: str) -> None:
    if kind == "checkpoints":
        record = SweepRecord.read(emerging(tmp_path))
    else:
        entries = [run(tmp_path, length=12), run(tmp_path, position="drope", length=12)]
        record = SweepRecord.read(sweep(tmp_path, entries))
    spec = explored(record)
    altair.VConcatChart.from_dict(spec, validate=True)
    svg = vl_convert.vegalite_to_svg(spec)
    assert "All numbers of layer" in svg and (kind == "checkpoints") == ("query position" not in svg)


def test_the_telling_head_is_judged_before_positions_change(tmp_path: Path) -> None:
    before, after = np.array([[0.0, 0.3]]), np.array([[0.2, 0.1]])
    entries = [run(tmp_path, position="drope", selectivity_LH=after), run(tmp_path, selectivity_LH=before)]
    (siblings,) = SweepRecord.read(sweep(tmp_path, entries)).siblings
    assert heads_of_training(siblings) == {"most topic-selective": (0, 1)}
