"""The lines that a loss is judged by, for corpora of known law, and what selecting by topic is worth (science.md §18).

Letters: N sequences, M symbols of a sequence, S topics.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy  # whose parts are imported where they are first used, since planning imports this module

# Lines in the order in which pages list them; those without selection come before the floor.
WITHOUT_SELECTION = ("position_only", "speaker_blind")
LINES = ("random", "mixture", *WITHOUT_SELECTION, "floor")

DECAYS = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
_WINDOWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_SCALES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # 0 ignores the evidence
TRIED_SEQUENCES = 100  # for choosing among them
_LEAST = np.finfo(float).tiny


def mean_and_error(name: str, value_NT: np.ndarray) -> dict[str, float]:
    """Under `name` the mean over all tokens, and under `name`_se its standard error with sequences as units.

    A single sequence gives no error.
    """
    mean_N = value_NT.mean(1)
    mean = {name: float(mean_N.mean())}
    return mean if len(mean_N) == 1 else mean | {f"{name}_se": float(mean_N.std(ddof=1) / math.sqrt(len(mean_N)))}


def line_facts(losses: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Means and errors of each line's losses [N, T-1] in nats, whole and on the second half, and selection's worth.

    Selecting is worth the best of the lines that do not select less the floor; absent where there is no such line.
    """
    facts: dict[str, float] = {}
    for name, loss_NT in losses.items():
        facts |= mean_and_error(f"{name}_nats", loss_NT)
        facts[f"{name}_second_half_nats"] = float(loss_NT[:, loss_NT.shape[1] // 2 :].mean())
    without = [name for name in WITHOUT_SELECTION if name in losses]
    for half in ("", "_second_half") if without else ():
        best_nats = min(facts[f"{name}{half}_nats"] for name in without)
        facts[f"selection_worth{half}_nats"] = best_nats - facts[f"floor{half}_nats"]
    return facts


def reference_nats(facts: Mapping[str, Any]) -> dict[str, float]:
    """The lines that are among a corpus's facts, by name."""
    return {name: facts[f"{name}_nats"] for name in LINES if f"{name}_nats" in facts}


def mixture(prior_NMS: np.ndarray, emission_NMS: np.ndarray) -> np.ndarray:
    """The loss [N, M] of a predictor that knows what a symbol follows, and of the topic its share among those alone."""
    return -np.log((prior_NMS * emission_NMS).sum(2))


def position_only(prior_NMS: np.ndarray, emission_NMS: np.ndarray) -> tuple[np.ndarray, str]:
    """The best loss [N, M] of those that weigh the evidence of earlier symbols by distance alone, and which it is.

    `emission_NMS` is each symbol's probability in every topic. The weights of its logarithms are 1 in a window or fall
    off geometrically, all times a scale; the best are chosen on some sequences.
    """

    def loss_NM(weights: tuple[float, int, float], part: slice) -> np.ndarray:
        decay, window, scale = weights
        evidence_NMS = np.zeros(emission_NMS[part].shape)
        log_NMS = np.log(np.maximum(emission_NMS[part], _LEAST))  # 0 × −∞ would be no number
        for m in range(1, log_NMS.shape[1]):
            evidence_NMS[:, m] = decay * evidence_NMS[:, m - 1] + log_NMS[:, m - 1]
            if window and m > window:
                evidence_NMS[:, m] -= log_NMS[:, m - 1 - window]
        return mixture(
            scipy.special.softmax(np.log(prior_NMS[part]) + scale * evidence_NMS, axis=2), emission_NMS[part]
        )

    kinds = [(decay, 0) for decay in DECAYS] + [(1.0, window) for window in _WINDOWS]
    grid = [(*kind, scale) for kind in kinds for scale in _SCALES]
    best = min(grid, key=lambda weights: loss_NM(weights, slice(TRIED_SEQUENCES)).mean())
    decay, window, scale = best
    name = f"window {window}" if window else f"decay {decay:g}"
    return loss_NM(best, slice(None)), f"{name}, scale {scale:g}"
