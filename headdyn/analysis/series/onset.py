"""When a trajectory over training rises, how suddenly and how steadily: pure functions of arrays (science.md §15).

Letters: K checkpoints in the order of training, P pairs, B trajectories at once (bootstrap draws), S splits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def first_above(value_BK: np.ndarray, threshold_B: np.ndarray | float) -> np.ndarray:
    """Index of each trajectory's first checkpoint above its threshold, [B]; K where there is none."""
    above_BK = value_BK > np.broadcast_to(np.asarray(threshold_B)[..., None], value_BK.shape)
    return np.where(above_BK.any(-1), above_BK.argmax(-1), value_BK.shape[-1])


def half_of_highest(value_BK: np.ndarray) -> np.ndarray:
    """Half of each trajectory's highest value, [B]; infinite where none is above 0, so that nothing exceeds it."""
    highest_B = value_BK.max(-1)
    return np.where(highest_B > 0, highest_B / 2, np.inf)


@dataclass(frozen=True, kw_only=True)
class Climbs:
    """Each trajectory's largest rise from one checkpoint to a later one, as indices [B], with its steepest interval.

    `share_B` is the steepest interval's share of the rise, NaN where nothing rises.
    """

    start_B: np.ndarray
    end_B: np.ndarray
    rise_B: np.ndarray
    jump_B: np.ndarray  # the steepest interval is from jump to jump + 1
    share_B: np.ndarray


def climbs(value_BK: np.ndarray) -> Climbs:
    """The largest rise of each trajectory, also of one that falls again afterwards.

    The difference of the first and the last checkpoint would show no rise in the values 0, 1, 0. Where the lowest value
    occurs several times before the highest, the rise starts at the last occurrence; it ends at the first highest value.
    """
    count = value_BK.shape[-1]
    lowest_BK = np.minimum.accumulate(value_BK, axis=-1)
    gain_BK = value_BK - lowest_BK
    end_B = gain_BK.argmax(-1)
    rise_B = np.take_along_axis(gain_BK, end_B[..., None], -1)[..., 0]
    floor_B = np.take_along_axis(lowest_BK, end_B[..., None], -1)
    place_K = np.arange(count)
    at_floor_BK = (value_BK == floor_B) & (place_K <= end_B[..., None])
    start_B = count - 1 - at_floor_BK[..., ::-1].argmax(-1)
    inside_BJ = (place_K[:-1] >= start_B[..., None]) & (place_K[:-1] < end_B[..., None])
    step_BJ = np.where(inside_BJ, np.diff(value_BK, axis=-1), -np.inf)
    jump_B = step_BJ.argmax(-1)
    largest_B = np.take_along_axis(step_BJ, jump_B[..., None], -1)[..., 0]
    share_B = np.divide(largest_B, rise_B, out=np.full(rise_B.shape, np.nan), where=rise_B > 0)
    return Climbs(start_B=start_B, end_B=end_B, rise_B=rise_B, jump_B=jump_B, share_B=share_B)


