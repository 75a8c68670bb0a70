"""What a trajectory says about emergence: when, how suddenly, how surely; and the seed study's hypotheses H1 to H5.

Science.md §15. Everything here is computed from arrays and returned as plain values for verdict.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from headdyn.analysis.series.onset import (
    climbs,
    crossings,
    first_above,
    half_of_highest,
    margins,
    possible_stages,
    resampled,
    share_of,
    stage,
    turns,
)

HYPOTHESES: Mapping[str, str] = {
    "H1": "early: it emerges in the first {first:.0%} of training",
    "H2": "mid: it emerges between {early:.0%} and {late:.0%} of training",
    "H3": "late: it emerges in the last {last:.0%} of training",
    "H4": "gradual: no single interval between checkpoints holds {sudden:.0%} of the rise",
    "H5": "sudden: a single interval between checkpoints holds at least {sudden:.0%} of the rise",
}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Where the words begin, as shares of training or of the total rise. `first` is the seed's H1.

    A reversal must also undo `turn` of the total rise: pairs agree so closely that moves of no consequence exceed
    their sampling error.
    """

    early: float = 0.25
    late: float = 0.75
    first: float = 0.10
    sudden: float = 0.5
    turn: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A trajectory over K checkpoints. It has emerged where it exceeds `threshold`, None for half of its highest value.

    `value_KP` are the pairs' values whose means are the trajectory: without several of them nothing is said about
    sampling. `beyond_chance` is whether the trajectory is more than chance gives, None where that cannot be told, and
    `against_chance` how it was told, or why not. A measure without a threshold of its own emerges only if it is beyond
    chance: the highest point of noise has a half, too.
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
    """Everything said of one measure. What cannot be said is absent, with a reason beside it."""
    steps, value_K = measure.steps, measure.value_K
    by_pair = measure.value_KP if measure.value_KP is not None and measure.value_KP.shape[1] > 1 else None
    threshold = float(half_of_highest(value_K)) if measure.threshold is None else measure.threshold
    chance = measure.threshold is None and not measure.beyond_chance
    index = len(steps) if chance else int(first_above(value_K, threshold))
    at, after = share_of(steps, total_steps, index), share_of(steps, total_steps, index - 1) if index else None
    rising = climbs(value_K[None])
    noise_KK = 0.0 if by_pair is None else margins(by_pair)
    count, steady = turns(value_K, np.maximum(noise_KK, rules.turn * rising.rise_B[0]))
    said: dict[str, Any] = {
        "rule": "above half of its highest value" if measure.threshold is None else f"above {threshold:g}",
        "threshold": threshold if np.isfinite(threshold) else None,
        "n": None if measure.value_KP is None else measure.value_KP.shape[1],
        "p": measure.p,
        "beyond_chance": measure.beyond_chance,
        "against_chance": measure.against_chance,
        "emerges_after_step": steps[index - 1] if at is not None and index else None,
        "emerges_at_step": None if at is None else steps[index],
        "emerges_after_share": after if at is not None else None,
        "emerges_at_share": at,
        "class": stage(at, rules.early, rules.late),
        "possible_classes": possible_stages(after, at, rules.early, rules.late),
        **_rise(rising, steps, total_steps, rules, emerged=at is not None),
        "monotone": steady,
        "reversals": count,
        "highest": float(value_K.max()),
        "last": float(value_K[-1]),
    }
    if at is None:
        said["none_reason"] = (
            f"not shown to be beyond chance: {measure.against_chance}"
            if chance
            else f"it never rises above its null or its beginning: its highest excess is {said['highest']:.3g}"
            if not np.isfinite(threshold)
            else f"it never rises above {threshold:g}: its highest value is {said['highest']:.3g}"
        )
    else:
        said["appearances"], said["disappearances"] = crossings(value_K, threshold)
    if by_pair is None:
        said["probabilities_reason"] = (
            "values by pair are missing" if measure.value_KP is None else "one pair has no sampling error to tell"
        )
    elif not chance:
        said |= _resampled(measure, by_pair, total_steps, rules, generator, draws)
    else:
        said["probabilities_reason"] = said["none_reason"]
    return said | {"hypotheses": _hypotheses(said, rules)}


