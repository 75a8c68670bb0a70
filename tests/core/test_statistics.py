import itertools

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from headdyn.core.statistics import (
    Effect,
    at_least_as_high,
    benjamini_hochberg,
    binomial_interval,
    bootstrap_interval,
    draws_test,
    effect_over_seeds,
    largest_flip_test,
    ratio_contributions,
    sign_flip_test,
    smallest_detectable,
    spread_beyond_sampling,
    spread_of_interval,
    t_interval,
    without_controls,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- Benjamini–Hochberg


def test_q_values_of_a_hand_worked_family():
    # m p / rank = 0.05, 0.02 * 5 / 2, 0.04 * 5 / 3, 0.1, 0.9; the minimum from the right pulls the third down.
    p = np.array([0.9, 0.01, 0.04, 0.02, 0.05])
    np.testing.assert_allclose(benjamini_hochberg(p), [0.9, 0.05, 0.0625, 0.05, 0.0625])


def test_q_values_agree_with_scipy_and_keep_the_shape():
    p = rng().random((3, 7))
    np.testing.assert_array_equal(benjamini_hochberg(p).ravel(), scipy.stats.false_discovery_control(p.ravel()))
    assert benjamini_hochberg(np.array([])).shape == (0,)
    without_minimum = p.size * p.ravel() / scipy.stats.rankdata(p.ravel())
    assert not np.allclose(benjamini_hochberg(p).ravel(), without_minimum)


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.1])
def test_q_values_refuse_what_is_no_probability(bad):
    with pytest.raises(ValueError, match="must lie in 0"):
        benjamini_hochberg(np.array([0.5, bad]))


# --- Sign flips


def enumerated(values: np.ndarray) -> float:
    sums = [np.dot(signs, values) for signs in itertools.product((1, -1), repeat=len(values))]
    return float(np.mean(np.abs(sums) >= abs(values.sum()) - 1e-9))


def test_sign_flips_enumerate_small_samples():
    values = rng(1).normal(0.5, 1, size=(8, 3))
    np.testing.assert_allclose(sign_flip_test(values, rng()), [enumerated(column) for column in values.T])


def test_sign_flips_by_hand():
    # 1 + 2 + 3 is the largest of the 8 sums: two-sided 2/8. All zero: every sum ties.
    values = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    np.testing.assert_allclose(sign_flip_test(values, rng()), [2 / 8, 1])


def test_sampled_sign_flips_approach_the_enumerated_p():
    values = rng(2).normal(0.35, 1, size=(16, 4))  # 65,536 patterns, more than the draws
    exact = np.array([enumerated(column) for column in values.T])
    sampled = sign_flip_test(values, rng(), draws=20_000)
    assert np.all(np.abs(sampled - exact) < 4 * np.sqrt(exact * (1 - exact) / 20_000) + 1 / 20_000)
    assert sign_flip_test(np.ones((40, 1)), rng(), draws=9_999)[0] == 1 / 10_000  # never 0


def test_sign_flip_p_is_uniform_under_the_null_and_tokens_as_units_are_not():
    null = rng(3).normal(size=(20, 2_000))
    p = sign_flip_test(null, rng(4), draws=2_000)
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(p <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2_000)
    # Mutant: each unit counted 9 times, as tokens of a sequence would be.
    pseudo = sign_flip_test(np.repeat(null, 9, axis=0), rng(4), draws=2_000)
    assert np.mean(pseudo <= 0.05) > 0.3


def test_the_largest_of_all_columns_enumerated():
    values = rng(5).normal((0.2, 0.9, 0.5), (1, 1, 30), size=(8, 3))  # each column counts in its own spread
    signs = np.array(list(itertools.product((1, -1), repeat=8)))
    scaled = values / np.sqrt((values**2).sum(0))
    largest = np.array([max(abs((row[:, None] * scaled).sum(0))) for row in signs])
    by_hand = [(largest >= abs(column.sum()) - 1e-12).mean() for column in scaled.T]
    np.testing.assert_allclose(largest_flip_test(values, rng()), by_hand)
    alone = largest_flip_test(values[:, :1], rng())
    np.testing.assert_allclose(alone, sign_flip_test(values[:, :1], rng()))
    assert (largest_flip_test(values, rng()) >= sign_flip_test(values, rng())).all()


def test_the_best_of_many_heads_can_be_as_sure_as_one_head_and_chance_is_not():
    values = rng(6).normal(size=(64, 144))
    assert largest_flip_test(values, rng(), draws=999).min() > 0.05 > sign_flip_test(values, rng(), draws=999).min()
    values[:, 7] += 2
    p = largest_flip_test(values, rng(), draws=9_999)
    assert p[7] == 1e-4 and p[8:].min() > 0.05  # Bonferroni's least is 0.0144, times 20 checkpoints 0.29
    assert largest_flip_test(np.zeros((9, 2)), rng()).tolist() == [1.0, 1.0]


