from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from headdyn.analysis.interventions.dose import (
    Dose,
    by_fraction,
    by_group_size,
    dose_table,
    fraction_figure,
    size_figure,
)
from tests.figure_checks import rows, texts

POOLS = {"even": range(0, 6, 2), "odd": range(1, 6, 2), "any": range(6)}


class Additive:
    """Stands in for patching: Δ is −1 plus 0.7 for each even head written, times its weight; odd heads do nothing."""

    prompts = SimpleNamespace(pairs=range(4))

    def deltas(self, cells: Any) -> dict[int, np.ndarray]:
        ((layer, weight_CH),) = cells.items()
        return {layer: np.repeat(-1 + 0.7 * weight_CH[:, ::2].sum(1, keepdims=True), 4, axis=1)}


def sizes(groups_per_size: int = 100) -> list[Dose]:
    return by_group_size(Additive(), 1, POOLS, 6, groups_per_size, np.random.default_rng(0))  # type: ignore[arg-type]


def test_all_groups_where_they_are_few() -> None:
    even, odd, anyone = sizes()
    assert sorted(anyone.heads) == sorted(g for n in range(7) for g in itertools.combinations(range(6), n))
    assert sorted(even.heads) == sorted(g for n in range(4) for g in itertools.combinations((0, 2, 4), n))
    assert [dose.name for dose in (even, odd, anyone)] == ["even", "odd", "any"]


def test_a_sample_where_they_are_many() -> None:
    anyone = sizes(groups_per_size=5)[2]
    for size in range(7):
        drawn = [group for group in anyone.heads if len(group) == size]
        assert len(drawn) == len(set(drawn)) == {0: 1, 6: 1}.get(size, 5)
        assert all(list(group) == sorted(set(group)) for group in drawn)


def test_thresholds_worked_out_by_hand() -> None:
    even, odd, anyone = sizes()
    assert even.threshold() == 2  # −1 + 2 · 0.7 > 0
    assert odd.threshold() is None
    assert anyone.threshold() == 5  # three odd heads and one even are not enough, any five hold two even ones
    even_part = by_fraction(Additive(), 1, POOLS, 6, (0.0, 0.4, 0.5, 1.0))[0]  # type: ignore[arg-type]
    assert even_part.threshold() == 0.5  # −1 + 2.1 · 0.5 > 0


def test_a_threshold_counts_from_the_last_failure() -> None:
    dose = Dose(name="x", heads=((),) * 4, dose_C=np.arange(4.0), delta_CP=np.array([[1.0], [1.0], [-1.0], [1.0]]))
    assert dose.threshold() == 3
    best = Dose(name="x", heads=((),) * 2, dose_C=np.arange(2.0), delta_CP=np.ones((2, 1)))
    assert best.threshold() == 0


def test_equally_likely_answers_are_no_success() -> None:
    dose = Dose(name="x", heads=((),) * 2, dose_C=np.arange(2.0), delta_CP=np.array([[0.0, 0.0], [0.0, 1.0]]))
    assert dose.success_C.tolist() == [0, 0.5] and dose.threshold() is None  # half of the pairs is not more than half


def test_threshold_intervals() -> None:
    certain = sizes()[0].threshold_interval(np.random.default_rng(0), 200)
    assert certain == (2, 2)
    draws = np.random.default_rng(1)
    need_P = draws.permutation(np.linspace(1, 9, 41))  # pair p succeeds from dose need_P on: half of them at 5
    dose = Dose(name="x", heads=((),) * 11, dose_C=np.arange(11.0), delta_CP=np.arange(11.0)[:, None] - need_P)
    assert dose.threshold() == 6  # at 5 the middle pair is undecided
    low, high = dose.threshold_interval(draws, 2000)
    assert 3 <= low <= 5 and 6 <= high <= 8
    never = Dose(name="x", heads=((),) * 3, dose_C=np.arange(3.0), delta_CP=-np.ones((3, 5)))
    assert never.threshold() is None and never.threshold_interval(draws, 100) == (2, 2)


def test_the_table_and_figures() -> None:
    doses = sizes(groups_per_size=3)
    cells = dose_table(doses).to_pylist()
    assert len(cells) == sum(len(dose.heads) for dose in doses)
    whole = next(row for row in cells if row["pool"] == "any" and row["dose"] == 6)
    assert whole["heads"] == list(range(6)) and whole["success"] == 1 and whole["delta_nats"] == pytest.approx(1.1)
    figure = size_figure(doses)
    assert "heads patched" in [text.text for text in texts(figure)]
    assert len({row["series"] for row in rows(figure, "series")}) == 3 and len(rows(figure, "level")) == 1
    fractions = by_fraction(Additive(), 1, POOLS, 6, (1.0, 0.0))  # type: ignore[arg-type]
    assert fractions[0].dose_C.tolist() == [0, 1]
    points = rows(fraction_figure(fractions, np.random.default_rng(0), 100), "series")
    np.testing.assert_allclose([row["y"] for row in points if row["series"] == "even heads"], [-1, 1.1])
