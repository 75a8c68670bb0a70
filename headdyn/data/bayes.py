"""The segment process of micro-languages, and exact inference under it (science.md §1).

A sequence has k segments, k uniform in min_segments..max_segments. Their lengths are min_segment + Multinomial(T −
k·min_segment, 1/k) tokens, their topics independent and uniform: a hidden semi-Markov model. Letters: N sequences,
T tokens, S topics, V vocabulary, R numbers of segments that remain, the present one included, from 2 on.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import scipy  # imports its parts only when they are used, which keeps planning fast
from pydantic import Field

from headdyn.core.settings import Count, settings

_CHUNK_BYTES = 2**23  # size of the filter's state; 1 MB, with its shorter inner loops, is 1.7 times slower at T 512


@settings
class SegmentLaw:
    """Sequences have min_segments to max_segments segments of at least `min_segment` tokens; lengths are in tokens."""

    sequence_length: Annotated[int, Field(ge=2)]
    min_segments: Count
    max_segments: int
    min_segment: Count

    def __post_init__(self) -> None:
        if self.min_segments > self.max_segments:
            raise ValueError(
                f"data.min_segments={self.min_segments} and data.max_segments={self.max_segments} are no range; "
                "set 1 <= min_segments <= max_segments"
            )
        if self.max_segments * self.min_segment > self.sequence_length:
            raise ValueError(
                f"data.max_segments={self.max_segments} of data.min_segment={self.min_segment} tokens or more need "
                f"{self.max_segments * self.min_segment} tokens, but data.sequence_length={self.sequence_length}; "
                f"lower min_segment to {self.sequence_length // self.max_segments} or less, or raise sequence_length"
            )

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Segment lengths [count, max_segments] of `count` sequences, zero past a sequence's last segment."""
        segments_N = generator.integers(self.min_segments, self.max_segments + 1, size=count)
        lengths = np.zeros((count, self.max_segments), np.int64)
        for k in range(self.min_segments, self.max_segments + 1):
            rows = np.flatnonzero(segments_N == k)
            spare = self.sequence_length - k * self.min_segment
            lengths[rows, :k] = self.min_segment + generator.multinomial(spare, np.full(k, 1 / k), size=len(rows))
        return lengths

    def hazard(self) -> np.ndarray:
        """The probability that a segment ends at a position, given that it did not end earlier: [R, T, T].

        Entry [r − 2, s, u] is for a segment that began at s and is followed by r − 1 others: the probability that the
        next one begins at u, given that it did not begin before u. If `left` tokens beyond the minimum lengths remain,
        the segment's own extra length is Binomial(left, 1/r). The last segment (r = 1) has no entry.
        """
        length = self.sequence_length
        r, s, u = np.ogrid[2 : self.max_segments + 1, :length, :length]
        left = length - s - r * self.min_segment
        extra = u - s - self.min_segment
        possible = (extra >= 0) & (extra <= left)
        left, extra = np.where(possible, left, 0), np.where(possible, extra, 0)
        log_choices = (
            scipy.special.gammaln(left + 1) - scipy.special.gammaln(extra + 1) - scipy.special.gammaln(left - extra + 1)
        )
        log_mass = log_choices - left * np.log(r) + (left - extra) * np.log(r - 1)
        log_mass = np.where(possible, log_mass, -np.inf)
        log_tail = np.logaddexp.accumulate(log_mass[..., ::-1], axis=-1)[..., ::-1]
        return np.exp(log_mass - np.where(possible, log_tail, 0.0))