def test_the_largest_of_columns_without_effect_is_found_as_rarely_as_alpha_says():
    least = [largest_flip_test(rng(seed).normal(size=(12, 6)), rng(seed), draws=199).min() for seed in range(400)]
    assert np.mean(np.array(least) <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_sign_flips_refuse_nan():
    with pytest.raises(ValueError, match="NaN"):
        sign_flip_test(np.array([[1.0], [np.nan]]), rng())


def test_draws_test_counts_draws_at_least_as_extreme():
    null = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    np.testing.assert_allclose(draws_test(np.array([1.0, 3.0, -2.0]), null, alternative="greater"), [3 / 6, 1 / 6, 1])
    np.testing.assert_allclose(draws_test(np.array([1.0, 3.0, -2.0]), null), [5 / 6, 1 / 6, 3 / 6])


# --- Intervals


def test_bootstrap_interval_agrees_with_scipys_bca():
    values = rng(5).exponential(size=(40, 3))
    low, high = bootstrap_interval(values, rng(6), draws=40_000)
    for j in range(3):
        theirs = scipy.stats.bootstrap((values[:, j],), np.mean, n_resamples=40_000, method="BCa", rng=1)
        width = high[j] - low[j]  # both carry resampling noise: 1.6 % of the width at most, over ten seeds
        assert abs(low[j] - theirs.confidence_interval.low) < 0.03 * width
        assert abs(high[j] - theirs.confidence_interval.high) < 0.03 * width
        symmetric = np.quantile(rng(7).choice(values[:, j], (40_000, 40)).mean(1), [0.025, 0.975])
        assert abs(high[j] - symmetric[1]) > 0.03 * width  # mutant: plain percentiles miss the skew


def test_bootstrap_interval_scales_with_its_values_and_has_two_thousand_draws():
    values = rng(5).exponential(size=(40, 3))
    low, high = bootstrap_interval(values, rng(6))
    for scale in (1e-6, 1e6):
        scaled = bootstrap_interval(scale * values, rng(6), draws=2000)
        np.testing.assert_allclose(scaled, scale * np.array([low, high]), rtol=1e-9)


def test_bootstrap_interval_counts_a_tied_half_as_below():
    """Of three -1 and three 1 the mean of a draw is 0 in 31 %; half of these count as below, so nothing is shifted.

    The draws' law is binomial: 1/64 at -1, 7/64 at -2/3 or less, so that the 2.5 % point is -2/3.
    """
    low, high = bootstrap_interval(np.array([[-1.0], [1.0]] * 3), rng(11))
    np.testing.assert_allclose([low[0], high[0]], [-2 / 3, 2 / 3])


def test_bootstrap_interval_covers_the_mean_of_a_skewed_law():
    values = rng(8).exponential(size=(50, 1_000))
    low, high = bootstrap_interval(values, rng(9), draws=1_000)
    covered = np.mean((low <= 1) & (high >= 1))
    assert 0.89 < covered < 0.965  # measured 0.917 ± 0.009: BCa falls a little short at n = 50


def test_bootstrap_interval_without_spread_or_without_units():
    low, high = bootstrap_interval(np.full((10, 2), 0.1 + 0.2), rng())
    np.testing.assert_allclose([low, high], 0.3, rtol=1e-15)
    assert np.isnan(bootstrap_interval(np.ones((1, 2)), rng())).all()
    low, high = bootstrap_interval(np.array([[1.0, 1.0], [np.nan, 2.0], [3.0, 6.0]]), rng())
    assert np.isnan(low[0]) and 1 <= low[1] <= 3 <= high[1] <= 6


def test_t_interval_agrees_with_scipy():
    values = rng(10).normal(size=(5, 3))
    expected = scipy.stats.t.interval(0.95, 4, loc=values.mean(0), scale=scipy.stats.sem(values))
    np.testing.assert_allclose(t_interval(values), expected)
    two = scipy.stats.t.interval(0.95, 1, loc=values[:2].mean(0), scale=scipy.stats.sem(values[:2]))
    np.testing.assert_allclose(t_interval(values[:2]), two)
    assert np.isnan(t_interval(values[:1])).all()


def test_values_that_differ_by_rounding_are_as_high_as_each_other():
    assert at_least_as_high(np.array([0.1 + 0.2, 0.3, 0.2, 0.4])) == 3 / 4


def test_binomial_interval_agrees_with_scipy_and_never_undercovers():
    k = np.arange(21)
    low, high = binomial_interval(k, 20)
    for i in k:
        theirs = scipy.stats.binomtest(int(i), 20).proportion_ci(method="exact")
        np.testing.assert_allclose([low[i], high[i]], [theirs.low, theirs.high], atol=1e-12)
    truth = np.linspace(0.001, 0.999, 999)
    wilson = np.array([scipy.stats.binomtest(int(i), 20).proportion_ci(method="wilson") for i in k])

    def coverage(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        chance = scipy.stats.binom.pmf(k[:, None], 20, truth)
        return (chance * ((low[:, None] <= truth) & (truth <= high[:, None]))).sum(0)

    assert coverage(low, high).min() >= 0.95
    assert coverage(wilson[:, 0], wilson[:, 1]).min() < 0.9  # why Wilson's is not used


def test_binomial_interval_of_one_trial_by_hand():
    """What one success leaves possible is a chance of at least 2.5 %: of a smaller one it would be too rare."""
    for successes, expected in ((1, (0.025, 1.0)), (0, (0.0, 0.975))):
        np.testing.assert_allclose(binomial_interval(successes, 1), expected)


def test_binomial_interval_refuses_impossible_counts():
    with pytest.raises(ValueError, match="successes <= trials"):
        binomial_interval(3, 2)


# --- Ratios and spreads


def test_ratio_contributions_average_to_the_ratio_of_sums():
    numerator, denominator = rng(11).random((2, 30, 4))
    contributions = ratio_contributions(numerator, denominator)
    ratio = numerator.sum(0) / denominator.sum(0)
    np.testing.assert_allclose(contributions.mean(0), ratio)
    # Their spread is the ratio's: compare with the jackknife, which recomputes the ratio without each unit.
    left_out = (numerator.sum(0) - numerator) / (denominator.sum(0) - denominator)
    jackknife = np.sqrt(29 / 30 * ((left_out - left_out.mean(0)) ** 2).sum(0))
    np.testing.assert_allclose(contributions.std(0, ddof=1) / np.sqrt(30), jackknife, rtol=0.05)
    naive = (numerator / denominator).std(0, ddof=1) / np.sqrt(30)
    assert not np.allclose(naive, jackknife, rtol=0.05)
    assert np.isnan(ratio_contributions(np.zeros((3, 1)), np.zeros((3, 1)))).all()


@pytest.mark.parametrize(("spread", "low", "high"), [(0.0, 0.95, 1.0), (0.3, 0.92, 0.975), (1.0, 0.92, 0.975)])
def test_spread_beyond_sampling_is_unbiased_and_covers(spread, low, high):
    means = spread * np.linspace(0, 1, 5)
    draws = rng(12).normal(size=(60, 1_000, 5)) + 0.5 * rng(13).normal(size=(60, 1_000, 1)) + means
    observed, sampling, ci_low, ci_high = spread_beyond_sampling(draws)
    estimate = observed - sampling
    error = estimate.std() / np.sqrt(1_000)
    assert abs(estimate.mean() - means.var()) < 4 * error
    assert abs(observed.mean() - means.var()) > 4 * error  # mutant: the seed's uncorrected variance is biased
    covered = np.mean((ci_low <= means.var()) & (means.var() <= ci_high))
    assert low <= covered <= high  # measured 0.999, 0.943, 0.933: at no spread at all the interval is conservative


def test_what_sampling_adds_to_a_spread_is_the_covariance_of_the_mean():
    values = rng(16).normal(size=(7, 1, 3)) * [1.0, 2.0, 3.0]
    covariance = np.cov((values - values.mean(-1, keepdims=True))[:, 0].T) / 7
    observed, sampling, low, high = (part[0] for part in spread_beyond_sampling(values))
    assert observed == pytest.approx(values.mean(0)[0].var()) and sampling == pytest.approx(np.trace(covariance) / 3)
    assert low + high == pytest.approx(2 * (observed - sampling))


def test_controls_leave_the_mean_and_take_what_they_explain():
    controls, noise = rng(14).normal(size=(40, 2)), rng(15).normal(size=(40, 3))
    controls -= controls.mean(0)
    values = 0.3 + controls @ np.array([[5.0, 0, -3], [0, 2, 7]]) + noise
    freed = without_controls(values, controls)
    np.testing.assert_allclose(freed.mean(0), values.mean(0))
    assert np.all(values.std(0) > 1.8 * freed.std(0))
    design = np.column_stack((np.ones(40), controls))
    for j in range(3):  # their spread is the regression's residual standard error
        _, squares, *_ = np.linalg.lstsq(design, values[:, j], rcond=None)
        assert freed[:, j].std(ddof=1) == pytest.approx(np.sqrt(squares[0] / (40 - 3)))
    values[3, 1] = np.nan
    np.testing.assert_allclose(without_controls(values, controls)[:, [0, 2]], freed[:, [0, 2]])
    assert np.isnan(without_controls(values, controls)[:, 1]).all()
    values[3, 1] = 0
    freed = without_controls(values, controls)
    repeated = without_controls(
        values, np.column_stack((controls, controls[:, 0]))
    )  # collinear controls are no trouble
    np.testing.assert_allclose((repeated - repeated.mean(0)) * np.sqrt(36 / 37), freed - freed.mean(0), atol=1e-12)


# --- Effects over seeds


def test_an_effect_over_seeds_is_students():
    per_seed = np.array([0.8, 1.6, 0.6])
    effect = effect_over_seeds(per_seed)
    assert (effect.value, effect.n) == (pytest.approx(1), 3)
    np.testing.assert_allclose((effect.ci_low, effect.ci_high), t_interval(per_seed))
    assert effect.p == pytest.approx(scipy.stats.ttest_1samp(per_seed, 0).pvalue)
    assert spread_of_interval(*t_interval(per_seed), 3) == pytest.approx(per_seed.std(ddof=1))


def test_one_seed_has_no_interval_and_no_seed_no_value():
    one = effect_over_seeds(np.array([2.0]))
    assert (one.value, one.ci_low, one.p, one.n) == (2, None, None, 1)
    assert effect_over_seeds(np.array([])) == Effect()
    assert effect_over_seeds(np.array([0.5, 0.5])).p == 0 and effect_over_seeds(np.zeros(2)).p == 1


@pytest.mark.parametrize(("units", "effect"), [(5, 1.6820), (10, 0.9960), (20, 0.6604), (50, 0.4042)])
def test_smallest_detectable_effects_are_those_of_power_tables(units, effect):
    # A paired t test at 0.05, power 0.8: dz as statsmodels' TTestPower().solve_power gives it.
    assert smallest_detectable(1.0, units) == pytest.approx(effect, abs=5e-5)
    assert smallest_detectable(3.0, units) == pytest.approx(3 * effect, abs=2e-4)


@pytest.mark.parametrize("units", [2, 3, 4, 8])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_the_smallest_detectable_effect_is_found_with_its_power(units, power):
    effect = smallest_detectable(2.0, units, power=power)
    critical = scipy.stats.t.ppf(0.975, units - 1)

    # |t| > critical for t = (Z + δ) / √(V / df), V chi-squared: averaged over V by quadrature, not by the noncentral t.
    def missed(v):
        half, shift = critical * np.sqrt(v / (units - 1)), effect * np.sqrt(units) / 2
        law = scipy.stats.norm.cdf(half - shift) - scipy.stats.norm.cdf(-half - shift)
        return law * scipy.stats.chi2.pdf(v, units - 1)

    chance = 1 - scipy.integrate.quad(missed, 0, np.inf, limit=200)[0]
    assert chance == pytest.approx(power, abs=1e-5)
    # Mutant: the normal law in place of the noncentral t promises more than two seeds hold.
    assert (scipy.stats.norm.ppf(0.975) + scipy.stats.norm.ppf(power)) * 2 / np.sqrt(units) < 0.95 * effect


def test_one_unit_detects_nothing():
    with pytest.raises(ValueError, match="at least 2"):
        smallest_detectable(1.0, 1)


def test_all_sign_flips_of_thirteen_units_by_enumeration():
    """8,192 of them, more than are held in memory at once."""
    values = rng(17).normal(0.2, 1, size=13)
    sums = np.array([np.dot(signs, values) for signs in itertools.product((-1, 1), repeat=13)])
    hits = np.abs(sums) >= abs(values.sum()) - 1e-9
    assert sign_flip_test(values, rng()) == pytest.approx(hits.mean(), abs=1e-12)


def test_draws_far_from_zero_are_compared_about_their_mean():
    draws = np.array([4.0, 5.0, 6.0])
    np.testing.assert_allclose(draws_test(np.array([5.5, 3.0, 7.0]), draws), [3 / 4, 1 / 4, 1 / 4])


def test_a_column_that_lacks_one_value_has_no_interval():
    values = rng(18).normal(size=(20, 2))
    values[3, 1] = np.nan
    low, high = bootstrap_interval(values, rng())
    assert np.isfinite([low[0], high[0]]).all() and np.isnan([low[1], high[1]]).all()
