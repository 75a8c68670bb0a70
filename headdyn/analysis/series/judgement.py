"""What one trajectory over checkpoints says about emergence: when, how suddenly, how surely (science.md §15).

Everything here is computed from arrays and returned as plain values for verdict.json. Letters as in onset.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from headdyn.analysis.series.onset import (
    climbs,
    crossings,
    first_above,
    half_of_highest,
    margins,
    possible_stages,
    resampled,
    stage,
    turns,
)
from headdyn.core.settings import settings

Share = Annotated[float, Field(gt=0, lt=1)]


@settings
class Rules:
    """Where the words begin, as shares of training or of the total rise.

    `first` is a stricter bound than `early`, for the probability that it emerges within that share of training.
    `sudden` is the share of the rise that the steepest interval must hold at least. A reversal must undo `turn` of the
    rise as well as exceed its sampling error: pairs agree so closely that moves without consequence exceed that.
    """

    early: Share = 0.25
    late: Share = 0.75
    first: Share = 0.10
    sudden: Share = 0.5
    turn: Share = 0.1

    def __post_init__(self) -> None:
        if not self.early < self.late:
            raise ValueError(f"analysis.emergence.early={self.early} must be below late={self.late}")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A trajectory over K checkpoints, emerged where it exceeds `threshold`, or half of its highest value (None).

    `value_KP` are the pairs' values whose means are the trajectory; without several pairs nothing is said about
    sampling. `beyond_chance` is whether the trajectory is more than chance gives (None: this cannot be told), and
    `against_chance` by what test, or why there is none. A measure without a threshold emerges only if it is beyond
    chance, since the highest point of noise has a half, too.
    """

    name: str
    steps: tuple[int, ...]
    value_K: np.ndarray
    threshold: float | None = None
    value_KP: np.ndarray | None = None
    p: float | None = None
    beyond_chance: bool | None = None
    against_chance: str = "no null was computed"


def judge(
    measure: Measure, total_steps: int, rules: Rules, generator: np.random.Generator, draws: int = 2_000
) -> dict[str, Any]:
    """Everything there is to say of one measure. What cannot be said is absent, with a reason beside it."""
    steps, value_K = measure.steps, measure.value_K
    pairs = 0 if measure.value_KP is None else measure.value_KP.shape[1]
    by_pair = measure.value_KP if pairs > 1 else None
    threshold = float(half_of_highest(value_K)) if measure.threshold is None else measure.threshold
    unproven = measure.threshold is None and not measure.beyond_chance
    index = len(steps) if unproven else int(first_above(value_K, threshold))
    at = steps[index] if index < len(steps) else None
    after = steps[index - 1] if at is not None and index else None
    at_share, after_share = (None if step is None else step / total_steps for step in (at, after))
    rising = climbs(value_K[None])
    noise_KK = 0.0 if by_pair is None else margins(by_pair)
    reversals, monotone = turns(value_K, np.maximum(noise_KK, rules.turn * rising.rise_B[0]))
    judgement: dict[str, Any] = {
        "rule": "above half of its highest value" if measure.threshold is None else f"above {threshold:g}",
        "threshold": threshold if np.isfinite(threshold) else None,
        "n": pairs or None,
        "p": measure.p,
        "beyond_chance": measure.beyond_chance,
        "against_chance": measure.against_chance,
        "emerges_after_step": after,
        "emerges_at_step": at,
        "emerges_after_share": after_share,
        "emerges_at_share": at_share,
        "class": stage(at_share, rules.early, rules.late),
        "possible_classes": possible_stages(after_share, at_share, rules.early, rules.late),
        **_rise(rising, steps, total_steps, rules, emerged=at is not None),
        "monotone": monotone,
        "reversals": reversals,
        "highest": float(value_K.max()),
        "last": float(value_K[-1]),
    }
    if at is not None:
        judgement["appearances"], judgement["disappearances"] = crossings(value_K, threshold)
    elif unproven:
        judgement["none_reason"] = f"not shown to be beyond chance: {measure.against_chance}"
    else:
        least = (
            f"{threshold:g}: its highest value"
            if np.isfinite(threshold)
            else "its null or its beginning: its highest excess"
        )
        judgement["none_reason"] = f"it never rises above {least} is {judgement['highest']:.3g}"
    if by_pair is None:
        judgement["probabilities_reason"] = (
            "one pair has no sampling error to tell" if pairs else "values by pair are missing"
        )
    elif unproven:
        judgement["probabilities_reason"] = judgement["none_reason"]
    else:
        judgement |= _over_draws(measure, resampled(by_pair, generator, draws), total_steps, rules)
    return judgement


def _rise(rising: Any, steps: tuple[int, ...], total_steps: int, rules: Rules, *, emerged: bool) -> dict[str, Any]:
    """The total rise and its steepest interval, whose width limits what can be known: no checkpoint lies inside it.

    Only what emerged has a pace.
    """
    share, jump = float(rising.share_B[0]), int(rising.jump_B[0])
    if np.isnan(share):
        return {"rise": 0.0, "pace": None}
    return {
        "rise": float(rising.rise_B[0]),
        "rise_steps": [steps[int(rising.start_B[0])], steps[int(rising.end_B[0])]],
        "jump_steps": [steps[jump], steps[jump + 1]],
        "jump_share": share,
        "jump_width_share": (steps[jump + 1] - steps[jump]) / total_steps,
        "pace": ("sudden" if share >= rules.sudden else "gradual") if emerged else None,
    }


def _over_draws(measure: Measure, draw_BK: np.ndarray, total_steps: int, rules: Rules) -> dict[str, Any]:
    """Probabilities of every class and pace, and the interval of the step, over bootstrap draws of the trajectory."""
    steps = measure.steps
    threshold = half_of_highest(draw_BK) if measure.threshold is None else measure.threshold
    index_B = first_above(draw_BK, threshold)
    share_B = np.array([*(step / total_steps for step in steps), np.inf])[index_B]
    emerged_B = np.isfinite(share_B)
    sudden_B = emerged_B & (climbs(draw_BK).share_B >= rules.sudden)
    early_B, late_B = share_B <= rules.early, emerged_B & (share_B >= rules.late)
    probability = {
        "none": ~emerged_B,
        "early": early_B,
        "mid": emerged_B & ~early_B & ~late_B,
        "late": late_B,
        "sudden": sudden_B,
        "gradual": emerged_B & ~sudden_B,
        "within_first": share_B <= rules.first,
    }
    shares = {"probabilities": {name: float(hit_B.mean()) for name, hit_B in probability.items()}}
    low, high = np.quantile(index_B, [0.025, 0.975], method="inverted_cdf").astype(int).tolist()
    if high < len(steps):
        return shares | {"emerges_at_step_95": [steps[low], steps[high]]}
    return shares | {"emerges_at_step_95_reason": f"{(~emerged_B).mean():.0%} of the draws never exceed the threshold"}
