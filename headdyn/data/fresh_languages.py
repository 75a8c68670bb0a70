"""Conversations in which every sequence has new languages: how they are drawn, and their filter (science.md §18).

Sequences share no language, so a language can only be learnt in context. Its laws of the next symbol are drawn from a
symmetric Dirichlet; integrated over them, the next symbol follows Pólya's urn (Blackwell and MacQueen 1973).
Letters: N sequences, M symbols of a sequence, P speakers, V symbols, R chains drawn at once.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import scipy  # imports its parts only when they are used, which keeps planning fast

from headdyn.data.conversation_filter import ConversationFilter
from headdyn.data.lines import DECAYS, TRIED_SEQUENCES

_WEIGHTS = (0.25, 0.5, 0.75, 1.0)  # the weights of pooled counts that are tried
_CHUNK = 4096  # chains drawn at once


def concentration(num_symbols: int, target_gap_nats: float) -> float:
    """The Dirichlet parameter of each symbol at which a law's mean entropy is ln V − `target_gap_nats`."""

    def excess(log_alpha: float) -> float:
        alpha = math.exp(log_alpha)
        return (
            math.log(num_symbols)
            - (scipy.special.digamma(alpha * num_symbols + 1) - scipy.special.digamma(alpha + 1))
            - target_gap_nats
        )

    return math.exp(scipy.optimize.brentq(excess, -30.0, 30.0))


def urn_chains(
    count: int, length: int, num_symbols: int, alpha: float, by_context: bool, rng: np.random.Generator
) -> np.ndarray:
    """Chains [R, M], each in a language of its own: a uniform first symbol, each later one from the urn of its law.

    With `by_context` there is a law for each preceding symbol, else one for all. With probability α V / (n + α V) a
    symbol is uniform, else it copies one of the n symbols drawn from the same law before.
    """
    chain_RM = rng.integers(num_symbols, size=(count, length))
    for start in range(0, count, _CHUNK):
        part_RM = chain_RM[start : start + _CHUNK]
        for m in range(2, length):
            before_RM = part_RM[:, : m - 1]
            same_RM = before_RM == part_RM[:, m - 1, None] if by_context else np.ones(before_RM.shape, bool)
            drawn_R = same_RM.sum(1)
            copied = rng.random(len(part_RM)) * (drawn_R + alpha * num_symbols) < drawn_R
            which_R = (rng.random(len(part_RM)) * drawn_R).astype(int)
            place_R = (same_RM.cumsum(1) > which_R[:, None]).argmax(1) + 1  # where the symbol to copy is
            part_RM[copied, m] = part_RM[np.flatnonzero(copied), place_R[copied]]
    return chain_RM


@dataclass(frozen=True, eq=False)
class FreshFilter(ConversationFilter):
    """The exact filter for sequences that have languages of their own; the topic of a token is its speaker.

    `transitions_SVV` is the mean chain of a speaker's language, which is uniform. Hidden speakers are not possible,
    since their counts would have to be summed over all turns.
    """

    alpha: float = 1.0
    by_context: bool = True

    def with_speakers(self, speakers_NM: np.ndarray, symbols_NM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each symbol's loss [N, M], and its speaker, which is known before and after the symbol [N, M, 2, P]."""
        count, length = symbols_NM.shape
        speakers_NM = speakers_NM[:, :length]
        loss_NM = self._loss(speakers_NM, symbols_NM, decay=1.0, weight=1.0, pooled=False)
        posteriors = speakers_NM[..., None, None] == np.arange(self.num_speakers)
        return loss_NM, np.broadcast_to(posteriors, (count, length, 2, self.num_speakers)).astype(float)

    def pooled(self, speakers_NM: np.ndarray, symbols_NM: np.ndarray) -> tuple[np.ndarray, str]:
        """Loss [N, M] and name of the best predictor that counts all speakers' symbols alike, weighted by distance."""
        speakers_NM = speakers_NM[:, : symbols_NM.shape[1]]
        sample = speakers_NM[:TRIED_SEQUENCES], symbols_NM[:TRIED_SEQUENCES]
        grid = itertools.product(DECAYS, _WEIGHTS)
        decay, weight = min(grid, key=lambda pair: self._loss(*sample, pair[0], pair[1], pooled=True).mean())
        loss_NM = self._loss(speakers_NM, symbols_NM, decay, weight, pooled=True)
        return loss_NM, f"counts of all speakers, decay {decay:g}, weight {weight:g}"

    def _loss(
        self, speakers_NM: np.ndarray, symbols_NM: np.ndarray, decay: float, weight: float, pooled: bool
    ) -> np.ndarray:
        """Loss [N, M] of the urn's law, with counts of the earlier symbols that come from the same law.

        With `pooled`, symbols of all speakers are counted. A symbol n places back counts as `weight` · decay^(n − 1).
        """
        before_NM, _ = self.emission(speakers_NM, symbols_NM)
        size, length = self.transitions_SVV.shape[1], symbols_NM.shape[1]
        loss_NM = np.full(symbols_NM.shape, math.log(size))
        for m in range(1, length):
            is_counted_NM = before_NM[:, :m] >= 0  # a speaker's first symbol is uniform, whatever the language
            if not pooled:
                is_counted_NM &= speakers_NM[:, :m] == speakers_NM[:, m, None]
            if self.by_context:
                is_counted_NM &= before_NM[:, :m] == before_NM[:, m, None]
            counted_NM = weight * is_counted_NM * decay ** np.arange(m - 1, -1, -1.0)
            match_N = (counted_NM * (symbols_NM[:, :m] == symbols_NM[:, m, None])).sum(1)
            law_N = (match_N + self.alpha) / (counted_NM.sum(1) + self.alpha * size)
            loss_NM[:, m] = np.where(before_NM[:, m] < 0, math.log(size), -np.log(law_N))
        return loss_NM
