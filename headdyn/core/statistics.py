"""Statistics as pure functions of arrays (science.md §0): numpy and scipy only, every random draw from a generator.

The first axis of an array, `N`, is over independent units: sequences, pairs, heads or runs. All further axes, `X`, are
columns: quantities measured on the same units. One call uses the same random draws for all columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import scipy  # imports its parts only when they are used, which keeps planning fast

_LEVEL = 0.95  # of intervals


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Benjamini–Hochberg q-values of one family of p-values, in the shape given.

    q_(i) = min over j ≥ i of m p_(j) / j (Benjamini & Hochberg 1995, step-up form). Rejecting where q ≤ α controls the
    false discovery rate at α under independence and positive dependence. Raises ValueError for a p outside 0..1 or NaN.
    """
    p = np.asarray(p, dtype=float)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p-values must lie in 0..1; got {p[~((p >= 0) & (p <= 1))][:3]}; leave absent ones out")
    flat = p.ravel()
    order = np.argsort(flat)
    scaled = flat[order] * len(flat) / np.arange(1, len(flat) + 1)
    q = np.empty_like(flat)
    q[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return q.reshape(p.shape)


def sign_flip_test(values_NX: np.ndarray, generator: np.random.Generator, *, draws: int = 9_999) -> np.ndarray:
    """Two-sided p-value of each column's mean, shape X, against the null that every unit's value is symmetric about 0.

    If 2^N ≤ draws, all sign patterns are enumerated and p is exact. Otherwise p = (1 + hits) / (1 + draws), which is
    valid for any number of draws (Phipson & Smyth 2010) and never 0. Sums that differ by rounding alone count as equal,
    and equal sums as hits. Raises ValueError for a NaN.
    """
    columns = _columns(values_NX, "sign_flip_test")
    observed, slack = columns.sum(0), 1e-12 * np.abs(columns).sum(0)
    hits = np.zeros(columns.shape[1])
    for signs_RN in _signs(len(columns), draws, generator):
        hits += (np.abs(signs_RN @ columns) >= np.abs(observed) - slack).sum(0)
    return _flip_p(hits, len(columns), draws).reshape(np.shape(values_NX)[1:])


def largest_flip_test(values_NX: np.ndarray, generator: np.random.Generator, *, draws: int = 9_999) -> np.ndarray:
    """Two-sided p-value of each column's mean against 0, shape X, corrected for testing all columns.

    p is the share of sign flips in which any column, in units of its own spread, is at least as far from 0 as the
    column in question is without flips (Westfall & Young 1993, maxT). With many columns Bonferroni's p cannot be as
    small as a single test's; this one can. The flips are those that `sign_flip_test` draws from the same generator. A
    column of zeros has p 1. Raises ValueError for a NaN.
    """
    columns = _columns(values_NX, "largest_flip_test")
    units = len(columns)
    size_X = np.sqrt((columns**2).sum(0))  # the same whatever the signs
    columns = np.divide(columns, size_X, out=np.zeros_like(columns), where=size_X > 0)
    observed, hits = np.abs(columns.sum(0)), np.zeros(columns.shape[1])
    for signs_RN in _signs(units, draws, generator):
        largest_R = np.abs(signs_RN @ columns).max(1, initial=0.0)
        hits += (largest_R[:, None] >= observed - 1e-12 * units).sum(0)
    return _flip_p(hits, units, draws).reshape(np.shape(values_NX)[1:])


def _columns(values_NX: np.ndarray, test: str) -> np.ndarray:
    """The values as columns [N, columns]. Raises ValueError, which names the test, for a NaN."""
    if np.isnan(columns := np.asarray(values_NX, dtype=float).reshape(len(values_NX), -1)).any():
        raise ValueError(f"{test} got NaN values; leave out the columns that have units without a value")
    return columns


def _signs(units: int, draws: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Signs ±1 [R, units]: all patterns if they are at most `draws`, else so many at random. R ≤ 4096 bounds memory."""
    exact = 2**units <= draws
    total = 2**units if exact else draws
    for start in range(0, total, 4096):
        rows = min(4096, total - start)
        if exact:
            bits = np.arange(start, start + rows)[:, None] >> np.arange(units) & 1
        else:
            bits = generator.integers(0, 2, size=(rows, units), dtype=np.int8)
        yield 1.0 - 2.0 * bits


def _flip_p(hits: np.ndarray, units: int, draws: int) -> np.ndarray:
    """The p-values, from the numbers of hits among the sign flips that `_signs` gives for these units and draws."""
    return hits / 2**units if 2**units <= draws else (1 + hits) / (1 + draws)


def draws_test(
    value_X: np.ndarray, null_R: np.ndarray, *, alternative: Literal["two-sided", "greater"] = "two-sided"
) -> np.ndarray:
    """p-value of each value given R draws of its null, shape X: (1 + hits) / (1 + R).

    Hits are draws at least as large as the value; if two-sided, draws at least as far from the mean of the draws.
    """
    value_X, null_R = np.asarray(value_X, dtype=float), np.asarray(null_R, dtype=float)
    if alternative == "two-sided":
        value_X, null_R = np.abs(value_X - null_R.mean()), np.abs(null_R - null_R.mean())
    null_R = np.sort(null_R)
    hits = len(null_R) - np.searchsorted(null_R, value_X, side="left")
    return (1 + hits) / (1 + len(null_R))


def at_least_as_high(value_R: np.ndarray) -> float:
    """p-value of the first of R values: the share of all R that are at least as high, up to rounding."""
    return float((value_R >= value_R[0] - 1e-9 * np.abs(value_R).max()).mean())


def bootstrap_interval(
    values_NX: np.ndarray, generator: np.random.Generator, *, draws: int = 2_000
) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of each column's mean, (low_X, high_X), by the BCa bootstrap over units (Efron 1987).

    NaN for a column with a NaN, and for all columns if there is only one unit.
    """
    values_NX = np.asarray(values_NX, dtype=float)
    units = len(values_NX)
    columns = values_NX.reshape(units, -1)
    low, high = np.full((2, columns.shape[1]), np.nan)
    usable = ~np.isnan(columns).any(0) & (units > 1)
    columns = columns[:, usable]
    offset = columns.mean(0)
    columns = columns - offset  # so that `share_below` is free of rounding if all units are equal

    picks = generator.integers(0, units, size=(draws, units)) + units * np.arange(draws)[:, None]
    counts = np.bincount(picks.ravel(), minlength=draws * units).reshape(draws, units)
    means = np.sort(counts @ columns / units, axis=0)

    share_below = ((means < 0).sum(0) + 0.5 * (means == 0).sum(0)) / draws
    bias = scipy.special.ndtri(np.clip(share_below, 0.5 / draws, 1 - 0.5 / draws))
    squares = (columns**2).sum(0)
    skew = np.divide((columns**3).sum(0), 6 * squares**1.5, out=np.zeros_like(squares), where=squares > 0)
    column = np.arange(columns.shape[1])
    for bound, share in ((low, (1 - _LEVEL) / 2), (high, (1 + _LEVEL) / 2)):
        shifted = bias + scipy.special.ndtri(share)
        rank = scipy.special.ndtr(bias + shifted / (1 - skew * shifted)) * (draws - 1)
        floor = np.minimum(rank.astype(int), draws - 2)
        step = means[floor + 1, column] - means[floor, column]
        bound[usable] = offset + means[floor, column] + (rank - floor) * step
    return low.reshape(values_NX.shape[1:]), high.reshape(values_NX.shape[1:])


def t_interval(values_NX: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Student's 95 % interval of each column's mean, (low_X, high_X); NaN if there is only one unit."""
    values_NX = np.asarray(values_NX, dtype=float)
    units = len(values_NX)
    mean = values_NX.mean(0)
    if units < 2:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = scipy.special.stdtrit(units - 1, (1 + _LEVEL) / 2) * values_NX.std(0, ddof=1) / np.sqrt(units)
    return mean - half, mean + half


def binomial_interval(
    successes: np.ndarray | int, trials: np.ndarray | int, *, level: float = _LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """Clopper–Pearson interval of a probability, whose coverage is at least `level` for every true value.

    Wilson's interval is not used, because its coverage falls to 84 % (nominal 95 %, n = 10 to 50, by enumeration) near
    0 and 1, where a detector's power and false-positive rate lie. Raises ValueError unless 0 ≤ successes ≤ trials ≠ 0.
    """
    k, n = np.asarray(successes, dtype=float), np.asarray(trials, dtype=float)
    if not np.all((k >= 0) & (k <= n) & (n > 0)):
        raise ValueError(f"successes={successes} of trials={trials}; need 0 <= successes <= trials and trials > 0")
    tail = (1 - level) / 2
    low = np.where(k > 0, scipy.special.betaincinv(np.maximum(k, 1), n - k + 1, tail), 0.0)
    high = np.where(k < n, scipy.special.betaincinv(k + 1, np.maximum(n - k, 1), 1 - tail), 1.0)
    return low, high


def adjusted_rand(table_Xab: np.ndarray) -> np.ndarray:
    """Agreement of two labellings, from the counts of every pair of labels, shape X (Hubert & Arabie 1985).

    1 for equal labellings, 0 in expectation over relabellings; 1 too where no relabelling could agree less.
    """

    def pairs(count: np.ndarray) -> np.ndarray:
        return count * (count - 1) / 2

    both_X = pairs(table_Xab).sum((-2, -1))
    first_X, second_X = (pairs(table_Xab.sum(axis)).sum(-1) for axis in (-1, -2))
    chance_X = first_X * second_X / pairs(table_Xab.sum((-2, -1)))
    room_X = (first_X + second_X) / 2 - chance_X
    return np.divide(both_X - chance_X, room_X, out=np.ones_like(room_X), where=np.abs(room_X) > 1e-12)


def ratio_contributions(numerator_NX: np.ndarray, denominator_NX: np.ndarray) -> np.ndarray:
    """A value for each unit, r + (num − r den) / mean(den), whose mean is the ratio r = Σ numerator / Σ denominator.

    With these values, intervals and tests of means apply to ratios (a linearisation, exact if denominators are equal).
    NaN for a column whose denominators sum to 0.
    """
    numerator_NX, denominator_NX = np.broadcast_arrays(numerator_NX, denominator_NX)
    scale = denominator_NX.mean(0, dtype=float)
    scale = np.where(scale == 0, np.nan, scale)
    ratio = numerator_NX.mean(0, dtype=float) / scale
    return ratio + (numerator_NX - ratio * denominator_NX) / scale


def without_controls(values_NX: np.ndarray, controls_NJ: np.ndarray) -> np.ndarray:
    """The values without the part of their deviations that J control variates explain (least squares), same shape.

    Columns keep their means. The expected value of each control must be 0: the noise that values and controls share
    then no longer widens intervals. Deviations are multiplied by √((N − 1)/(N − 1 − J)), which makes their variance the
    unbiased variance of a fit's errors. A column with a NaN becomes NaN; the others do not.
    """
    values_NX = np.asarray(values_NX, dtype=float)
    units, controls = controls_NJ.shape
    columns, mean = values_NX.reshape(units, -1), values_NX.reshape(units, -1).mean(0)
    controls_NJ = controls_NJ - controls_NJ.mean(0)
    fitted = controls_NJ @ (np.linalg.pinv(controls_NJ) @ (columns - mean))  # column by column, unlike lstsq
    errors = (columns - mean - fitted) * np.sqrt((units - 1) / (units - 1 - controls))
    return (mean + errors).reshape(values_NX.shape)


def spread_beyond_sampling(values_NXJ: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The variance of J means around their average (ddof 0), and the part of it that sampling alone causes.

    Returns (observed_X, sampling_X, low_X, high_X): the estimate is observed − sampling, which is unbiased and so can
    be negative; the 95 % interval is the estimate's. The J means come from the same N units and may be correlated.
    With m the centred means, μ their expectation and Σ their covariance, E[mᵀm] = μᵀμ + tr Σ and Var[mᵀm] = 4 μᵀΣμ +
    2 tr Σ² for Gaussian means. mᵀΣm exceeds μᵀΣμ by tr Σ² on average, which the interval corrects.
    """
    values_NXJ = np.asarray(values_NXJ, dtype=float)
    units, _, ways = values_NXJ.shape
    centred = values_NXJ - values_NXJ.mean(-1, keepdims=True)
    mean_XJ = centred.mean(0)
    noise = np.moveaxis(centred - mean_XJ, 0, 1)  # XNJ
    covariance_XJJ = noise.swapaxes(1, 2) @ noise / (units * (units - 1))
    observed = (mean_XJ**2).mean(-1)
    sampling = np.trace(covariance_XJJ, axis1=1, axis2=2) / ways
    along = np.einsum("xj,xjk,xk->x", mean_XJ, covariance_XJJ, mean_XJ)
    square = (covariance_XJJ**2).sum((1, 2))
    half = scipy.special.ndtri((1 + _LEVEL) / 2) * np.sqrt(np.maximum(4 * along - 2 * square, 2 * square)) / ways
    return observed, sampling, observed - sampling - half, observed - sampling + half


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A mean over `n` seeds. With one seed there is no interval, with none no value."""

    value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p: float | None = None
    n: int = 0


def effect_over_seeds(per_seed_N: np.ndarray) -> Effect:
    """The mean of one value for each seed, with Student's 95 % interval and the two-sided p against 0."""
    seeds = len(per_seed_N)
    if seeds == 0:
        return Effect()
    mean = float(per_seed_N.mean())
    if seeds == 1:
        return Effect(value=mean, n=1)
    low, high = t_interval(per_seed_N)
    spread = float(per_seed_N.std(ddof=1))
    error = spread / np.sqrt(seeds)
    p = 2 * scipy.special.stdtr(seeds - 1, -abs(mean) / error) if error > 0 else float(mean == 0)
    return Effect(value=mean, ci_low=float(low), ci_high=float(high), p=float(p), n=seeds)


def spread_of_interval(low: float, high: float, units: int) -> float:
    """The standard deviation of `units` values whose mean has this 95 % interval of Student's (`t_interval`)."""
    return float((high - low) / 2 * np.sqrt(units) / scipy.special.stdtrit(units - 1, (1 + _LEVEL) / 2))


def smallest_detectable(spread: float, units: int, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true mean that a two-sided t test of `units` values detects with probability `power`.

    `spread` is the values' standard deviation. The test statistic follows a noncentral t with units − 1 degrees of
    freedom and noncentrality mean · √units / spread; bisection finds the mean at which P(|t| > critical value) = power.
    Raises ValueError for fewer than two units.
    """
    if units < 2:
        raise ValueError(f"units={units} have no spread; a smallest detectable effect needs at least 2")
    return _detected_noncentrality(units - 1, power, alpha) * spread / float(np.sqrt(units))


@cache
def _detected_noncentrality(degrees: int, power: float, alpha: float) -> float:
    critical = scipy.special.stdtrit(degrees, 1 - alpha / 2)

    def power_at(noncentrality: float) -> float:
        below, above = scipy.special.nctdtr(degrees, noncentrality, np.array([-critical, critical]))
        return float(np.nan_to_num(below) + 1 - above)  # scipy gives NaN for a lower tail under 1e-15

    low, high = 0.0, 1.0
    while power_at(high) < power:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if power_at(middle) < power else (low, middle)
    return high
