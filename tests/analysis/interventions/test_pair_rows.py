from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from headdyn.analysis.interventions.pair_rows import PairRows
from headdyn.core.records import HeadTable


def make() -> PairRows:
    return PairRows(generator=np.random.default_rng(0))


def only(table: HeadTable) -> dict[str, Any]:
    """The one row of a table, without the columns that are absent."""
    (row,) = table.rows()
    return {name: value for name, value in row.items() if value is not None}


def test_success_is_a_share_with_its_exact_interval() -> None:
    row = only(make().success("x", np.array([0.1, -0.2, 3.0, 0.0])))
    exact = binomtest(2, 4).proportion_ci(0.95, "exact")
    assert (row["value"], row["n"], row["unit"]) == (0.5, 4, "pair")
    np.testing.assert_allclose((row["ci_low"], row["ci_high"]), (exact.low, exact.high))


def test_a_difference_of_success_has_an_interval_where_all_pairs_agree() -> None:
    every, none = np.ones(32), -np.ones(32)
    full = only(make().success_difference("x", every, none, null=0.0))
    assert full["value"] == 1 and full["ci_high"] == 1 and 0.6 < full["ci_low"] < 0.8
    same = only(make().success_difference("x", every, every, null=0.0))
    assert same["value"] == 0 and -0.2 < same["ci_low"] < 0 < same["ci_high"] < 0.2


def test_a_difference_of_success_covers() -> None:
    draws, truth, hits = np.random.default_rng(1), 0.3 - 0.1, 0
    for _ in range(500):
        kind = draws.choice(3, size=24, p=[0.3, 0.1, 0.6])  # only first, only second, both
        first_P, second_P = np.where(kind == 1, -1.0, 1.0), np.where(kind == 0, -1.0, 1.0)
        row = only(make().success_difference("x", first_P, second_P, null=0.0))
        hits += row["ci_low"] <= truth <= row["ci_high"]
    assert hits / 500 >= 0.95


def test_effects_column_by_column() -> None:
    values_PX = np.stack([np.full(8, 1.0) + np.arange(8) / 10, np.tile([1.0, -1.0], 4)], axis=1)
    effects = make().effects(values_PX)
    assert effects.value == pytest.approx([1.35, 0]) and effects.p.tolist() == [2 / 2**8, 1.0]  # all signs agree: exact
    assert (effects.low < effects.value).all() and (effects.value < effects.high).all() and effects.n == 8


def test_means_beside_what_chance_gives() -> None:
    values_PX = np.stack([np.arange(8.0), np.tile([1.0, -1.0], 4)], axis=1)
    first, second = make().mean("x", values_PX, null=np.array([3.0, 3.5])).rows()
    assert (first["value"], first["null"], second["value"], second["null"]) == (3.5, 3.0, 0.0, 3.5)
    assert first["ci_low"] < 3.5 < first["ci_high"] and first["p"] is None


def test_shares_are_ratios_of_means_and_sum_to_one() -> None:
    whole = np.array([2.0, 3.0, 4.0, 2.5])
    part = np.array([0.5, 2.0, 1.0, -0.5])
    shares, columns = make().shares(np.stack([part, whole - part]), whole, "Δ is")
    assert shares.value[0] == pytest.approx(part.sum() / whole.sum()) and shares.value.sum() == pytest.approx(1)
    assert (shares.low < shares.value).all() and (shares.value < shares.high).all() and columns == {}
    absent, columns = make().shares(part[None], whole - whole.mean(), "Δ is")
    row = only(absent[0].rows("x", **columns))
    assert "value" not in row and row["reason"].startswith("Δ is 0 nats, within noise (95 % interval")


def test_recovered_is_a_ratio_of_means() -> None:
    target, source = np.array([-2.0, -1.0, -3.0, -2.5]), np.array([2.0, 3.0, 1.0, 2.5])
    halfway = target + 0.5 * (source - target)
    moved, columns = make().recovered(np.stack([target, halfway, source]), target, source)
    assert moved.value == pytest.approx([0.0, 0.5, 1.0])
    assert moved.low[1] == pytest.approx(0.5) and moved.high[1] == pytest.approx(0.5)
    assert columns == {"null": 0.0}


def test_recovered_is_absent_where_there_is_nothing_to_recover() -> None:
    draws = np.random.default_rng(2)
    target = draws.normal(size=20)
    moved, columns = make().recovered(target[None], target, target + draws.normal(size=20) * 0.5)
    row = only(moved[0].rows("x", **columns))
    assert not {"value", "null"} & row.keys() and "within noise (95 % interval" in row["reason"]
    alone, columns = make().recovered(np.ones((1, 1)), np.zeros(1), np.ones(1))
    assert "one pair gives no interval" in only(alone[0].rows("x", **columns))["reason"]


def test_one_pair_has_a_mean_and_no_interval() -> None:
    row = only(make().mean("x", np.array([1.5])))
    assert row == {"metric": "x", "value": 1.5, "n": 1, "unit": "pair"}
