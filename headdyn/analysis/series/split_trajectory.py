"""Even/odd among all splits of a layer's heads over a whole trajectory: by pair, with its null (science.md §11, §15).

Letters as in splits.py, K checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from headdyn.analysis.interventions.pair_rows import succeeds
from headdyn.analysis.interventions.splits import Splits, max_statistic_p
from headdyn.analysis.series.judgement import Measure
from headdyn.analysis.series.onset import null_band
from headdyn.analysis.series.points import SeriesPoint


@dataclass(frozen=True, kw_only=True)
class SplitTrajectory:
    """Even/odd of one layer at K checkpoints, pair by pair, and every split's strength beside it."""

    splits: Splits
    layer: int
    nats_KP: np.ndarray  # Δ with the even heads patched − with the odd ones
    success_KP: np.ndarray  # success with the even heads patched − with the odd ones: −1, 0 or 1
    strength_KS: np.ndarray  # strength of Δ
    success_KS: np.ndarray  # strength of success
    balanced_KS: np.ndarray | None = None  # strength of Δ, bug and control pairs with equal weight; None: no controls

    @classmethod
    def of(cls, counted: Sequence[SeriesPoint]) -> SplitTrajectory | None:
        """None unless every checkpoint measured splits. Raises ValueError where the checkpoints' splits differ."""
        parts = [point.splits for point in counted if point.splits is not None]
        if len(parts) < len(counted):
            return None
        first = parts[0]
        for point, part in zip(counted, parts, strict=True):
            same_splits = np.array_equal(part.splits.half_SH, first.splits.half_SH)
            if not same_splits or (part.pairs, part.layer) != (first.pairs, first.layer):
                raise ValueError(
                    f"{point.revision} measured other splits, pairs or another layer than {counted[0].revision}; "
                    "run all revisions with one seed and the same data and analysis.specialization"
                )
        balanced = [part.balanced_S for part in parts if part.balanced_S is not None]
        even_KP, odd_KP = (np.stack([getattr(part, side) for part in parts]) for side in ("even_P", "odd_P"))
        return cls(
            splits=first.splits,
            layer=first.layer,
            nats_KP=even_KP - odd_KP,
            success_KP=succeeds(even_KP).astype(float) - succeeds(odd_KP),
            strength_KS=np.stack([part.strength_S for part in parts]),
            success_KS=np.stack([part.success_S for part in parts]),
            balanced_KS=np.stack(balanced) if len(balanced) == len(parts) else None,
        )

    @property
    def criteria(self) -> dict[str, np.ndarray]:
        """The strengths of Δ, [K, S], by the pairs averaged over; even/odd must be beyond chance in each of them."""
        both = {} if self.balanced_KS is None else {"both kinds of pairs": self.balanced_KS}
        return {"bug pairs": self.strength_KS, **both}

    @cached_property
    def p_by_criterion(self) -> dict[str, np.ndarray]:
        """p of even/odd by each criterion, [K] (`max_statistic_p`)."""
        return {name: max_statistic_p(nats_KS, self.splits.reference) for name, nats_KS in self.criteria.items()}

    @property
    def p_K(self) -> np.ndarray:
        """The largest of the criteria's p: each must be met (an intersection–union test, Berger 1982)."""
        return np.max(list(self.p_by_criterion.values()), axis=0)

    @property
    def best(self) -> tuple[int, float]:
        """The checkpoint where even exceeds odd with the smallest p, and this p; 1 if even never exceeds odd.

        Every checkpoint's p accounts for the whole trajectory already, so the smallest needs no further correction.
        """
        ahead_K = np.all([nats_KS[:, self.splits.reference] > 0 for nats_KS in self.criteria.values()], axis=0)
        p_K = np.where(ahead_K, self.p_K, 1.0)
        return int(p_K.argmin()), float(p_K.min())

    def measures(self, steps: Sequence[int], threshold: float, alpha: float, least_nats: float = 0.0) -> list[Measure]:
        """The thresholded and the continuous measure, both tested by the null of Δ: the null of success has ties.

        Where the continuous one is below `least_nats` nothing has emerged, whatever its p.
        """
        p, least = self.best[1], 2 / len(self.splits)
        over = "" if self.balanced_KS is None else " (the larger of bug pairs' and of both kinds of pairs')"
        test = f"p = {p:.3g}{over} among {len(self.splits)} splits, maximum over {len(steps)} checkpoints"
        if least > alpha:
            test += f"; so few splits cannot give less than {least:.2g}"
        common: dict[str, Any] = {"steps": tuple(steps), "p": p, "beyond_chance": p <= alpha, "against_chance": test}
        strength_K, nats_K = self.success_KP.mean(1), self.nats_KP.mean(1)
        too_small_K = nats_K < least_nats if least_nats else None
        nats = {**common, "value_KP": self.nats_KP, "band_K": _band(self.strength_KS), "too_small_K": too_small_K}
        if too_small_K is not None and too_small_K.all():
            words = f"its highest value, {nats_K.max():.2g}, is below {least_nats:g}, the least that counts"
            nats |= {"beyond_chance": False, "against_chance": words}
        common |= {"value_KP": self.success_KP, "band_K": _band(self.success_KS)}
        return [
            Measure(name="strength", value_K=strength_K, threshold=threshold, **common),
            Measure(name="strength_nats", value_K=nats_K, **nats),
        ]

    def verdict(self, steps: Sequence[int], alpha: float) -> dict[str, Any]:
        """Whether even/odd stands out among all splits, and which split is the strongest at any time."""
        (at, p), lesser_KS = self.best, np.min(list(self.criteria.values()), axis=0)
        strongest = int(lesser_KS.max(0).argmax())
        return {
            "found": p <= alpha,
            "p": p,
            "least_possible_p": 2 / len(self.splits),
            "at_step": steps[at],
            "splits": len(self.splits),
            "exact": self.splits.exact,
            "layer": self.layer,
            "pairs": self.nats_KP.shape[1],
            "p_by_criterion": {name: float(p_K[at]) for name, p_K in self.p_by_criterion.items()},
            "strongest_split": list(self.splits.heads(strongest)),
            "is_strongest": strongest == self.splits.reference,
        }

    def columns(self) -> dict[str, np.ndarray]:
        """The timeline's columns: p over the trajectory, and the bands beyond which a split is significant."""
        bands = {"strength_band": null_band(self.success_KS), "strength_nats_band": null_band(self.strength_KS)}
        return {"trajectory_p": self.p_K, **{name: band_K for name, band_K in bands.items() if band_K is not None}}


def _band(every_KS: np.ndarray) -> np.ndarray:
    """The 95th percentile of |strength| over all splits at the same checkpoint, [K]."""
    return np.quantile(np.abs(every_KS), 0.95, axis=1)
