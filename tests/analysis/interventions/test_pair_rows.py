from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from headdyn.analysis.interventions.pair_rows import PairRows, at_layers
from headdyn.core.records import HeadTable


def make() -> PairRows:
    return PairRows(generator=np.random.default_rng(0))


def test_success_is_a_share_with_its_exact_interval() -> None:
    row = make().success("x", np.array([0.1, -0.2, 3.0, 0.0]))
    exact = binomtest(2, 4).proportion_ci(0.95, "exact")
    assert (row["value"], row["n"], row["unit"]) == (0.5, 4, "pair")
    np.testing.assert_allclose((row["ci_low"], row["ci_high"]), (exact.low, exact.high))


def test_a_difference_of_success_has_an_interval_where_all_pairs_agree() -> None:
    every, none = np.ones(32), -np.ones(32)
    full = make().success_difference("x", every, none)
    assert full["value"] == 1 and full["ci_high"] == 1 and 0.6 < full["ci_low"] < 0.8
    same = make().success_difference("x", every, every)
    assert same["value"] == 0 and -0.2 < same["ci_low"] < 0 < same["ci_high"] < 0.2


def test_a_difference_of_success_covers() -> None:
    draws, truth, hits = np.random.default_rng(1), 0.3 - 0.1, 0
    for _ in range(500):
        kind = draws.choice(3, size=24, p=[0.3, 0.1, 0.6])  # only first, only second, both
        row = make().success_difference("x", np.where(kind == 1, -1.0, 1.0), np.where(kind == 0, -1.0, 1.0))
        hits += row["ci_low"] <= truth <= row["ci_high"]
    assert hits / 500 >= 0.95


def test_effects_column_by_column() -> None:
    values_PX = np.stack([np.full(8, 1.0) + np.arange(8) / 10, np.tile([1.0, -1.0], 4)], axis=1)
    first, second = make().effects("x", values_PX)
    assert first["value"] == pytest.approx(1.35) and first["p"] == 2 / 2**8  # all signs agree: exact
    assert second["value"] == 0 and second["p"] == 1.0 and first["null"] == 0


def test_means_beside_what_chance_gives() -> None:
    values_PX = np.stack([np.arange(8.0), np.tile([1.0, -1.0], 4)], axis=1)
    first, second = make().means("x", values_PX, np.stack([np.full(8, 3.0), np.arange(8.0)], axis=1))
    assert (first["value"], first["null"], second["value"], second["null"]) == (3.5, 3.0, 0.0, 3.5)
    assert first["ci_low"] < 3.5 < first["ci_high"] and "p" not in first


def test_shares_are_ratios_of_means_and_sum_to_one() -> None:
    whole = np.array([2.0, 3.0, 4.0, 2.5])
    part = np.array([0.5, 2.0, 1.0, -0.5])
    one, rest = make().shares("x", np.stack([part, whole - part]), whole, "Δ is")
    assert one["value"] == pytest.approx(part.sum() / whole.sum()) and one["value"] + rest["value"] == pytest.approx(1)
    assert one["ci_low"] < one["value"] < one["ci_high"] and "null" not in one
    (absent,) = make().shares("x", part[None], whole - whole.mean(), "Δ is")
    assert "value" not in absent and absent["reason"].startswith("Δ is 0 nats, within noise (95 % interval")


def test_recovered_is_a_ratio_of_means() -> None:
    target, source = np.array([-2.0, -1.0, -3.0, -2.5]), np.array([2.0, 3.0, 1.0, 2.5])
    halfway = target + 0.5 * (source - target)
    rows = make().recovered("x", np.stack([target, halfway, source]), target, source)
    assert [row["value"] for row in rows] == pytest.approx([0.0, 0.5, 1.0])
    assert rows[1]["ci_low"] == pytest.approx(0.5) and rows[1]["ci_high"] == pytest.approx(0.5)
    assert all(row["null"] == 0 for row in rows)


def test_recovered_is_absent_where_there_is_nothing_to_recover() -> None:
    draws = np.random.default_rng(2)
    target = draws.normal(size=20)
    (row,) = make().recovered("x", target[None], target, target + draws.normal(size=20) * 0.5)
    assert "value" not in row and "within noise (95 % interval" in row["reason"]
    (alone,) = make().recovered("x", np.ones((1, 1)), np.zeros(1), np.ones(1))
    assert "one pair gives no interval" in alone["reason"]
    assert len(HeadTable.from_rows([row, alone])) == 2


def test_one_pair_has_a_mean_and_no_interval() -> None:
    row = make().mean("x", np.array([1.5]))
    assert row == {"metric": "x", "value": 1.5, "n": 1, "unit": "pair"}


def test_rows_learn_their_layer() -> None:
    assert at_layers({1: [{"metric": "a"}], 3: [{"metric": "b"}]}) == [
        {"metric": "a", "layer": 1},
        {"metric": "b", "layer": 3},
    ]
