"""Statistics as pure functions of arrays (science.md §0): numpy and scipy only, every random draw from a generator.

Arrays carry the independent units (sequences, pairs, heads, runs) on their first axis, `N`; whatever follows, `X`, is
many questions asked of the same units and answered at once. The answers to one call share their random draws.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy  # whose parts are imported where they are first used, since planning imports this module

Alternative = Literal["two-sided", "greater", "less"]


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Benjamini–Hochberg q-values of one family of p-values, in the shape given.

    q_(i) = min over j ≥ i of m p_(j) / j (Benjamini & Hochberg 1995, step-up form). Rejecting where q ≤ α controls the
    false discovery rate at α under independence and positive dependence.
    Raises ValueError on a p outside 0..1 (NaN included).
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


def sign_flip_test(
    values_NX: np.ndarray, generator: np.random.Generator, *, draws: int = 9_999, alternative: Alternative = "two-sided"
) -> np.ndarray:
    """p-value of each column's mean, shape X, against the null that every unit's value is symmetric about 0.

    Where 2^N ≤ draws all sign patterns are enumerated and p is exact; otherwise p = (1 + hits) / (1 + draws), which is
    valid at any number of draws (Phipson & Smyth 2010) and never 0. Rounding counts as a tie, a tie as a hit.
    Raises ValueError on a NaN.
    """
    values_NX = np.asarray(values_NX, dtype=float)
    if np.isnan(values_NX).any():
        raise ValueError("sign_flip_test got NaN values; leave out the columns that have units without a value")
    units = len(values_NX)
    columns = values_NX.reshape(units, -1)
    exact = 2**units <= draws
    observed, slack = columns.sum(0), 1e-12 * np.abs(columns).sum(0)
    hits = np.zeros(columns.shape[1])
    total = 2**units if exact else draws
    for signs_RN in _signs(units, total, exact, generator):
        flipped = signs_RN @ columns
        if alternative == "two-sided":
            hits += (np.abs(flipped) >= np.abs(observed) - slack).sum(0)
        elif alternative == "greater":
            hits += (flipped >= observed - slack).sum(0)
        else:
            hits += (flipped <= observed + slack).sum(0)
    p = hits / total if exact else (1 + hits) / (1 + total)
    return p.reshape(values_NX.shape[1:])


def largest_flip_test(values_NX: np.ndarray, generator: np.random.Generator, *, draws: int = 9_999) -> np.ndarray:
    """Two-sided p of each column's mean against 0, shaped X, corrected for having looked at all columns.

    Each flip takes the signs of whole units and counts where the largest column, each in its own spread, is at least
    as far from 0 as the column asked about (Westfall & Young 1993, maxT). However many the columns, p can be as small
    as a single test's, which Bonferroni's cannot. Flips are those of `sign_flip_test` from the same generator. A column
    of zeros has p 1. Raises ValueError on a NaN.
    """
    values_NX = np.asarray(values_NX, dtype=float)
    if np.isnan(values_NX).any():
        raise ValueError("largest_flip_test got NaN values; leave out the columns that have units without a value")
    units = len(values_NX)
    columns = values_NX.reshape(units, -1)
    exact = 2**units <= draws
    size_X = np.sqrt((columns**2).sum(0))  # the same whatever the signs
    columns = np.divide(columns, size_X, out=np.zeros_like(columns), where=size_X > 0)
    observed, hits = np.abs(columns.sum(0)), np.zeros(columns.shape[1])
    total = 2**units if exact else draws
    for signs_RN in _signs(units, total, exact, generator):
        largest_R = np.abs(signs_RN @ columns).max(1, initial=0.0)
        hits += (largest_R[:, None] >= observed - 1e-12 * units).sum(0)
    p = hits / total if exact else (1 + hits) / (1 + total)
    return p.reshape(values_NX.shape[1:])


def _signs(units: int, total: int, exact: bool, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Signs ±1 [R, units] of `total` flips, or of all of them, at most 4096 at a time, which bounds the memory."""
    for start in range(0, total, 4096):
        rows = min(4096, total - start)
        if exact:
            bits = np.arange(start, start + rows)[:, None] >> np.arange(units) & 1
        else:
            bits = generator.integers(0, 2, size=(rows, units), dtype=np.int8)
        yield 1.0 - 2.0 * bits


