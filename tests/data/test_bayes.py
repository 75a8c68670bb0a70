"""The filter against sums over every segmentation and topic assignment, written from the law alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest

from headdyn.data.bayes import BayesFilter, SegmentLaw

LAWS = [
    SegmentLaw(sequence_length=7, min_segments=1, max_segments=3, min_segment=1),
    SegmentLaw(sequence_length=8, min_segments=2, max_segments=3, min_segment=2),
    SegmentLaw(sequence_length=6, min_segments=3, max_segments=3, min_segment=2),
    SegmentLaw(sequence_length=6, min_segments=1, max_segments=1, min_segment=3),
]


def chains(vocab_size: int = 3, num_topics: int = 2) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.full(vocab_size, 0.4), size=(num_topics, vocab_size)) + 1e-3


def segmentations(law: SegmentLaw) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Every tuple of segment lengths with its probability."""
    counts = range(law.min_segments, law.max_segments + 1)
    for k in counts:
        spare = law.sequence_length - k * law.min_segment
        for extra in itertools.product(range(spare + 1), repeat=k):
            if sum(extra) == spare:
                ways = math.factorial(spare) / math.prod(math.factorial(e) for e in extra)
                yield ways / k**spare / len(counts), tuple(law.min_segment + e for e in extra)


def enumerate_filter(transitions_SVV: np.ndarray, law: SegmentLaw, tokens_T: np.ndarray) -> tuple[np.ndarray, ...]:
    """Loss [T-1] and posterior [T, S] by summing over all that may have happened."""
    num_topics, length = len(transitions_SVV), len(tokens_T)
    joint_TS = np.zeros((length, num_topics))  # p(x_1..x_t, topic of t | x_0)
    for probability, lengths in segmentations(law):
        for topics in itertools.product(range(num_topics), repeat=len(lengths)):
            topic_T = np.repeat(topics, lengths)[:length]
            steps = transitions_SVV[topic_T[1:], tokens_T[:-1], tokens_T[1:]]
            joint_T = probability / num_topics ** len(lengths) * np.cumprod(np.concatenate([[1], steps]))
            joint_TS[np.arange(length), topic_T] += joint_T
    evidence_T = joint_TS.sum(1)
    return -np.diff(np.log(evidence_T)), joint_TS / evidence_T[:, None]


def worst_difference(bayes: BayesFilter, law: SegmentLaw) -> float:
    tokens_NT = np.random.default_rng(1).integers(3, size=(12, law.sequence_length))
    loss_NT, posterior_NTS = bayes.filter(tokens_NT)
    worst = 0.0
    for n, tokens_T in enumerate(tokens_NT):
        loss_T, posterior_TS = enumerate_filter(bayes.transitions_SVV, law, tokens_T)
        worst = max(worst, np.abs(loss_NT[n] - loss_T).max(), np.abs(posterior_NTS[n] - posterior_TS).max())
    return worst


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_filter_equals_the_sum_over_everything(law: SegmentLaw) -> None:
    assert worst_difference(BayesFilter(transitions_SVV=chains(), law=law), law) < 1e-10


class GeometricHazard(SegmentLaw):
    """A mutant: segments end with the chance 1/(mean length) once the minimum is over, as in a plain HMM."""

    def hazard(self) -> np.ndarray:
        exact = super().hazard()
        return np.where((exact > 0) & (exact < 1), 1 / (self.sequence_length / 2 - self.min_segment), exact)


class CountsFromOne(SegmentLaw):
    """A mutant: the extra length is taken as Binomial(left, 1/(r + 1)), as if m counted from 1."""

    def hazard(self) -> np.ndarray:
        later = SegmentLaw(
            sequence_length=self.sequence_length + self.min_segment,
            min_segments=self.min_segments,
            max_segments=self.max_segments + 1,
            min_segment=self.min_segment,
        )
        length = self.sequence_length
        return later.hazard()[1:, :length, :length]


@pytest.mark.parametrize("mutant", [GeometricHazard, CountsFromOne])
@pytest.mark.parametrize("law", LAWS[:2], ids=str)
def test_a_wrong_hazard_fails(mutant: type[SegmentLaw], law: SegmentLaw) -> None:
    wrong = mutant(**vars(law))
    assert worst_difference(BayesFilter(transitions_SVV=chains(), law=wrong), law) > 1e-3


