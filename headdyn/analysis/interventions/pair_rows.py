"""HeadTable rows of statistics whose independent units are number pairs. Letters as in patching.py: P pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from headdyn.core.statistics import binomial_interval, bootstrap_interval, ratio_contributions, sign_flip_test

Row = dict[str, Any]


def succeeds(delta: np.ndarray) -> np.ndarray:
    """Whether the right answer is likelier than the wrong one: Δ > 0. Equally likely is no success."""
    return np.asarray(delta) > 0


@dataclass(frozen=True, kw_only=True)
class PairRows:
    """Makes rows with 95 % intervals over pairs, drawing from one generator; with one pair there is no interval."""

    generator: np.random.Generator
    bootstrap_draws: int = 2_000
    sign_flips: int = 9_999

    def success(self, metric: str, delta_P: np.ndarray) -> Row:
        """Share of pairs with a value above 0, as Δ is where they succeed, with the Clopper–Pearson interval."""
        wins = int(succeeds(delta_P).sum())
        low, high = binomial_interval(wins, len(delta_P))
        return _row(metric, delta_P, wins / len(delta_P), low.item(), high.item())

    def success_difference(self, metric: str, first_P: np.ndarray, second_P: np.ndarray) -> Row:
        """Success under one treatment minus success under another, of the same pairs; null 0.

        The interval joins two Clopper–Pearson ones at 97.5 %, of the pairs where only the first succeeds and of those
        where only the second does, so it covers at 95 % at least. A bootstrap's would have no width where all agree.
        """
        first, second = succeeds(first_P), succeeds(second_P)
        gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
        (low, high), (low_lost, high_lost) = (binomial_interval(k, len(first), level=0.975) for k in (gained, lost))
        value = (gained - lost) / len(first)
        return _row(metric, first, value, (low - high_lost).item(), (high - low_lost).item()) | {"null": 0.0}

    def mean(self, metric: str, values_P: np.ndarray, **columns: Any) -> Row:
        """Mean over pairs, with the BCa interval."""
        low, high = bootstrap_interval(values_P, self.generator, draws=self.bootstrap_draws)
        return _row(metric, values_P, values_P.mean().item(), low.item(), high.item()) | columns

    def means(self, metric: str, values_PX: np.ndarray, null_PX: np.ndarray) -> list[Row]:
        """Each column's mean over pairs, with the BCa interval, beside the mean that chance gives the same pairs."""
        low_X, high_X = bootstrap_interval(values_PX, self.generator, draws=self.bootstrap_draws)
        columns = zip(values_PX.T, low_X.tolist(), high_X.tolist(), null_PX.mean(0).tolist(), strict=True)
        return [_row(metric, v, v.mean().item(), low, high) | {"null": null} for v, low, high, null in columns]

    def effects(self, metric: str, values_PX: np.ndarray) -> list[Row]:
        """Each column's mean over pairs against 0, with the p-value of sign flips."""
        p_X = sign_flip_test(values_PX, self.generator, draws=self.sign_flips)
        low_X, high_X = bootstrap_interval(values_PX, self.generator, draws=self.bootstrap_draws)
        columns = zip(values_PX.T, low_X.tolist(), high_X.tolist(), p_X.tolist(), strict=True)
        return [_row(metric, v, v.mean().item(), low, high) | {"null": 0.0, "p": p} for v, low, high, p in columns]

    def recovered(self, metric: str, patched_XP: np.ndarray, target_P: np.ndarray, source_P: np.ndarray) -> list[Row]:
        """How far Δ moved from target to source, (Δ_patched − Δ_target) / (Δ_source − Δ_target), a ratio of means.

        0 is unmoved, 1 all the way. Absent where the denominator's own interval holds 0, or there is no interval.
        """
        rows = self.shares(metric, patched_XP - target_P, source_P - target_P, "source and target differ by")
        return [row | {"null": 0.0} if "value" in row else row for row in rows]

    def shares(self, metric: str, part_XP: np.ndarray, whole_P: np.ndarray, whole: str) -> list[Row]:
        """Parts of a whole as ratios of means over pairs. A reason says with `whole` what the whole is.

        Absent where the whole's own interval holds 0, or there is no interval.
        """
        low, high = (b.item() for b in bootstrap_interval(whole_P, self.generator, draws=self.bootstrap_draws))
        if low > 0 or high < 0:
            share_PX = ratio_contributions(part_XP.T, whole_P[:, None])
            low_X, high_X = bootstrap_interval(share_PX, self.generator, draws=self.bootstrap_draws)
            columns = zip(share_PX.T, low_X.tolist(), high_X.tolist(), strict=True)
            return [_row(metric, v, v.mean().item(), low, high) for v, low, high in columns]
        interval = "one pair gives no interval" if math.isnan(low) else f"95 % interval {low:.3g} to {high:.3g}"
        reason = f"{whole} {whole_P.mean():.3g} nats, within noise ({interval})"
        absent = {"metric": metric, "reason": reason, "n": len(whole_P), "unit": "pair"}
        return [absent] * len(part_XP)


def _row(metric: str, values_P: np.ndarray, value: float, low: float, high: float) -> Row:
    row: Row = {"metric": metric, "value": value, "n": len(values_P), "unit": "pair"}
    return row if math.isnan(low) else {**row, "ci_low": low, "ci_high": high}


def at_layers(rows: Mapping[int, list[Row]]) -> list[Row]:
    """Rows by layer, each with its layer written in."""
    return [{**row, "layer": layer} for layer, group in rows.items() for row in group]