def draws_test(value_X: np.ndarray, null_R: np.ndarray, *, alternative: Alternative = "two-sided") -> np.ndarray:
    """p-value of each value against `R` draws of its null: (1 + hits) / (1 + R), two-sided about the draws' mean."""
    value_X, null_R = np.asarray(value_X, dtype=float), np.asarray(null_R, dtype=float)
    if alternative == "two-sided":
        value_X, null_R = np.abs(value_X - null_R.mean()), np.abs(null_R - null_R.mean())
    elif alternative == "less":
        value_X, null_R = -value_X, -null_R
    null_R = np.sort(null_R)
    hits = len(null_R) - np.searchsorted(null_R, value_X, side="left")
    return (1 + hits) / (1 + len(null_R))


def at_least_as_high(value_R: np.ndarray) -> float:
    """p of the first of R values: the share of all that are at least as high, itself included, up to rounding."""
    return float((value_R >= value_R[0] - 1e-9 * np.abs(value_R).max()).mean())


def bootstrap_interval(
    values_NX: np.ndarray, generator: np.random.Generator, *, draws: int = 2_000, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of each column's mean, (low_X, high_X), by resampling units: BCa (Efron 1987).

    A column with a NaN, and any column where there is only one unit, gets NaN: no interval can be had.
    """
    values_NX = np.asarray(values_NX, dtype=float)
    units = len(values_NX)
    columns = values_NX.reshape(units, -1)
    low, high = np.full((2, columns.shape[1]), np.nan)
    usable = ~np.isnan(columns).any(0) & (units > 1)
    columns = columns[:, usable]
    offset = columns.mean(0)
    columns = columns - offset  # keeps rounding out of the comparison below where all units are equal

    picks = generator.integers(0, units, size=(draws, units)) + units * np.arange(draws)[:, None]
    counts = np.bincount(picks.ravel(), minlength=draws * units).reshape(draws, units)
    means = np.sort(counts @ columns / units, axis=0)

    below = ((means < 0).sum(0) + 0.5 * (means == 0).sum(0)) / draws
    bias = scipy.special.ndtri(np.clip(below, 0.5 / draws, 1 - 0.5 / draws))
    second = (columns**2).sum(0)
    skew = np.divide((columns**3).sum(0), 6 * second**1.5, out=np.zeros_like(second), where=second > 0)
    for bound, share in ((low, (1 - level) / 2), (high, (1 + level) / 2)):
        shifted = bias + scipy.special.ndtri(share)
        place = scipy.special.ndtr(bias + shifted / (1 - skew * shifted)) * (draws - 1)
        floor = np.minimum(place.astype(int), draws - 2)
        at = np.arange(columns.shape[1])
        bound[usable] = offset + means[floor, at] + (place - floor) * (means[floor + 1, at] - means[floor, at])
    return low.reshape(values_NX.shape[1:]), high.reshape(values_NX.shape[1:])


def t_interval(values_NX: np.ndarray, *, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Student interval of each column's mean over units, (low_X, high_X); NaN where there is only one unit."""
    values_NX = np.asarray(values_NX, dtype=float)
    units = len(values_NX)
    mean = values_NX.mean(0)
    if units < 2:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = scipy.special.stdtrit(units - 1, (1 + level) / 2) * values_NX.std(0, ddof=1) / np.sqrt(units)
    return mean - half, mean + half


def binomial_interval(
    successes: np.ndarray | int, trials: np.ndarray | int, *, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Clopper–Pearson interval of a probability: coverage is at least `level` for every true value.

    Not Wilson's, whose coverage falls to 84 % (nominal 95 %, n = 10 to 50, by enumeration) near 0 and 1, where a
    detector's power and false-positive rate are claimed.
    Raises ValueError unless 0 ≤ successes ≤ trials and trials > 0.
    """
    k, n = np.asarray(successes, dtype=float), np.asarray(trials, dtype=float)
    if not np.all((k >= 0) & (k <= n) & (n > 0)):
        raise ValueError(f"successes={successes} of trials={trials}; need 0 <= successes <= trials and trials > 0")
    tail = (1 - level) / 2
    low = np.where(k > 0, scipy.special.betaincinv(np.maximum(k, 1), n - k + 1, tail), 0.0)
    high = np.where(k < n, scipy.special.betaincinv(k + 1, np.maximum(n - k, 1), 1 - tail), 1.0)
    return low, high


def ratio_contributions(numerator_NX: np.ndarray, denominator_NX: np.ndarray) -> np.ndarray:
    """Per-unit values whose mean is the ratio of sums r = Σ numerator / Σ denominator: r + (num − r den) / mean(den).

    So intervals and tests of means serve ratio estimators too (linearisation; exact where denominators are equal).
    NaN where the denominators of a column sum to 0.
    """
    numerator_NX, denominator_NX = np.broadcast_arrays(numerator_NX, denominator_NX)
    scale = denominator_NX.mean(0, dtype=float)
    scale = np.where(scale == 0, np.nan, scale)
    ratio = numerator_NX.mean(0, dtype=float) / scale
    return ratio + (numerator_NX - ratio * denominator_NX) / scale


def without_controls(values_NX: np.ndarray, controls_NJ: np.ndarray) -> np.ndarray:
    """The values less what J control variates explain of them (least squares), their means unchanged.

    For controls whose means are known to be 0: what values and controls share then no longer widens intervals nor
    drowns tests. Deviations are scaled up by √((N − 1)/(N − 1 − J)), so that their variance is that of a fit's errors.
    A column with a NaN becomes NaN, the others do not.
    """
    values_NX = np.asarray(values_NX, dtype=float)
    units, controls = controls_NJ.shape
    columns, mean = values_NX.reshape(units, -1), values_NX.reshape(units, -1).mean(0)
    controls_NJ = controls_NJ - controls_NJ.mean(0)
    fitted = controls_NJ @ (np.linalg.pinv(controls_NJ) @ (columns - mean))  # column by column, unlike lstsq
    errors = (columns - mean - fitted) * np.sqrt((units - 1) / (units - 1 - controls))
    return (mean + errors).reshape(values_NX.shape)


def spread_beyond_sampling(
    values_NXJ: np.ndarray, *, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Variance of J means around their average (ddof 0) with the part that sampling alone puts there removed.

    Returns (observed_X, sampling_X, low_X, high_X): the estimate is observed − sampling (unbiased, so it can be
    negative), the interval is for the estimate. The J means come from the same N units and may be correlated. With m
    the centred means and Σ their covariance, E[mᵀm] = μᵀμ + tr Σ and Var[mᵀm] = 4 μᵀΣμ + 2 tr Σ² (Gaussian means); the
    plug-in mᵀΣm overstates μᵀΣμ by tr Σ², hence the correction.
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
    half = scipy.special.ndtri((1 + level) / 2) * np.sqrt(np.maximum(4 * along - 2 * square, 2 * square)) / ways
    return observed, sampling, observed - sampling - half, observed - sampling + half


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A mean over `n` seeds. One seed gives a value and no interval, no seed gives no value."""

    value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p: float | None = None
    n: int = 0
    detectable: float | None = None  # the smallest effect that as many seeds with this spread would reveal


def effect_over_seeds(per_seed_N: np.ndarray, *, level: float = 0.95) -> Effect:
    """Mean of one value a seed, tested against 0: Student's interval and two-sided p."""
    seeds = len(per_seed_N)
    if seeds == 0:
        return Effect()
    mean = float(per_seed_N.mean())
    if seeds == 1:
        return Effect(value=mean, n=1)
    low, high = t_interval(per_seed_N, level=level)
    spread = float(per_seed_N.std(ddof=1))
    error = spread / np.sqrt(seeds)
    p = 2 * scipy.special.stdtr(seeds - 1, -abs(mean) / error) if error > 0 else float(mean == 0)
    return Effect(
        value=mean,
        ci_low=float(low),
        ci_high=float(high),
        p=float(p),
        n=seeds,
        detectable=smallest_detectable(spread, seeds, alpha=1 - level),
    )


def smallest_detectable(spread: float, units: int, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true mean that a two-sided t test of `units` values with this standard deviation finds.

    With d = mean · √units / spread the test statistic follows a noncentral t with units − 1 degrees of freedom and
    noncentrality d. The answer is the mean at which P(|t| > critical value) = power, both tails counted, by bisection.
    Raises ValueError for fewer than two units.
    """
    if units < 2:
        raise ValueError(f"units={units} have no spread; a smallest detectable effect needs at least 2")
    degrees = units - 1
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
    return high * spread / float(np.sqrt(units))
