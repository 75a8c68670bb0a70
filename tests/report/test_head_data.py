import base64
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from headdyn.core.records import HeadTable
from headdyn.report.head_data import head_metrics, patterns, statistics, telling_heads, training_course
from headdyn.report.sweep_charts import head_maps
from headdyn.sweep.record import Job, SweepRecord, single_job
from tests.report.folders import heads, run, sweep


def job(folder: Path, **settings: object) -> Job:
    return single_job(folder / run(folder, **settings)["name"])  # type: ignore[arg-type]


def unpacked(texts: list[str], length: int) -> np.ndarray:
    """[N, T, T] weights, by the definition: row-wise lower triangles of (byte / 255)²."""
    weight = np.zeros((len(texts), length, length))
    for n, text in enumerate(texts):
        shade = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
        weight[n][np.tril_indices(length)] = (shade / 255.0) ** 2
    return weight


def test_packed_patterns_are_the_weights_within_a_shade(tmp_path: Path) -> None:
    one = job(tmp_path, length=12)
    kept = patterns([one])[0]
    assert set(kept["heads"]) == {"0.0", "0.1", "1.0", "1.1"} and kept["left_out"] == ""
    stored = load_file(one.run.folder / "patterns.safetensors")
    weight = unpacked(kept["heads"]["1.0"], 12)
    true = stored["pattern.1"][:, 0].astype(float)
    assert np.all(np.abs(weight - true) <= 0.004 * np.sqrt(true) + 1e-5)
    assert np.abs(weight - stored["pattern.1"][:, 1]).max() > 0.05  # another head's would be noticed
    assert kept["tokens"] == stored["tokens"].tolist() and kept["topic_names"] == ["rivers", "trains"]


def test_a_budget_keeps_the_telling_heads_and_says_what_it_left_out(tmp_path: Path) -> None:
    one = job(tmp_path, length=32)  # head 0.1 is the selective one
    whole = sum(len(text) for texts in patterns([one])[0]["heads"].values() for text in texts)
    halved = patterns([one], budget=whole - 1)[0]
    assert halved["sequences"] == 1 and halved["left_out"] == "1 of 2 sequences are here"
    least = patterns([one], budget=1)[0]
    assert list(least["heads"]) == ["0.1"]
    assert "1 of 4 heads are here" in least["left_out"]


def test_statistics_round_and_leave_absent_ones_out(tmp_path: Path) -> None:
    found = statistics(job(tmp_path, selectivity_LH=np.array([[0.123456, np.nan]])))
    assert found["selectivity"]["value"] == [[0.123456, None]]
    assert "ci_low" not in found["entropy_nats"]


def test_a_metric_absent_for_every_head_is_shown_nowhere(tmp_path: Path) -> None:
    entry = run(tmp_path)
    table = tmp_path / entry["name"] / "heads.parquet"
    nothing = HeadTable.per_head("effect_nats", np.full((2, 2), np.nan), n=4, unit="head", reason="it needs prompts")
    HeadTable.concat([HeadTable.read(table), nothing.labelled(run="run", model="m", step=200)]).write(table)
    one = single_job(table.parent)
    assert "effect_nats" not in head_metrics(one.heads) and "effect_nats" not in statistics(one)
    titles = [part.title for part in head_maps(SweepRecord.read(sweep(tmp_path, [entry])))]
    assert len(titles) == 3 and not any("set to its mean" in title for title in titles)


def test_arms_of_a_training_share_the_course_of_its_snapshots_up_to_the_unchanged_arm(tmp_path: Path) -> None:
    before, after = np.array([[0.0, 0.3], [0.0, 0.0]]), np.array([[0.0, 0.9], [0.0, 0.0]])
    entries = [run(tmp_path, selectivity_LH=before), run(tmp_path, position="drope", selectivity_LH=after)]
    (arms,) = SweepRecord.read(sweep(tmp_path, entries)).siblings
    assert training_course(arms) == {}
    heads(np.array([[0.0, 0.1], [0.0, 0.0]])).write(arms[0].run.folder / "heads_step000100.parquet")
    course = training_course(arms)
    assert (course["steps"], course["log_x"]) == ([100, 200], False)
    selectivity = course["metrics"]["selectivity"]
    assert [[matrix[0][1] for matrix in selectivity[name]] for name in ("value", "ci_low", "ci_high", "null")] == [
        [0.1, 0.3],
        [0.09, 0.29],
        [0.11, 0.31],
        [0.0, 0.0],
    ]
    assert set(course["metrics"]["entropy_nats"]) == {"value", "null"}  # it has no interval


def test_the_telling_head_is_judged_before_positions_change(tmp_path: Path) -> None:
    before, after = np.array([[0.0, 0.3]]), np.array([[0.2, 0.1]])
    entries = [run(tmp_path, position="drope", selectivity_LH=after), run(tmp_path, selectivity_LH=before)]
    (siblings,) = SweepRecord.read(sweep(tmp_path, entries)).siblings
    assert telling_heads(siblings) == {"most topic-selective": (0, 1)}
