from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import digamma
from scipy.stats import chisquare

from headdyn.data import markov
from headdyn.data.markov import (
    AliasSampler,
    matched_chains,
    original_chains,
    row_entropy_nats,
    sample_tokens,
    stationary_law,
)


def matched(vocab_size: int = 64, gap: float = 1.8, seed: int = 0, num_topics: int = 3) -> np.ndarray:
    return matched_chains(
        vocab_size=vocab_size,
        num_topics=num_topics,
        target_gap_nats=gap,
        generator=np.random.default_rng(seed),
    )


def seeded(vocab_size: int, num_topics: int, concentration: float) -> np.ndarray:
    return original_chains(
        vocab_size=vocab_size,
        num_topics=num_topics,
        concentration=concentration,
        generator=np.random.default_rng(0),
    )


@pytest.mark.parametrize(
    ("vocab_size", "gap"), [(2, 0.3), (3, 0.5), (32, 1.4), (64, 0.05), (64, 3.2), (65, 1.8), (512, 1.7)]
)
def test_matched_chains_are_doubly_stochastic_with_the_gap_asked_for(vocab_size: int, gap: float) -> None:
    transitions_SVV = matched(vocab_size, gap).astype(np.float64)
    assert np.abs(transitions_SVV.sum(1) - 1).max() < 2e-5 and np.abs(transitions_SVV.sum(2) - 1).max() < 1e-6
    entropy_SV = -(transitions_SVV * np.log(transitions_SVV)).sum(2)
    # Every topic within 0.5 %, and the promise is 2 %: the solver stops at 0.2 % of β, and the gap goes as β² at most.
    assert np.abs((math.log(vocab_size) - entropy_SV.mean(1)) / gap - 1).max() < 0.005


def test_unbalanced_chains_give_their_tokens_away() -> None:
    """The mutant: the same rows without Sinkhorn's iteration have column sums far from 1."""
    normals_VV = np.random.default_rng(0).standard_normal((64, 64))
    rows_VV = np.exp(2.5 * normals_VV)
    rows_VV /= rows_VV.sum(1, keepdims=True)
    assert np.abs(rows_VV.sum(0) - 1).max() > 0.5


def test_a_gap_that_leaves_nothing_random_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markov, "_MOST_BALANCINGS", 200)
    with pytest.raises(ValueError, match=r"data.target_gap_nats=4.1 is too near ln V = 4.159.*lower the gap"):
        matched(64, 4.1)


def test_threads_do_not_change_the_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    both = matched(), AliasSampler(matched()).table_RV
    monkeypatch.setattr("headdyn.core.threads.usable_cores", lambda: 1)
    monkeypatch.setattr(markov, "_ALIAS_CELLS", 1)
    assert np.array_equal(both[0], matched()) and np.array_equal(both[1], AliasSampler(matched()).table_RV)


def test_original_chains_have_the_studys_entropy() -> None:
    """V 4096, 5 topics, concentration 5: the original study's log gives 7.28 nats, and a learnable gap of 1.04."""
    chain_VV = seeded(4096, 5, 5.0)[0]
    entropy = stationary_law(chain_VV) @ row_entropy_nats(chain_VV)
    assert entropy == pytest.approx(7.28, abs=0.005)


def test_original_chains_boost_own_tokens_and_signature_bigrams() -> None:
    """Mean entropy of the rows without a signature against its expectation for Dirichlet rows in two groups."""
    vocab_size, num_topics, boost = 1024, 4, 20.0
    transitions_SVV = seeded(vocab_size, num_topics, boost).astype(np.float64)
    own, rest = vocab_size // num_topics, vocab_size - vocab_size // num_topics
    share = boost * own / (boost * own + rest)
    groups = [(share, own), (1 - share, rest)]
    expected = sum(p * (digamma(n / 2 + 1) - digamma(1.5) - math.log(p)) for p, n in groups)
    for topic, chain_VV in enumerate(transitions_SVV):
        own_tokens = slice(topic * own, (topic + 1) * own)
        plain_VV = np.delete(chain_VV, np.r_[own_tokens], axis=0)
        assert row_entropy_nats(plain_VV).mean() == pytest.approx(expected, abs=0.01)
        assert plain_VV[:, own_tokens].sum(1).mean() == pytest.approx(share, abs=0.005)
        # 50 of the own rows carry a bigram × 10 / 0.3 against the rest of its row: the largest entry goes up.
        with_signature = np.sort(chain_VV[own_tokens, own_tokens].max(1))
        assert with_signature[-40:].mean() > 2 * with_signature[:-50].mean()


