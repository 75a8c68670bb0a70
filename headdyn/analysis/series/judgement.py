"""The judgement on one trajectory over checkpoints: when it emerges, how suddenly, how surely (science.md §15).

Everything is computed from arrays and returned as plain values for verdict.json. Letters as in onset.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from headdyn.analysis.series import onset
from headdyn.core.settings import settings

Share = Annotated[float, Field(gt=0, lt=1)]
Judgements = Mapping[str, Mapping[str, Any]]  # by measure, what `judge` says of it


@settings
class Rules:
    """Bounds of the words early, late, sudden and gradual, as shares of training; `turn` is a share of the total rise.

    `first` is a stricter bound than `early`: the probability of emerging within that share of training is reported too.
    A rise is sudden if its part from 10 to 90 % took at most `sudden_within` of training whatever happened between the
    checkpoints, gradual if it took more than `gradual_beyond` whatever happened. A reversal must undo `turn` of the
    rise and exceed its sampling error; the error alone is too low a bound: pairs agree so closely that it is tiny.
    """

    early: Share = 0.25
    late: Share = 0.75
    first: Share = 0.10
    sudden_within: Share = 0.10
    gradual_beyond: Share = 0.25
    turn: Share = 0.1

    def __post_init__(self) -> None:
        for low, high in (("early", "late"), ("sudden_within", "gradual_beyond")):
            if not getattr(self, low) < getattr(self, high):
                given, limit = getattr(self, low), getattr(self, high)
                raise ValueError(f"analysis.emergence.{low}={given} must be below {high}={limit}")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A trajectory over K checkpoints. It has emerged where it exceeds `threshold`; None: half of its highest value.

    `value_KP` are the pairs' values whose means are the trajectory; fewer than two pairs give no sampling error.
    `beyond_chance` is whether the trajectory is more than chance gives (None: unknown);
    `against_chance` names the test, or the reason why there is none. A measure without a threshold emerges only if it
    is beyond chance, since noise, too, exceeds half of its highest value somewhere. `band_K` is the upper end of the
    95 % band of chance (None: no band). `half_width_K` are the half widths of the values' 95 % intervals, the sampling
    error where there are no pairs. At a checkpoint marked in `too_small_K` nothing counts as emerged.
    """

    name: str
    steps: tuple[int, ...]
    value_K: np.ndarray
    threshold: float | None = None
    value_KP: np.ndarray | None = None
    p: float | None = None
    beyond_chance: bool | None = None
    against_chance: str = "no null was computed"
    band_K: np.ndarray | None = None
    half_width_K: np.ndarray | None = None
    too_small_K: np.ndarray | None = None

    def countable(self, value_BK: np.ndarray) -> np.ndarray:
        """The values, −∞ at the checkpoints of `too_small_K`."""
        return value_BK if self.too_small_K is None else np.where(self.too_small_K, -np.inf, value_BK)

    @cached_property
    def margin_KK(self) -> np.ndarray | float:
        """How far two checkpoints may differ by sampling alone, [K, K]; 0 where that is unknown."""
        if self.value_KP is not None and self.value_KP.shape[1] > 1:
            return onset.margins(self.value_KP)
        return 0.0 if self.half_width_K is None else np.hypot(self.half_width_K[:, None], self.half_width_K)

    def date(self, index: int, total_steps: int) -> dict[str, Any]:
        """The interval (last checkpoint before, checkpoint `index`] in steps and as shares of training."""
        at = self.steps[index] if index < len(self.steps) else None
        after = self.steps[index - 1] if at is not None and index else None
        after_share, at_share = (None if step is None else step / total_steps for step in (after, at))
        return {"after_step": after, "at_step": at, "after_share": after_share, "at_share": at_share}


def judge(
    measure: Measure, total_steps: int, rules: Rules, generator: np.random.Generator, draws: int = 2_000
) -> dict[str, Any]:
    """The whole judgement on one measure; an entry that cannot be computed has a reason in its place."""
    value_K, count = measure.value_K, len(measure.steps)
    pairs = 0 if measure.value_KP is None else measure.value_KP.shape[1]
    by_pair = measure.value_KP if pairs > 1 else None
    half = float(onset.half_of_highest(value_K))
    threshold = half if measure.threshold is None else measure.threshold
    unproven = measure.threshold is None and not measure.beyond_chance
    index = count if unproven else int(onset.first_above(measure.countable(value_K), threshold))
    date = measure.date(index, total_steps)
    emerged = date["at_step"] is not None
    rising = onset.climbs(value_K[None])
    noise_KK = 0.0 if by_pair is None else measure.margin_KK
    reversals, monotone = onset.turns(value_K, np.maximum(noise_KK, rules.turn * rising.rise_B[0]))
    judgement: dict[str, Any] = {
        "rule": "above half of its highest value" if measure.threshold is None else f"above {threshold:g}",
        "threshold": threshold if np.isfinite(threshold) else None,
        "n": pairs or None,
        "p": measure.p,
        "beyond_chance": measure.beyond_chance,
        "against_chance": measure.against_chance,
        **{f"emerges_{end}": value for end, value in date.items()},
        "class": onset.stage(date["at_share"], rules.early, rules.late),
        "possible_classes": onset.possible_stages(date["after_share"], date["at_share"], rules.early, rules.late),
        **_rise(measure, rising, total_steps, rules, emerged=emerged),
        "onsets": _onsets(measure, half, total_steps, emerged=emerged),
        "monotone": monotone,
        "reversals": reversals,
        "highest": float(value_K.max()),
        "last": float(value_K[-1]),
    }
    if emerged:
        judgement["appearances"], judgement["disappearances"] = onset.crossings(value_K, threshold)
    elif unproven:
        judgement["none_reason"] = f"not shown to be beyond chance: {measure.against_chance}"
    else:
        finite = np.isfinite(threshold)
        bound, height = (f"{threshold:g}", "value") if finite else ("its null or its beginning", "excess")
        judgement["none_reason"] = f"it never rises above {bound}: its highest {height} is {value_K.max():.3g}"
    if by_pair is None:
        judgement["probabilities_reason"] = (
            "one pair has no sampling error to tell" if pairs else "no values by pair to draw from"
        )
    elif unproven:
        judgement["probabilities_reason"] = judgement["none_reason"]
    else:
        judgement |= _over_draws(measure, onset.resampled(by_pair, generator, draws), total_steps, rules)
    return judgement