def test_probabilities_of_all_sequences_sum_to_one() -> None:
    law = LAWS[0]
    transitions_SVV = np.random.default_rng(0).dirichlet(np.ones(3), size=(2, 3))
    everything = np.array([(0, *rest) for rest in itertools.product(range(3), repeat=law.sequence_length - 1)])
    loss_NT, posterior_NTS = BayesFilter(transitions_SVV=transitions_SVV, law=law).filter(everything)
    assert np.exp(-loss_NT.sum(1)).sum() == pytest.approx(1, abs=1e-12)
    assert np.abs(posterior_NTS.sum(2) - 1).max() < 1e-12


def test_a_prefix_is_filtered_as_the_whole() -> None:
    law = LAWS[1]
    bayes = BayesFilter(transitions_SVV=chains(), law=law)
    tokens_NT = np.random.default_rng(1).integers(3, size=(5, law.sequence_length))
    loss_NT, posterior_NTS = bayes.filter(tokens_NT)
    short_loss_NT, short_posterior_NTS = bayes.filter(tokens_NT[:, :5])
    assert np.array_equal(short_loss_NT, loss_NT[:, :4]) and np.array_equal(short_posterior_NTS, posterior_NTS[:, :5])


@pytest.mark.parametrize("sharpness", [0.05, 1e-12])
def test_long_sequences_neither_overflow_nor_vanish(sharpness: float) -> None:
    """At sharpness 1e-12 the third sequence has probability exp(-14_000)."""
    law = SegmentLaw(sequence_length=512, min_segments=2, max_segments=5, min_segment=32)
    transitions_SVV = np.full((2, 4, 4), sharpness)
    transitions_SVV[0, :, 0] = transitions_SVV[1, :, 1] = 1 - 3 * sharpness
    tokens_NT = np.random.default_rng(0).integers(2, 4, size=(3, 512))
    tokens_NT[0] = 0
    tokens_NT[1] = np.arange(512) // 128 % 2
    loss_NT, posterior_NTS = BayesFilter(transitions_SVV=transitions_SVV, law=law).filter(tokens_NT)
    assert np.isfinite(loss_NT).all() and np.abs(posterior_NTS.sum(2) - 1).max() < 1e-12
    assert np.allclose(loss_NT[2], -math.log(sharpness))
    assert posterior_NTS[1, 127, 0] > 0.95 and posterior_NTS[1, 255, 1] > 0.95


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    law = SegmentLaw(sequence_length=40, min_segments=2, max_segments=4, min_segment=5)
    bayes = BayesFilter(transitions_SVV=chains(), law=law)
    tokens_NT = np.random.default_rng(1).integers(3, size=(50, 40))
    loss_NT, posterior_NTS = bayes.filter(tokens_NT)
    monkeypatch.setattr("headdyn.data.bayes._CHUNK_BYTES", 1)
    in_pieces_NT, pieces_NTS = bayes.filter(tokens_NT)
    assert np.array_equal(in_pieces_NT, loss_NT) and np.array_equal(pieces_NTS, posterior_NTS)


def test_drawn_lengths_follow_the_law() -> None:
    """Frequencies of all length tuples of a small law against their exact probabilities."""
    law, count = LAWS[1], 40_000
    lengths_NK = law.draw(count, np.random.default_rng(0))
    assert (lengths_NK.sum(1) == law.sequence_length).all()
    seen: dict[tuple[int, ...], int] = {}
    for row in lengths_NK.tolist():
        seen[tuple(row)] = seen.get(tuple(row), 0) + 1
    exact = {(lengths + (0,) * law.max_segments)[: law.max_segments]: p for p, lengths in segmentations(law)}
    assert sum(exact.values()) == pytest.approx(1) and set(seen) <= set(exact)
    for lengths, p in exact.items():
        assert abs(seen.get(lengths, 0) - count * p) < 4.5 * math.sqrt(count * p * (1 - p))


def test_bad_input() -> None:
    bayes = BayesFilter(transitions_SVV=chains(), law=LAWS[0])
    with pytest.raises(ValueError, match=r"sequences of 8 tokens are longer than the law's 7"):
        bayes.filter(np.zeros((1, 8), int))
    with pytest.raises(ValueError, match=r"tokens 0\.\.3 exceed the vocabulary 0\.\.2"):
        bayes.filter(np.array([[0, 3, 1]]))
    with pytest.raises(ValueError, match=r"need 8 tokens, but data.sequence_length=7; lower min_segment to 1 or less"):
        SegmentLaw(sequence_length=7, min_segments=1, max_segments=4, min_segment=2)
    with pytest.raises(ValueError, match="are no range; set 1 <= min_segments <= max_segments"):
        SegmentLaw(sequence_length=7, min_segments=3, max_segments=2, min_segment=2)
