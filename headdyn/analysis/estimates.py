"""Means and ratios over independent units with their intervals and p, and the table rows that they become.

N units (sequences, pairs, heads); X is the shape of the numbers that are estimated from the same units at once: [] for
one number, [L] for layers, [L, H] for heads; J control variates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from headdyn.core.records import HeadTable
from headdyn.core.statistics import bootstrap_interval, ratio_contributions, sign_flip_test, without_controls

_LEAST_SHARE = 1e-4  # a smaller mean denominator may be float32's rounding of sums over T: the ratio is undefined


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Means over `n` units with 95 % intervals and two-sided p against 0, all shaped X; NaN stands for absent."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    n: int

    def __getitem__(self, where: Any) -> Estimate:
        return Estimate(value=self.value[where], low=self.low[where], high=self.high[where], p=self.p[where], n=self.n)

    def rows(self, metric: str, *, unit: str = "sequence", **columns: Any) -> HeadTable:
        """One row for the model, or one per layer or head, for values shaped [], [L] or [L, H].

        `columns` are further columns (`null`, or another `p`), and the `reason` for values that are absent.
        """
        table = (HeadTable.whole, HeadTable.per_layer, HeadTable.per_head)[np.ndim(self.value)]
        own = {"ci_low": self.low, "ci_high": self.high, "p": self.p, "n": self.n, "unit": unit}
        return table(metric, self.value, **{**own, **columns})  # type: ignore[arg-type]


def means(values_NX: np.ndarray, generator: np.random.Generator, *, draws: int = 2_000) -> Estimate:
    """Means over units with BCa intervals; p is absent."""
    low, high = bootstrap_interval(values_NX, generator, draws=draws)
    return Estimate(value=values_NX.mean(0), low=low, high=high, p=np.full_like(low, np.nan), n=len(values_NX))


def mean_denominator(denominator_NX: np.ndarray) -> np.ndarray:
    """Mean of the denominators over units, shaped X; NaN where it is 0 to within rounding."""
    mean_X = denominator_NX.mean(0, dtype=float)
    return np.where(mean_X > _LEAST_SHARE, mean_X, np.nan)


def ratio_units(numerator_NX: np.ndarray, denominator_NX: np.ndarray | int) -> np.ndarray:
    """Values of units, [N, X], whose mean is Σ numerator / Σ denominator; NaN where the denominator is 0."""
    numerator_NX, denominator_NX = np.broadcast_arrays(numerator_NX, denominator_NX)
    undefined_X = np.isnan(mean_denominator(denominator_NX))
    return np.where(undefined_X, np.nan, ratio_contributions(numerator_NX, denominator_NX))


def flip_p(
    values_NX: np.ndarray,
    controls_NJ: np.ndarray,
    generator: np.random.Generator,
    *,
    draws: int = 9_999,
    test: Callable[..., np.ndarray] = sign_flip_test,
) -> np.ndarray:
    """Two-sided p of each mean against 0, shaped X, by sign flips of the values without the part that controls explain.

    With `test=largest_flip_test` p is corrected for testing all means. NaN for a column that holds a NaN.
    """
    columns = values_NX.reshape(len(values_NX), -1)
    p = np.full(columns.shape[1], np.nan)
    defined = ~np.isnan(columns).any(0)
    p[defined] = test(without_controls(columns[:, defined], controls_NJ), generator, draws=draws)
    return p.reshape(values_NX.shape[1:])


def estimate(
    numerator_NX: np.ndarray,
    denominator_NX: np.ndarray | int,
    generator: np.random.Generator,
    *,
    controls_NJ: np.ndarray | None = None,
    sign_flips: int = 9_999,
    bootstrap_draws: int = 2_000,
) -> Estimate:
    """Ratios of sums whose numerators are 0 on average under the null: BCa intervals, and p by sign flips.

    `controls_NJ` are control variates with expectation 0. The part of the units' spread that they explain is taken out,
    which narrows intervals and leaves the values as they are (`core.statistics.without_controls`).
    """
    numerator_NX, denominator_NX = np.broadcast_arrays(numerator_NX, denominator_NX)
    controls_NJ = np.empty((len(numerator_NX), 0)) if controls_NJ is None else controls_NJ
    values_NX = without_controls(ratio_units(numerator_NX, denominator_NX), controls_NJ)
    interval = means(values_NX, generator, draws=bootstrap_draws)
    # Numerators alone are flipped: under the null they are 0 on average for any denominators.
    p = flip_p(numerator_NX / mean_denominator(denominator_NX), controls_NJ, generator, draws=sign_flips)
    return dataclasses.replace(interval, p=p)