def test_entropy_and_stationary_law_of_hand_worked_chains() -> None:
    chain_VV = np.array([[0.5, 0.5], [1.0, 0.0]], np.float32)
    assert np.allclose(row_entropy_nats(chain_VV), [math.log(2), 0], atol=1e-7)
    assert np.allclose(stationary_law(chain_VV), [2 / 3, 1 / 3], atol=1e-5)


def law_of(sampler: AliasSampler) -> np.ndarray:
    """The units that each row of an alias table gives to each token: what it samples, exactly."""
    bits, vocab_size = sampler.alias_bits, sampler.vocab_size
    full, table_RV = 1 << (32 - bits), sampler.table_RV.astype(np.int64)
    units_RV = table_RV >> bits
    rows_RV = np.repeat(np.arange(len(table_RV))[:, None], vocab_size, axis=1)
    np.add.at(units_RV, (rows_RV, table_RV & ((1 << bits) - 1)), full - (table_RV >> bits))
    return units_RV


@pytest.mark.parametrize("vocab_size", [2, 3, 64, 100, 512])
def test_alias_tables_hold_the_law_to_the_unit(vocab_size: int) -> None:
    rng = np.random.default_rng(0)
    transitions_SVV = rng.dirichlet(np.full(vocab_size, 0.2), size=(2, vocab_size))
    transitions_SVV[0, 0] = 1 / vocab_size  # no light cell
    transitions_SVV[1, -1] = np.eye(vocab_size)[0]  # one heavy cell
    transitions_SVV[1, 0] = np.eye(vocab_size)[-1]
    sampler = AliasSampler(transitions_SVV)
    units_RV, total = law_of(sampler), vocab_size << (32 - sampler.alias_bits)
    assert (units_RV.sum(1) == total).all()
    error_RV = np.abs(units_RV - transitions_SVV.reshape(-1, vocab_size) * total)
    assert error_RV.max() <= vocab_size / 2  # the largest cell takes what the others' rounding leaves
    assert np.sort(error_RV, axis=1)[:, :-1].max() <= 0.501


@pytest.mark.parametrize("vocab_size", [7, 8])
def test_sampled_transitions_follow_their_topics_chain(vocab_size: int) -> None:
    rng = np.random.default_rng(0)
    transitions_SVV = rng.dirichlet(np.ones(vocab_size), size=(2, vocab_size))
    topics_NT = np.repeat(rng.integers(2, size=(4000, 5), dtype=np.uint8), 10, axis=1)
    tokens_NT = np.empty(topics_NT.shape, np.uint16)
    sample_tokens(AliasSampler(transitions_SVV), topics_NT, np.array([1, 2], np.uint64), tokens_NT)
    assert chisquare(np.bincount(tokens_NT[:, 0], minlength=vocab_size)).pvalue > 1e-3
    counts_SVV = np.zeros(transitions_SVV.shape)
    np.add.at(counts_SVV, (topics_NT[:, 1:], tokens_NT[:, :-1], tokens_NT[:, 1:]), 1)
    expected_SVV = transitions_SVV * counts_SVV.sum(2, keepdims=True)
    fit = chisquare(counts_SVV.ravel(), expected_SVV.ravel(), ddof=2 * vocab_size - 1)
    assert fit.pvalue > 1e-3
    # The mutant: labels one place late, as if a segment's first token still followed the old chain.
    late_SVV = np.zeros(transitions_SVV.shape)
    np.add.at(late_SVV, (topics_NT[:, :-1], tokens_NT[:, :-1], tokens_NT[:, 1:]), 1)
    late = chisquare(
        late_SVV.ravel(), (transitions_SVV * late_SVV.sum(2, keepdims=True)).ravel(), ddof=2 * vocab_size - 1
    )
    assert late.pvalue < 1e-6


def test_tokens_do_not_depend_on_chunks_threads_or_how_many_sequences_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    topics_NT = np.random.default_rng(0).integers(3, size=(203, 70), dtype=np.uint8)
    sampler, key = AliasSampler(matched()), np.array([5, 6], np.uint64)

    def tokens(count: int, chunk: int) -> np.ndarray:
        out_NT = np.empty((count, 70), np.uint16)
        sample_tokens(sampler, topics_NT[:count], key, out_NT, chunk=chunk)
        return out_NT

    whole = tokens(203, 8192)
    assert np.array_equal(whole, tokens(203, 8)) and np.array_equal(whole, tokens(203, 64))
    assert np.array_equal(whole[:77], tokens(77, 16))
    assert len(np.unique(whole, axis=0)) == 203
    monkeypatch.setattr("headdyn.core.threads.usable_cores", lambda: 1)
    assert np.array_equal(whole, tokens(203, 16))