@dataclass(frozen=True, kw_only=True, eq=False)
class BayesFilter:
    """The exact filter of the law that generated a corpus; no predictor has a lower expected loss.

    Given the number of remaining segments, the start of the present one and its topic, the future does not depend on
    the past. Given the start, topic and number are independent, so the state consists of arrays [T, S] and [R, T].
    """

    transitions_SVV: np.ndarray
    law: SegmentLaw

    def filter(self, tokens_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Next-token loss [N, T-1] in nats, and the topic posterior [N, T, S] of token t given x_0..x_t.

        Token 0 is uniform and not scored; entry t is the loss of predicting x_{t+1} from x_0..x_t. Sequences may be
        shorter than the law's. Raises ValueError for longer ones, and for tokens out of range.
        """
        num_topics, vocab_size, _ = self.transitions_SVV.shape
        tokens_NT = np.asarray(tokens_NT)
        count, length = tokens_NT.shape
        if length > self.law.sequence_length:
            raise ValueError(
                f"sequences of {length} tokens are longer than the law's {self.law.sequence_length}; "
                f"pass at most {self.law.sequence_length} tokens"
            )
        if tokens_NT.size and not 0 <= tokens_NT.min() <= tokens_NT.max() < vocab_size:
            raise ValueError(f"tokens {tokens_NT.min()}..{tokens_NT.max()} exceed the vocabulary 0..{vocab_size - 1}")
        loss_NT, posterior_NTS = np.empty((count, length - 1)), np.empty((count, length, num_topics))
        hazard_RTT = self.law.hazard()
        step = max(8, _CHUNK_BYTES // (8 * length * (num_topics + len(hazard_RTT) + 2)))
        for start in range(0, count, step):
            part = slice(start, start + step)
            loss_NT[part], posterior_NTS[part] = self._filter(tokens_NT[part].astype(np.int64), hazard_RTT)
        return loss_NT, posterior_NTS

    def _filter(self, tokens_NT: np.ndarray, hazard_RTT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The filter for a few sequences, so that its arrays fit the processor's cache; N is their inner axis.

        Weights are probabilities of the state given the past, normalised at every step so as not to overflow or vanish.
        """
        num_topics, num_ending = len(self.transitions_SVV), len(hazard_RTT)
        count, length = tokens_NT.shape
        emission_STN = np.stack([chain_VV[tokens_NT[:, :-1], tokens_NT[:, 1:]].T for chain_VV in self.transitions_SVV])
        emission_TSN = np.ascontiguousarray(emission_STN.swapaxes(0, 1), dtype=np.float64)
        loss_TN, posterior_TSN = np.empty((length - 1, count)), np.empty((length, num_topics, count))

        weight_RTN = np.zeros((num_ending, length, count))  # weight of each start of a segment that others follow
        topic_TSN = np.empty((length, num_topics, count))  # distribution of the segment's topic, given its start
        last_SN = np.zeros((num_topics, count))  # weight of each topic in the last segment; its start does not matter
        prior = 1 / (self.law.max_segments - self.law.min_segments + 1)
        for k in range(self.law.min_segments, self.law.max_segments + 1):
            if k == 1:
                last_SN += prior / num_topics
            else:
                weight_RTN[k - 2, 0] = prior
        topic_TSN[0] = posterior_TSN[0] = 1 / num_topics

        for t in range(1, length):
            weight, topic = weight_RTN[:, : t + 1], topic_TSN[: t + 1]
            hazard_RT1 = hazard_RTT[:, :t, t, None]
            ending_RTN = weight[:, :t] * hazard_RT1
            weight[:, :t] -= ending_RTN
            begun_RN = ending_RTN.sum(1)
            weight[:-1, t] = begun_RN[1:]
            if num_ending:
                last_SN += begun_RN[0] / num_topics
            topic[t] = 1 / num_topics

            topic *= emission_TSN[t - 1]
            last_SN *= emission_TSN[t - 1]
            joint_SN = np.einsum("tn,tsn->sn", weight.sum(0), topic) + last_SN
            total_N = joint_SN.sum(0)
            loss_TN[t - 1] = -np.log(total_N)
            posterior_TSN[t] = joint_SN / total_N
            evidence_TN = topic.sum(1)
            topic /= evidence_TN[:, None]
            evidence_TN /= total_N
            weight *= evidence_TN
            last_SN /= total_N
        return loss_TN.T, posterior_TSN.transpose(2, 0, 1)
