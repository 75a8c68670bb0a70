"""Fresh languages: the filter against closed forms, draws against the probabilities of all short chains."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import gammaln
from scipy.stats import chisquare

from headdyn.core.settings import ConfigError, build
from headdyn.data.conversation_filter import ConversationFilter
from headdyn.data.conversations import Conversations
from headdyn.data.fresh_languages import FreshFilter, concentration, urn_chains
from tests.data.test_conversations import TRIAL, advantage, built

FRESH = replace(
    TRIAL, chains="fresh", speaker="tag", num_symbols=6, sequence_length=64, target_gap_nats=0.8, val_sequences=300
)


def log_evidence(chain_M: np.ndarray, size: int, alpha: float, by_context: bool) -> float:
    """ln p of one speaker's symbols: the first uniform, then each law's counts by the Dirichlet-multinomial formula."""
    contexts = chain_M[:-1] if by_context else np.zeros(len(chain_M) - 1, int)
    total = -math.log(size)
    for context in np.unique(contexts):
        counts_V = np.bincount(chain_M[1:][contexts == context], minlength=size)
        total += gammaln(alpha * size) - gammaln(alpha * size + counts_V.sum())
        total += (gammaln(alpha + counts_V) - gammaln(alpha)).sum()
    return total


@pytest.mark.parametrize("by_context", [True, False])
def test_losses_sum_to_the_closed_form(by_context: bool) -> None:
    rng = np.random.default_rng(0)
    speakers_NM, symbols_NM = rng.integers(3, size=(5, 40)), rng.integers(4, size=(5, 40))
    exact = FreshFilter(np.full((3, 4, 4), 0.25), "tag", 3, 0.5, alpha=0.3, by_context=by_context)
    loss_NM, posteriors = exact.with_speakers(speakers_NM, symbols_NM)
    for n in range(5):
        parts = [symbols_NM[n][speakers_NM[n] == p] for p in range(3)]
        by_hand = -sum(log_evidence(part, 4, 0.3, by_context) for part in parts if len(part))
        assert loss_NM[n].sum() == pytest.approx(by_hand, abs=1e-9)
    assert np.array_equal(posteriors[:, :, 0].argmax(2), speakers_NM)
    wrong = replace(exact, alpha=0.35).with_speakers(speakers_NM, symbols_NM)[0]
    assert abs(wrong.sum() - loss_NM.sum()) > 0.1


@pytest.mark.parametrize("by_context", [True, False])
def test_the_urn_draws_what_the_filter_expects(by_context: bool) -> None:
    chain_RM = urn_chains(20_000, 5, 2, 0.4, by_context, np.random.default_rng(0))
    seen = np.bincount(chain_RM @ (2 ** np.arange(5)), minlength=32)
    every = [np.array(bits[::-1]) for bits in itertools.product((0, 1), repeat=5)]
    law = np.exp([log_evidence(chain, 2, 0.4, by_context) for chain in every])
    assert law.sum() == pytest.approx(1, abs=1e-12)
    assert chisquare(seen, 20_000 * law).pvalue > 1e-3
    assert chisquare(seen, 20_000 * np.roll(law, 1)).pvalue < 1e-6


def test_the_concentration_has_the_gap_asked_for() -> None:
    rows = np.random.default_rng(0).dirichlet(np.full(32, concentration(32, 1.2)), size=20_000)
    entropy = -(rows * np.log(rows + 1e-300)).sum(1)
    assert math.log(32) - entropy.mean() == pytest.approx(1.2, abs=0.01)


@pytest.mark.parametrize("evidence", ["unigrams", "transitions"])
def test_a_corpus_of_fresh_languages(evidence: str, tmp_path: Path) -> None:
    corpus = built(replace(FRESH, evidence=evidence), tmp_path)  # type: ignore[arg-type]
    facts, oracle = corpus.facts, corpus.oracle
    assert corpus.topic_names == ("speaker 0", "speaker 1") and corpus.vocab_size == 12
    assert np.array_equal(corpus.val.topics_NT, corpus.val.tokens_NT // 6)
    assert facts["bayes_topic_accuracy"] == 1.0  # tags tell
    assert facts["mixture_nats"] == facts["random_nats"]  # nothing is known of languages that no sequence shares
    assert facts["floor_nats"] < facts["position_only_nats"] < facts["random_nats"]
    assert facts["selection_worth_nats"] == facts["position_only_nats"] - facts["floor_nats"] > 0.01
    assert isinstance(oracle, FreshFilter) and isinstance(oracle, ConversationFilter)
    floor_NT, _ = oracle.filter(corpus.val.tokens_NT)
    tokens_NT = corpus.val.tokens_NT.astype(int)
    pooled_NM, _ = oracle.pooled(tokens_NT // 6, tokens_NT % 6)
    assert advantage(oracle.token_losses(pooled_NM, tokens_NT // 6), floor_NT) > 3
    assert floor_NT[:, -16:].mean() < floor_NT[:, :16].mean() - 0.02  # learnt in context


def test_languages_drawn_afresh_may_be_fewer_than_speakers_by_number(tmp_path: Path) -> None:
    corpus = built(replace(FRESH, num_speakers=4, num_topics=3), tmp_path)
    assert corpus.topic_names == tuple(f"speaker {speaker}" for speaker in range(4))
    assert np.array_equal(corpus.val.topics_NT, corpus.val.tokens_NT // 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speaker": "hidden"}, "data.speaker=hidden needs languages that sequences share; set data.chains=fixed"),
        ({"num_domains": 2, "num_topics": 4}, "data.num_domains=2 needs languages that sequences share"),
    ],
)
def test_impossible_settings(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Conversations, {**vars(FRESH), **change}, "data")
