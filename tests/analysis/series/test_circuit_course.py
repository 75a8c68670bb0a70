from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from headdyn.analysis.circuits import Circuits
from headdyn.analysis.series.circuit_course import FOLLOWED, CircuitCourse
from headdyn.analysis.series.points import SeriesPoint
from headdyn.core.records import HeadTable
from headdyn.core.settings import build
from headdyn.models.decoder import Decoder
from tests import small_models
from tests.analysis import tiny


@torch.no_grad()
def towards_rank_one(share: float) -> Decoder:
    """Every value matrix of layer 0 mixed with its own first direction."""
    decoder = small_models.drawn(small_models.MHA)
    weight = decoder.blocks[0].attention.v.weight.view(4, 6, 16)
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    s[:, 1:] *= 1 - share
    weight.copy_(u @ torch.diag_embed(s) @ vt)
    return decoder


@pytest.fixture(scope="module")
def points() -> list[SeriesPoint]:
    found = []
    for step, share in ((0, 0.0), (100, 0.5), (1000, 0.95)):
        table = Circuits()(towards_rank_one(share), tiny.corpus(), np.random.default_rng(0)).table
        found.append(SeriesPoint(revision=f"step{step}", step=step, table=table, state_hash=f"hash {step}"))
    return found


def course(points: list[SeriesPoint], **settings):
    return CircuitCourse(**settings)(points, np.random.default_rng(0))


def test_ranks_fall_as_planted_and_the_rest_stays(points):
    found = course(points[::-1])  # whatever the order of the jobs
    rows = found.table.summary()
    assert set(rows) == set(CircuitCourse.metrics)
    first, last = (points[i].table.matrix("ov_effective_rank") for i in (0, 2))
    change = rows["ov_effective_rank_change"]
    assert change["value"] == pytest.approx((last - first).mean()) and change["ci_low"] <= change["value"] < -0.5
    assert change["n"] == 12 and rows["qk_effective_rank_change"]["value"] == 0
    table = found.tables["circuit_course"].to_pylist()
    assert len(table) == 3 * len(FOLLOWED)
    middle = next(row for row in table if row["step"] == 100 and row["metric"] == "ov_effective_rank")
    assert middle["mean"] == pytest.approx(points[1].table.matrix("ov_effective_rank").mean())
    assert middle["low"] < middle["mean"] < middle["high"] and middle["null"] is not None
    assert set(found.figures) == {"effective_rank", "copying", "similarity", "nearest"}
    assert found.verdict["steps"] == [0, 100, 1000]


def test_what_does_not_count_is_left_out_with_its_reason(points):
    failed = SeriesPoint(revision="step10", step=10, error="it fell over")
    twin = dataclasses.replace(points[1], revision="step200", step=200, state_hash="hash 1000")
    bare = SeriesPoint(revision="step300", step=300, table=HeadTable.concat([]), state_hash="hash 300")
    found = course([*points, failed, twin, bare])
    assert found.verdict["steps"] == [0, 100, 1000]
    left_out = found.verdict["left_out"]
    assert set(left_out) == {"step10", "step200", "step300"} and left_out["step10"] == "it fell over"
    assert "circuits were not among" in left_out["step300"]


def test_one_checkpoint_is_no_series(points):
    found = course(points[:1])
    assert "1 checkpoints with circuits are no series" in found.verdict["reason"] and not len(found.table)


def test_a_model_of_one_head_a_layer_has_no_similarity():
    config = dataclasses.replace(small_models.MHA, num_heads=1, num_kv_heads=1, num_layers=1)
    points = []
    for step in (0, 1):
        table = Circuits()(small_models.drawn(config, seed=step), tiny.corpus(), np.random.default_rng(0)).table
        points.append(SeriesPoint(revision=f"step{step}", step=step, table=table))
    found = course(points)
    assert set(found.figures) == {"effective_rank", "copying"}
    assert "no head has a value" in found.table.summary()["qk_nearest_change"]["reason"]


def test_too_few_draws_are_refused():
    with pytest.raises(ValueError, match="bootstrap_draws=5 must be at least 100"):
        build(CircuitCourse, {"bootstrap_draws": 5}, "analysis.circuit_course")