def _rise(measure: Measure, rising: onset.Climbs, total_steps: int, rules: Rules, *, emerged: bool) -> dict[str, Any]:
    """The total rise, its steepest interval, how long its part from 10 to 90 % took, and its pace if it emerged."""
    steps, jump = measure.steps, int(rising.jump_B[0])
    if not rising.rise_B[0] > 0:
        return {"rise": 0.0, "pace": None}
    value_1K = measure.value_K[None]
    first, last = (steps[int(place_B[0])] for place_B in onset.rise_bracket(value_1K, rising))
    fewest, most = (
        float(width_B[0]) / total_steps for width_B in onset.rise_widths(value_1K, steps, rising, measure.margin_KK)
    )
    pace = _paces(np.array([fewest]), np.array([most]), rules).item() if emerged else None
    return {
        "rise": float(rising.rise_B[0]),
        "rise_steps": [steps[int(rising.start_B[0])], steps[int(rising.end_B[0])]],
        "jump_steps": [steps[jump], steps[jump + 1]],
        "jump_share": float(rising.share_B[0]),
        "jump_width_share": (steps[jump + 1] - steps[jump]) / total_steps,
        "rise_10_to_90_steps": [first, last],
        "rise_10_to_90_shares": [fewest, most],
        "pace": pace,
        **({"pace_reason": _undecided(fewest, most, total_steps, rules)} if pace == "undecided" else {}),
    }


def _paces(fewest_B: np.ndarray, most_B: np.ndarray, rules: Rules) -> np.ndarray:
    """The pace of rises that took at least and at most these shares of training."""
    return np.select(
        [most_B <= rules.sudden_within, fewest_B > rules.gradual_beyond], ["sudden", "gradual"], "undecided"
    )


def _undecided(fewest: float, most: float, total_steps: int, rules: Rules) -> str:
    """Why a pace is undecided, and which spacing of checkpoints would decide it (science.md §15)."""
    if fewest > rules.sudden_within and most <= rules.gradual_beyond:
        return "longer than a sudden rise and shorter than a gradual one"
    spacing = max(int(rules.sudden_within * total_steps / 4), 1)
    return f"the checkpoints lie too far apart; {spacing} steps from one to the next would decide"


def _onsets(measure: Measure, half: float, total_steps: int, *, emerged: bool) -> dict[str, dict[str, Any]]:
    """The onset by two criteria that are the same for every measure, so that they compare (science.md §15)."""
    if not emerged:
        return {}
    value_K = measure.countable(measure.value_K)
    onsets = {"half_height": measure.date(int(onset.first_above(value_K, half)), total_steps)}
    if measure.band_K is None:
        return onsets | {"first_departure": {"reason": "chance has no band for it"}}
    index = int(onset.departure(value_K > measure.band_K))
    if index == len(measure.steps):
        return onsets | {"first_departure": {"reason": "at the last checkpoint it is within the band of chance"}}
    return onsets | {"first_departure": measure.date(index, total_steps)}


def _over_draws(measure: Measure, draw_BK: np.ndarray, total_steps: int, rules: Rules) -> dict[str, Any]:
    """Probabilities of every class and pace, and the interval of the step, over bootstrap draws of the trajectory."""
    steps = measure.steps
    threshold = onset.half_of_highest(draw_BK) if measure.threshold is None else measure.threshold
    index_B = onset.first_above(measure.countable(draw_BK), threshold)
    share_B = np.array([*(step / total_steps for step in steps), np.inf])[index_B]
    emerged_B = np.isfinite(share_B)
    fewest_B, most_B = onset.rise_widths(draw_BK, steps, onset.climbs(draw_BK), measure.margin_KK)
    pace_B = _paces(fewest_B / total_steps, most_B / total_steps, rules)
    early_B, late_B = share_B <= rules.early, emerged_B & (share_B >= rules.late)
    probability = {
        "none": ~emerged_B,
        "early": early_B,
        "mid": emerged_B & ~early_B & ~late_B,
        "late": late_B,
        **{word: emerged_B & (pace_B == word) for word in ("sudden", "gradual", "undecided")},
        "within_first": share_B <= rules.first,
    }
    shares = {"probabilities": {name: float(hit_B.mean()) for name, hit_B in probability.items()}}
    low, high = np.quantile(index_B, [0.025, 0.975], method="inverted_cdf").astype(int).tolist()
    if high < len(steps):
        return shares | {"emerges_at_step_95": [steps[low], steps[high]]}
    return shares | {"emerges_at_step_95_reason": f"{(~emerged_B).mean():.0%} of the draws never exceed the threshold"}
