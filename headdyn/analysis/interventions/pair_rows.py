"""HeadTable rows of statistics whose independent units are number pairs. Letters as in patching.py: P pairs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from headdyn.core.statistics import binomial_interval, bootstrap_interval, ratio_contributions, sign_flip_test

Row = dict[str, Any]


def succeeds(delta: np.ndarray) -> np.ndarray:
    """Whether the right answer is likelier than the wrong one, Δ > 0; equally likely answers are no success."""
    return np.asarray(delta) > 0


@dataclass(frozen=True, kw_only=True)
class PairRows:
    """Makes rows with 95 % intervals over pairs, drawing from one generator; with one pair there is no interval."""

    generator: np.random.Generator
    bootstrap_draws: int = 2_000
    sign_flips: int = 9_999

    def success(self, metric: str, delta_P: np.ndarray) -> Row:
        """Share of pairs that succeed, with the Clopper–Pearson interval."""
        wins, pairs = int(succeeds(delta_P).sum()), len(delta_P)
        low, high = binomial_interval(wins, pairs)
        return _row(metric, pairs, value=wins / pairs, ci_low=low, ci_high=high)

    def success_difference(self, metric: str, first_P: np.ndarray, second_P: np.ndarray) -> Row:
        """Success under one treatment minus success under another, of the same pairs; null 0.

        The interval joins two Clopper–Pearson intervals at 97.5 %, for the share of pairs where only the first succeeds
        and for that where only the second does, so it covers at least at 95 %. A bootstrap interval would have no width
        where all pairs agree.
        """
        first, second = succeeds(first_P), succeeds(second_P)
        gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
        (low, high), (low_lost, high_lost) = (binomial_interval(k, len(first), level=0.975) for k in (gained, lost))
        value = (gained - lost) / len(first)
        return _row(metric, len(first), value=value, ci_low=low - high_lost, ci_high=high - low_lost, null=0.0)

    def mean(self, metric: str, values_P: np.ndarray, **columns: Any) -> Row:
        """Mean over pairs, with the BCa interval."""
        return self._means(metric, values_P[:, None])[0] | columns

    def means(self, metric: str, values_PX: np.ndarray, null_PX: np.ndarray) -> list[Row]:
        """Each column's mean over pairs, with the BCa interval, beside the mean that chance gives the same pairs."""
        return self._means(metric, values_PX, null=null_PX.mean(0))

    def effects(self, metric: str, values_PX: np.ndarray) -> list[Row]:
        """Each column's mean over pairs against 0, with the p-value of sign flips."""
        p_X = sign_flip_test(values_PX, self.generator, draws=self.sign_flips)
        return self._means(metric, values_PX, null=np.zeros(len(p_X)), p=p_X)

    def recovered(self, metric: str, patched_XP: np.ndarray, target_P: np.ndarray, source_P: np.ndarray) -> list[Row]:
        """How far Δ moved from target to source, (Δ_patched − Δ_target) / (Δ_source − Δ_target), a ratio of means.

        0 is unmoved, 1 all the way. Absent where the denominator's own interval holds 0, or there is no interval.
        """
        rows = self.shares(metric, patched_XP - target_P, source_P - target_P, "source and target differ by")
        return [row | {"null": 0.0} if "value" in row else row for row in rows]

    def shares(self, metric: str, part_XP: np.ndarray, whole_P: np.ndarray, whole: str) -> list[Row]:
        """Parts of a whole as ratios of means over pairs.

        Absent where the whole's own interval holds 0, or there is none; `whole` names the whole in that row's reason.
        """
        low, high = (b.item() for b in bootstrap_interval(whole_P, self.generator, draws=self.bootstrap_draws))
        if low > 0 or high < 0:
            return self._means(metric, ratio_contributions(part_XP.T, whole_P[:, None]))
        interval = "one pair gives no interval" if math.isnan(low) else f"95 % interval {low:.3g} to {high:.3g}"
        reason = f"{whole} {whole_P.mean():.3g} nats, within noise ({interval})"
        return [_row(metric, len(whole_P)) | {"reason": reason}] * len(part_XP)

    def _means(self, metric: str, values_PX: np.ndarray, **columns_X: np.ndarray) -> list[Row]:
        low_X, high_X = bootstrap_interval(values_PX, self.generator, draws=self.bootstrap_draws)
        columns = {"value": values_PX.mean(0), "ci_low": low_X, "ci_high": high_X, **columns_X}
        return [
            _row(metric, len(values_PX), **dict(zip(columns, numbers, strict=True)))
            for numbers in zip(*columns.values(), strict=True)
        ]


def _row(metric: str, pairs: int, **numbers: Any) -> Row:
    """A row with those of the numbers that are not NaN."""
    known = {name: float(number) for name, number in numbers.items() if not math.isnan(number)}
    return {"metric": metric, "n": pairs, "unit": "pair", **known}


def at_layers(rows: Mapping[int, list[Row]]) -> list[Row]:
    """Rows by layer, each with its layer written in."""
    return [{**row, "layer": layer} for layer, group in rows.items() for row in group]