def rise_widths(
    value_BK: np.ndarray, steps: Sequence[float], rising: Climbs, margin_KK: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """The fewest and the most training steps that each trajectory's rise from 10 to 90 % may have taken, [B] each.

    Heights are shares of the largest rise (`climbs`). The most is the time between the two checkpoints of
    `rise_bracket`. The fewest is the time, between these two, from the first checkpoint that lies above the rise's
    beginning to the last that lies below its end, each by more than the margin, [K, K] (see `margins`). NaN where
    nothing rises.
    """
    value_BK, count = np.asarray(value_BK), value_BK.shape[-1]
    (low_B, high_B), height_BK = rise_bracket(value_BK, rising), _heights(value_BK, rising)
    step_K, place_K = np.asarray(steps, dtype=float), np.arange(count)
    margin_KK = np.broadcast_to(margin_KK, (count, count))
    rise_B1 = rising.rise_B[..., None]
    between_BK = (place_K > low_B[..., None]) & (place_K < high_B[..., None])
    left_BK = between_BK & (height_BK * rise_B1 > margin_KK[rising.start_B])
    short_BK = between_BK & ((1 - height_BK) * rise_B1 > margin_KK[rising.end_B])
    first_B, last_B = np.where(left_BK, place_K, count - 1).min(-1), np.where(short_BK, place_K, 0).max(-1)
    fewest_B = np.maximum(step_K[last_B] - step_K[first_B], 0)
    nothing_B = ~(rising.rise_B > 0)
    return np.where(nothing_B, np.nan, fewest_B), np.where(nothing_B, np.nan, step_K[high_B] - step_K[low_B])


def _heights(value_BK: np.ndarray, rising: Climbs) -> np.ndarray:
    """The values as shares of the largest rise: 0 at its beginning, 1 at its end."""
    base_B1 = np.take_along_axis(value_BK, rising.start_B[..., None], -1)
    return (value_BK - base_B1) / np.where(rising.rise_B > 0, rising.rise_B, 1)[..., None]


def rise_bracket(value_BK: np.ndarray, rising: Climbs) -> tuple[np.ndarray, np.ndarray]:
    """The last checkpoint at 10 % of each rise or less, and the first at 90 % or more after it, as indices [B]."""
    place_K = np.arange(value_BK.shape[-1])
    height_BK = _heights(value_BK, rising)
    inside_BK = (place_K >= rising.start_B[..., None]) & (place_K <= rising.end_B[..., None])
    high_B = (inside_BK & (height_BK >= 0.9)).argmax(-1)
    low_BK = inside_BK & (place_K < high_B[..., None]) & (height_BK <= 0.1)
    return np.where(low_BK, place_K, 0).max(-1), high_B


def departure(beyond_BK: np.ndarray) -> np.ndarray:
    """Index of the first checkpoint from which on all are marked in `beyond_BK`, [B]; K where the last one is not."""
    unmarked_BK = ~beyond_BK[..., ::-1]
    since_end_B = np.where(unmarked_BK.any(-1), unmarked_BK.argmax(-1), beyond_BK.shape[-1])
    return beyond_BK.shape[-1] - since_end_B


def turns(value_K: np.ndarray, margin_KK: np.ndarray | float = 0.0) -> tuple[int, bool]:
    """How often the trajectory reverses its direction, and whether it never falls.

    A move from checkpoint i to j counts where it exceeds margin[i, j], so that noise is no reversal (see `margins`).
    """
    margin_KK = np.broadcast_to(margin_KK, (len(value_K),) * 2)
    count, direction, fell = 0, 0, False
    low = high = 0  # extremes since the last turn
    for k in range(1, len(value_K)):
        low, high = (k if value_K[k] <= value_K[low] else low), (k if value_K[k] >= value_K[high] else high)
        rises = direction <= 0 and value_K[k] - value_K[low] > margin_KK[low, k]
        falls = direction >= 0 and value_K[high] - value_K[k] > margin_KK[high, k]
        if rises or falls:
            count += direction != 0
            direction, fell, low, high = (1 if rises else -1), fell or falls, k, k
    return count, not fell


def margins(value_KP: np.ndarray, level: float = 0.95) -> np.ndarray:
    """How far the means of two checkpoints may differ by sampling of the pairs alone, [K, K].

    Student's paired interval, at a level that holds for all K (K − 1) / 2 comparisons together (Bonferroni).
    """
    from scipy import special

    count, pairs = value_KP.shape
    tail = (1 - level) / max(count * (count - 1), 2)
    covariance_KK = np.atleast_2d(np.cov(value_KP))
    spread_K = covariance_KK.diagonal()
    variance_KK = np.maximum(spread_K[:, None] + spread_K - 2 * covariance_KK, 0)
    return special.stdtrit(pairs - 1, 1 - tail) * np.sqrt(variance_KK / pairs)


def crossings(value_K: np.ndarray, threshold: float) -> tuple[int, int]:
    """How often the trajectory goes above a threshold, and how often it falls below again.

    A trajectory that is above it at the first checkpoint has gone above it there.
    """
    change_K = np.diff((value_K > threshold).astype(int), prepend=0)
    return int((change_K > 0).sum()), int((change_K < 0).sum())


def possible_stages(after: float | None, at: float | None, early: float = 0.25, late: float = 0.75) -> list[str]:
    """Every stage that an emergence after share `after` of training and by share `at` may have had.

    Checkpoints lie apart, so there may be several. The stage is "early" up to share `early` of training, "late" from
    share `late` on, else "mid". `after=None` is 0, and `at=None` is no emergence: "none".
    """
    if at is None:
        return ["none"]
    after = 0.0 if after is None else after
    inside = {"early": after < early, "mid": after < late and at > early, "late": at >= late}
    return [word for word, fits in inside.items() if fits]


def stage(share: float | None, early: float = 0.25, late: float = 0.75) -> str:
    """The stage of an emergence at exactly this share of training; None is no emergence."""
    if share is None:
        return "none"
    return "early" if share <= early else "late" if share >= late else "mid"


def resampled(value_KP: np.ndarray, generator: np.random.Generator, draws: int) -> np.ndarray:
    """Mean trajectories of resampled pairs, [B, K]; a draw takes the same pairs at every checkpoint."""
    pairs = value_KP.shape[1]
    counts_BP = generator.multinomial(pairs, np.full(pairs, 1 / pairs), size=draws)
    return counts_BP @ value_KP.T / pairs


def null_band(strength_KS: np.ndarray, level: float = 0.95) -> np.ndarray | None:
    """The |strength| that a split must exceed to be significant over the whole trajectory, [K], the same everywhere.

    Splits outside the band are those with p ≤ 1 − level by `max_statistic_p` (interventions/splits.py). None where
    splits are too few for that: the strongest split and its mirror image alone are 2 of S.
    """
    strongest_S = np.sort(np.abs(strength_KS).max(0))[::-1]
    allowed = int((1 - level) * len(strongest_S) + 1e-9)
    return np.full(len(strength_KS), strongest_S[allowed], dtype=float) if allowed >= 2 else None
