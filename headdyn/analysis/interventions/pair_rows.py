"""HeadTable rows of statistics whose independent units are number pairs. Letters as in patching.py: P pairs.

X is the shape of statistics of the same pairs, as in estimates.py.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from headdyn.analysis.estimates import Estimate, means
from headdyn.core.records import HeadTable
from headdyn.core.statistics import binomial_interval, bootstrap_interval, ratio_contributions, sign_flip_test


def succeeds(delta: np.ndarray) -> np.ndarray:
    """Whether the right answer is likelier than the wrong one, Δ > 0; equally likely answers are no success."""
    return np.asarray(delta) > 0


@dataclass(frozen=True, kw_only=True)
class PairRows:
    """Makes rows with 95 % intervals over pairs, drawing from one generator; with one pair there is no interval."""

    generator: np.random.Generator
    bootstrap_draws: int = 2_000
    sign_flips: int = 9_999

    def success(self, metric: str, delta_XP: np.ndarray, **columns: Any) -> HeadTable:
        """Share of pairs that succeed, with the Clopper–Pearson interval."""
        wins_X, pairs = succeeds(delta_XP).sum(-1), delta_XP.shape[-1]
        low_X, high_X = binomial_interval(wins_X, pairs)
        none_X = np.full(low_X.shape, np.nan)
        share = Estimate(value=wins_X / pairs, low=low_X, high=high_X, p=none_X, n=pairs)
        return share.rows(metric, unit="pair", **columns)

    def success_difference(self, metric: str, first_P: np.ndarray, second_P: np.ndarray, null: float) -> HeadTable:
        """Success under one treatment minus success under another, of the same pairs.

        The interval joins two Clopper–Pearson intervals at 97.5 %, for the share of pairs where only the first succeeds
        and for that where only the second does, so it covers at least at 95 %. A bootstrap interval would have no width
        where all pairs agree.
        """
        first, second, pairs = succeeds(first_P), succeeds(second_P), len(first_P)
        gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
        (low, high), (low_lost, high_lost) = (binomial_interval(k, pairs, level=0.975) for k in (gained, lost))
        interval = {"ci_low": low - high_lost, "ci_high": high - low_lost}
        return HeadTable.whole(metric, (gained - lost) / pairs, null=null, **interval, n=pairs, unit="pair")

    def mean(self, metric: str, values_PX: np.ndarray, unit: str = "pair", **columns: Any) -> HeadTable:
        """Mean over pairs, with the BCa interval."""
        return means(values_PX, self.generator, draws=self.bootstrap_draws).rows(metric, unit=unit, **columns)

    def effects(self, values_PX: np.ndarray) -> Estimate:
        """Means over pairs, with the BCa intervals and the p-values of sign flips against 0."""
        p_X = sign_flip_test(values_PX, self.generator, draws=self.sign_flips)
        return dataclasses.replace(means(values_PX, self.generator, draws=self.bootstrap_draws), p=p_X)

    def recovered(
        self, patched_XP: np.ndarray, target_P: np.ndarray, source_P: np.ndarray
    ) -> tuple[Estimate, dict[str, Any]]:
        """How far Δ moved from target to source, (Δ_patched − Δ_target) / (Δ_source − Δ_target), a ratio of means.

        0 is unmoved, 1 all the way. Absent where the interval of the denominator holds 0, or there is no interval. The
        second result is further columns for `Estimate.rows`: null 0, or the reason for the absence.
        """
        moved, columns = self.shares(patched_XP - target_P, source_P - target_P, "source and target differ by")
        return moved, columns or {"null": 0.0}

    def shares(self, part_XP: np.ndarray, whole_P: np.ndarray, whole: str) -> tuple[Estimate, dict[str, Any]]:
        """Parts of a whole as ratios of means over pairs.

        Absent where the interval of the whole holds 0, or there is no interval. The second result is then the reason as
        a column for `Estimate.rows`, which begins with the words `whole`; else it is empty.
        """
        low, high = (b.item() for b in bootstrap_interval(whole_P, self.generator, draws=self.bootstrap_draws))
        if low > 0 or high < 0:
            units_PX = ratio_contributions(part_XP.T, whole_P[:, None])
            return means(units_PX, self.generator, draws=self.bootstrap_draws), {}
        interval = "one pair gives no interval" if math.isnan(low) else f"95 % interval {low:.3g} to {high:.3g}"
        reason = f"{whole} {whole_P.mean():.3g} nats, within noise ({interval})"
        none_X = np.full(len(part_XP), np.nan)
        return Estimate(value=none_X, low=none_X, high=none_X, p=none_X, n=len(whole_P)), {"reason": reason}
