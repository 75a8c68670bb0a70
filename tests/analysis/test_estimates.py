import numpy as np
import pytest

from headdyn.analysis.estimates import Estimate, estimate, flip_p, means, ratio_units
from headdyn.core.records import HeadTable

NO_CONTROLS = np.empty((40, 0))


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(0.5, 1, size=(40, 2, 3))


def test_an_interval_of_95_percent_reaches_196_standard_errors_to_each_side():
    values = np.random.default_rng(1).normal(3, 2, size=(4000, 20))
    found = means(values, np.random.default_rng(0), draws=4000)
    error = values.std(0, ddof=1) / np.sqrt(4000)
    widths = (found.high - found.low) / 2 / error
    assert abs(widths.mean() - 1.96) < 0.03  # mutants: a level of 90 % gives 1.64, one of 99 % gives 2.58
    np.testing.assert_allclose(found.value, values.mean(0))
    assert np.isnan(found.p).all() and found.n == 4000


def test_the_same_effect_has_the_same_p_whatever_its_sign(values):
    up, down = (flip_p(sign * values, NO_CONTROLS, np.random.default_rng(2)) for sign in (1, -1))
    np.testing.assert_array_equal(up, down)
    far = values + 2  # mutants: a test to one side gives one of these p near 1
    for sign in (1, -1):
        assert (flip_p(sign * far, NO_CONTROLS, np.random.default_rng(2)) == 1e-4).all()
        assert (estimate(sign * far, 1, np.random.default_rng(2)).p == 1e-4).all()


def test_a_column_with_a_missing_value_has_no_p_and_does_not_touch_the_others(values):
    gap = values.copy()
    gap[3, 0, 1] = np.nan
    with_gap, without = (flip_p(v, NO_CONTROLS, np.random.default_rng(2)) for v in (gap, values))
    assert np.isnan(with_gap[0, 1])
    np.testing.assert_array_equal(np.delete(with_gap.ravel(), 1), np.delete(without.ravel(), 1))


def test_units_of_a_ratio_average_to_the_ratio_of_sums_and_of_nothing_to_none():
    numerator, denominator = np.array([[1.0, 1], [2, 1], [6, 1]]), np.array([[2.0, 0], [2, 0], [5, 0]])
    units = ratio_units(numerator, denominator)
    assert units[:, 0].mean() == pytest.approx(1) and np.isnan(units[:, 1]).all()


def test_rows_are_of_the_model_the_layers_or_the_heads_as_the_shape_says(values):
    found = means(values, np.random.default_rng(0), draws=200)
    heads, layers, whole = (part.rows("m", null=0.0, reason="none") for part in (found, found[:, 0], found[1, 2]))
    assert isinstance(heads, HeadTable)
    np.testing.assert_array_equal(heads.matrix("m"), found.value)
    np.testing.assert_array_equal(layers.layer_series("m", "ci_low"), found.low[:, 0])
    (row,) = whole.rows()
    assert (row["value"], row["ci_high"], row["n"], row["unit"]) == (
        found.value[1, 2],
        found.high[1, 2],
        40,
        "sequence",
    )
    assert row["layer"] is row["head"] is row["p"] is None and row["null"] == 0


def test_an_estimate_without_a_value_gives_its_reason():
    nan = np.array(np.nan)
    (row,) = Estimate(value=nan, low=nan, high=nan, p=nan, n=5).rows("m", reason="nothing to divide by").rows()
    assert row["value"] is None and row["reason"] == "nothing to divide by" and row["n"] == 5


def test_an_estimate_is_the_ratio_of_sums_and_absent_without_a_denominator():
    generator = np.random.default_rng(0)
    numerator_NX, denominator_NX = generator.normal(0.5, 1, (30, 2)), np.full((30, 2), 2.0)
    denominator_NX[:, 1] = 0
    found = estimate(numerator_NX, denominator_NX, generator, bootstrap_draws=200)
    assert found.value[0] == pytest.approx(numerator_NX[:, 0].sum() / 60)
    assert found.low[0] < found.value[0] < found.high[0] and found.p[0] < 0.05
    assert np.isnan([found.value[1], found.low[1], found.p[1]]).all()


def test_without_controls_the_interval_is_that_of_the_ratios_alone():
    numerator_NX = np.random.default_rng(0).normal(0.5, 1, (12, 2))
    found = estimate(numerator_NX, 2, np.random.default_rng(1), bootstrap_draws=200)
    alone = means(numerator_NX / 2, np.random.default_rng(1), draws=200)
    np.testing.assert_allclose((found.low, found.high), (alone.low, alone.high), rtol=1e-12)