def _rise(rising: Any, steps: tuple[int, ...], total_steps: int, rules: Rules, *, emerged: bool) -> dict[str, Any]:
    """The total rise and its steepest interval, and how much of training that interval covers: what lies in it, no
    checkpoint tells. A pace is given to what emerged only."""
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


def _resampled(
    measure: Measure,
    value_KP: np.ndarray,
    total_steps: int,
    rules: Rules,
    generator: np.random.Generator,
    draws: int,
) -> dict[str, Any]:
    """Probabilities of every class and hypothesis, and the interval of the step, over bootstrap draws of the pairs."""
    steps, draw_BK = measure.steps, resampled(value_KP, generator, draws)
    threshold = half_of_highest(draw_BK) if measure.threshold is None else measure.threshold
    index_B = first_above(draw_BK, threshold)
    share_B = np.array([*(step / total_steps for step in steps), np.inf])[index_B]
    emerged_B, share_of_rise_B = np.isfinite(share_B), climbs(draw_BK).share_B
    sudden_B = emerged_B & (share_of_rise_B >= rules.sudden)
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
    found: dict[str, Any] = {"probabilities": {name: float(hit_B.mean()) for name, hit_B in probability.items()}}
    low, high = np.quantile(index_B, [0.025, 0.975], method="inverted_cdf").astype(int).tolist()
    if high < len(steps):
        return found | {"emerges_at_step_95": [steps[low], steps[high]]}
    return found | {"emerges_at_step_95_reason": f"{(~emerged_B).mean():.0%} of the draws never exceed the threshold"}


def _hypotheses(said: Mapping[str, Any], rules: Rules) -> dict[str, dict[str, Any]]:
    """Each hypothesis supported, rejected, or undecided where the checkpoints lie too far apart or nothing emerged."""
    at, after = said["emerges_at_share"], said["emerges_after_share"] or 0.0
    possible = said["possible_classes"]
    if at is None:
        when, evidence = dict.fromkeys(("H1", "H2", "H3"), "rejected"), said["none_reason"]
        pace = dict.fromkeys(("H4", "H5"), "undecided")
        how = "nothing emerged, so there is no pace"
    else:
        when = {
            "H1": "supported" if at <= rules.first else "rejected" if after >= rules.first else "undecided",
            "H2": _one_of(possible, "mid"),
            "H3": _one_of(possible, "late"),
        }
        since = "the first checkpoint or before" if said["emerges_after_step"] is None else said["emerges_after_step"]
        evidence = f"it emerges after step {since} and by step {said['emerges_at_step']} ({after:.1%} to {at:.1%})"
        sudden = said["pace"] == "sudden"
        pace = {"H4": "rejected" if sudden else "supported", "H5": "supported" if sudden else "rejected"}
        first, last = said["jump_steps"] if said["rise"] else (None, None)
        how = f"{said.get('jump_share', 0):.0%} of the rise lies between steps {first} and {last}"
        if said["pace"] is None:
            pace, how = dict.fromkeys(("H4", "H5"), "undecided"), "it is there from the first checkpoint on"
    words = {
        "first": rules.first,
        "early": rules.early,
        "late": rules.late,
        "last": 1 - rules.late,
        "sudden": rules.sudden,
    }
    names = {"H1": "within_first", "H2": "mid", "H3": "late", "H4": "gradual", "H5": "sudden"}
    return {
        name: {
            "statement": HYPOTHESES[name].format(**words),
            "verdict": (when | pace)[name],
            "evidence": evidence if name in when else how,
            **({"probability": said["probabilities"][names[name]]} if "probabilities" in said else {}),
        }
        for name in HYPOTHESES
    }


def _one_of(possible: list[str], word: str) -> str:
    return "rejected" if word not in possible else "supported" if possible == [word] else "undecided"
