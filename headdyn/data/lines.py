"""Reference losses of corpora whose probabilities are known, and what selecting by topic is worth (science.md §18).

A reference loss is called a line, because charts of the loss draw it as one.

Letters: N sequences, M symbols of a sequence, S topics.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy  # imports its parts only when they are used, which keeps planning fast

WITHOUT_SELECTION = ("position_only", "speaker_blind")  # lines of predictors that do not select by topic
LINES = ("random", "mixture", *WITHOUT_SELECTION, "floor")
# A corpus whose sequences have one topic each records this in place of the worth of selecting.
NOTHING_TO_SELECT = {"selection_worth_absent": "no sequence has tokens of two topics"}

DECAYS = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
_WINDOWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_SCALES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # 0 ignores the evidence
TRIED_SEQUENCES = 100  # the best weights are chosen on these first sequences
_LEAST = np.finfo(float).tiny


def mean_and_error(name: str, value_NT: np.ndarray) -> dict[str, float]:
    """The mean over all tokens as `name`, and its standard error over sequences as `name`_se if there are several."""
    mean_N = value_NT.mean(1)
    mean = {name: float(mean_N.mean())}
    return mean if len(mean_N) == 1 else mean | {f"{name}_se": float(mean_N.std(ddof=1) / math.sqrt(len(mean_N)))}


def line_facts(losses: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Each line's mean loss in nats from losses [N, T-1]: of whole sequences, with its error, and of second halves.

    `selection_worth` is what selecting by topic is worth: the lowest loss of the lines that do not select, minus the
    floor. It is absent if no such line was given.
    """
    facts: dict[str, float] = {}
    for name, loss_NT in losses.items():
        facts |= mean_and_error(f"{name}_nats", loss_NT)
        facts[f"{name}_second_half_nats"] = float(loss_NT[:, loss_NT.shape[1] // 2 :].mean())
    without_selection = [name for name in WITHOUT_SELECTION if name in losses]
    for half in ("", "_second_half") if without_selection else ():
        best_nats = min(facts[f"{name}{half}_nats"] for name in without_selection)
        facts[f"selection_worth{half}_nats"] = best_nats - facts[f"floor{half}_nats"]
    return facts


def reference_nats(facts: Mapping[str, Any]) -> dict[str, float]:
    """The lines that a corpus's facts contain, by name."""
    return {name: facts[f"{name}_nats"] for name in LINES if f"{name}_nats" in facts}


def mixture(prior_NMS: np.ndarray, emission_NMS: np.ndarray) -> np.ndarray:
    """The loss [N, M] of a predictor that weights the topics' probabilities of the next symbol by `prior_NMS`."""
    return -np.log((prior_NMS * emission_NMS).sum(2))


def position_only(prior_NMS: np.ndarray, emission_NMS: np.ndarray) -> tuple[np.ndarray, str]:
    """The loss [N, M] of the best predictor that weights earlier symbols by their distance alone, and its name.

    `emission_NMS` is each symbol's probability in every topic; its logarithms are the evidence for a topic. They are
    summed with weights, either 1 within a window or decaying geometrically, times a scale. The best weights are those
    with the lowest loss on the first TRIED_SEQUENCES sequences.
    """

    def loss_of(weights: tuple[float, int, float], part: slice) -> np.ndarray:
        decay, window, scale = weights
        evidence_NMS = np.zeros(emission_NMS[part].shape)
        log_NMS = np.log(np.maximum(emission_NMS[part], _LEAST))  # 0 × −∞ would be NaN
        for m in range(1, log_NMS.shape[1]):
            evidence_NMS[:, m] = decay * evidence_NMS[:, m - 1] + log_NMS[:, m - 1]
            if window and m > window:
                evidence_NMS[:, m] -= log_NMS[:, m - 1 - window]
        return mixture(
            scipy.special.softmax(np.log(prior_NMS[part]) + scale * evidence_NMS, axis=2), emission_NMS[part]
        )

    kinds = [(decay, 0) for decay in DECAYS] + [(1.0, window) for window in _WINDOWS]
    grid = [(*kind, scale) for kind in kinds for scale in _SCALES]
    best = min(grid, key=lambda weights: loss_of(weights, slice(TRIED_SEQUENCES)).mean())
    decay, window, scale = best
    name = f"window {window}" if window else f"decay {decay:g}"
    return loss_of(best, slice(None)), f"{name}, scale {scale:g}"
