"""Topic selectivity of any map from queries to keys, with the label-swap null (science.md §6).

Letters as in models/decoder.py; N sequences, R swaps, J attentions by position alone, X many maps at once. A statistic
is a sum over queries and sequences divided by a sum; its units are sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from headdyn.core.statistics import bootstrap_interval, ratio_contributions, sign_flip_test, without_controls
from headdyn.data.corpus import Corpus

_LEAST_SHARE = 1e-4  # a denominator smaller than this per query is float32's rounding of sums over T: no ratio


def check_swaps(analysis: str, label_swaps: int, corpus: Corpus) -> None:
    """Raise ValueError where a corpus has too few validation sequences for an analysis's label-swap null."""
    if len(corpus.val) <= label_swaps:
        raise ValueError(
            f"analysis.{analysis}.label_swaps={label_swaps} needs more validation sequences than that, but the corpus "
            f"has {len(corpus.val)}; bring more text, or leave {analysis} out of analysis=[...]"
        )


def balanced_swaps(count: int, swaps: int, generator: np.random.Generator) -> np.ndarray:
    """For each of `count` sequences the indices of R others, [N, R], every sequence serving equally often.

    Then the mean selectivity of any attention by position alone is exactly 0.
    """
    shifts_R = 1 + generator.choice(count - 1, swaps, replace=False)
    return (np.arange(count)[:, None] + shifts_R) % count


def topic_contrast(
    topics_T: Int[Tensor, " T"], swapped_RT: Int[Tensor, "R T"], num_topics: int
) -> Float[Tensor, "Q K"]:
    """[query and key share a topic], less its mean under the labels of R other sequences; 0 on the diagonal."""
    own_TS = F.one_hot(topics_T.long(), num_topics).float()
    other_TX = F.one_hot(swapped_RT.long(), num_topics).float().permute(1, 0, 2).flatten(1)
    return own_TS @ own_TS.mT - other_TX @ other_TX.mT / len(swapped_RT)


def scale(denominator: np.ndarray) -> np.ndarray:
    """Mean denominator per sequence, NaN where there is nothing to divide by."""
    mean = denominator.mean(0, dtype=float)
    return np.where(mean > _LEAST_SHARE, mean, np.nan)


def units(numerator: np.ndarray, denominator: np.ndarray | int) -> np.ndarray:
    """Per-sequence values whose mean is the ratio of sums, NaN where that is undefined."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    return np.where(np.isnan(scale(denominator)), np.nan, ratio_contributions(numerator, denominator))


@dataclass(frozen=True)
class Estimate:
    """Ratios of sums with 95 % intervals and p against 0, all shaped X; NaN where there is nothing to divide by."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


def estimate(
    numerator_NX: np.ndarray,
    denominator_NX: np.ndarray | int,
    generator: np.random.Generator,
    *,
    controls_NJ: np.ndarray | None = None,
    sign_flips: int = 9_999,
    bootstrap_draws: int = 2_000,
) -> Estimate:
    """Ratios whose numerators are 0 on average under the null, by BCa and sign flips over sequences.

    `controls_NJ`, whose means are 0, is taken out of the spread (`core.statistics.without_controls`): the values stay.
    """
    numerator_NX, denominator_NX = np.broadcast_arrays(numerator_NX, denominator_NX)
    controls_NJ = np.empty((len(numerator_NX), 0)) if controls_NJ is None else controls_NJ
    values_NX = without_controls(units(numerator_NX, denominator_NX), controls_NJ)
    low, high = bootstrap_interval(values_NX, generator, draws=bootstrap_draws)
    share_NX = (numerator_NX / scale(denominator_NX)).reshape(len(numerator_NX), -1)
    p = np.full(share_NX.shape[1], np.nan)
    there = ~np.isnan(share_NX).any(0)
    p[there] = sign_flip_test(without_controls(share_NX[:, there], controls_NJ), generator, draws=sign_flips)
    return Estimate(values_NX.mean(0), low, high, p.reshape(numerator_NX.shape[1:]))
