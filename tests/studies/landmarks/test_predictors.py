"""Exact in-context predictors against the evidence that a Dirichlet-multinomial gives whole sequences."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from math import lgamma

import numpy as np
import pytest

from headdyn.data.markov import chain_tokens
from headdyn.studies.landmarks.predictors import (
    bigram_law,
    divergence,
    next_token_loss,
    retrieval_laws,
    stationary_laws,
    unigram_concentration,
    unigram_law,
)

TOKENS_NT = np.random.default_rng(0).integers(3, size=(4, 9))


def log_evidence(draws: list[int], vocab_size: int, concentration: float) -> float:
    """log p of a run of draws from one Dirichlet(α) law, its probabilities integrated out in closed form."""
    counts = Counter(draws)
    total = lgamma(vocab_size * concentration) - lgamma(vocab_size * concentration + len(draws))
    return total + sum(lgamma(concentration + n) - lgamma(concentration) for n in counts.values())


def log_evidence_of_chain(tokens: list[int], vocab_size: int, concentration: float) -> float:
    followers: dict[int, list[int]] = {}
    for before, after in itertools.pairwise(tokens):
        followers.setdefault(before, []).append(after)
    return sum(log_evidence(draws, vocab_size, concentration) for draws in followers.values())


@pytest.mark.parametrize("concentration", [1.0, 0.3])
def test_bigram_law_is_the_ratio_of_evidences_of_the_sequences_with_and_without_the_next_token(
    concentration: float,
) -> None:
    law_NTV = bigram_law(TOKENS_NT, 3, concentration)
    for n, tokens in enumerate(TOKENS_NT.tolist()):
        for t in range(len(tokens) - 1):
            begin = log_evidence_of_chain(tokens[: t + 1], 3, concentration)
            for v in range(3):
                more = log_evidence_of_chain([*tokens[: t + 1], v], 3, concentration)
                assert law_NTV[n, t, v] == pytest.approx(np.exp(more - begin), abs=1e-12)


def test_unigram_law_is_the_ratio_of_evidences_of_independent_draws() -> None:
    law_NTV = unigram_law(TOKENS_NT, 3, 0.7)
    for n, tokens in enumerate(TOKENS_NT.tolist()):
        for t in range(len(tokens) - 1):
            for v in range(3):
                ratio = log_evidence([*tokens[: t + 1], v], 3, 0.7) - log_evidence(tokens[: t + 1], 3, 0.7)
                assert law_NTV[n, t, v] == pytest.approx(np.exp(ratio), abs=1e-12)


@pytest.mark.parametrize("law", [unigram_law, bigram_law])
def test_a_law_knows_nothing_of_tokens_to_come(law: object) -> None:
    changed_NT = TOKENS_NT.copy()
    changed_NT[:, 5:] = (changed_NT[:, 5:] + 1) % 3
    before, after = law(TOKENS_NT, 3, 1.0), law(changed_NT, 3, 1.0)  # type: ignore[operator]
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.abs(before[:, 5:] - after[:, 5:]).max() > 0.01  # and is not blind either


def test_losses_and_divergences_worked_by_hand() -> None:
    law_112 = np.array([[[0.25, 0.75]]])
    assert next_token_loss(law_112, np.array([[0, 1]]))[0, 0] == pytest.approx(-np.log(0.75))
    expected = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)
    assert divergence(law_112, np.log(np.full((1, 1, 2), 0.5)))[0, 0] == pytest.approx(expected)
    assert divergence(law_112, np.log(law_112))[0, 0] == 0


def test_retrieval_laws_are_ratios_of_the_probabilities_of_whole_sequences() -> None:
    draws = np.random.default_rng(1)
    chains_KVV = draws.dirichlet(np.ones(3), (4, 3))
    stationary_KV = draws.dirichlet(np.ones(3), 4)  # any laws: the predictor does not ask where they are from

    def by_order(tokens: list[int]) -> np.ndarray:
        return np.array([np.prod([chain_VV[a, b] for a, b in itertools.pairwise(tokens)]) for chain_VV in chains_KVV])

    def by_symbols(tokens: list[int]) -> np.ndarray:
        return np.array([np.prod([law_V[token] for token in tokens]) for law_V in stationary_KV])

    laws = retrieval_laws(TOKENS_NT, chains_KVV, stationary_KV)
    for name, evidence in (("bigram_retrieval", by_order), ("unigram_retrieval", by_symbols)):
        for n, tokens in enumerate(TOKENS_NT.tolist()):
            for t in range(len(tokens) - 1):
                for v in range(3):
                    ratio = evidence([*tokens[: t + 1], v]).sum() / evidence(tokens[: t + 1]).sum()
                    assert laws[name][n, t, v] == pytest.approx(ratio, abs=1e-12)


def dirichlet_chains(vocab_size: int) -> Callable[[int, np.random.Generator], np.ndarray]:
    return lambda count, draws: draws.dirichlet(np.ones(vocab_size), (count, vocab_size))


def test_the_concentration_is_that_of_laws_which_are_dirichlet() -> None:
    """Chains whose rows are all one Dirichlet(2.5) law have this law as their stationary one."""

    def draw_chains(count: int, draws: np.random.Generator) -> np.ndarray:
        return np.repeat(draws.dirichlet(np.full(4, 2.5), (count, 1)), 4, axis=1)

    assert unigram_concentration(draw_chains) == pytest.approx(2.5, rel=0.1)


@pytest.mark.parametrize("vocab_size", [3, 10])
def test_the_unigram_predictor_beats_guessing_and_its_prior_is_the_best_of_a_grid(vocab_size: int) -> None:
    """Under the rows' own prior, 1, ten symbols are predicted worse than by guessing: stationary laws are more even."""
    draws = np.random.default_rng(3)
    chains_NVV = dirichlet_chains(vocab_size)(600, draws)
    tokens_NT = chain_tokens(chains_NVV, np.arange(600), 96, 0, "test").astype(np.int64)
    fitted = unigram_concentration(dirichlet_chains(vocab_size))
    losses = {
        factor: next_token_loss(unigram_law(tokens_NT, vocab_size, factor * fitted), tokens_NT).mean()
        for factor in (1 / 4, 1 / 2, 1, 2, 4)
    }
    assert min(losses, key=losses.__getitem__) == 1 and losses[1] < np.log(vocab_size)
    under_the_rows_prior = next_token_loss(unigram_law(tokens_NT, vocab_size, 1.0), tokens_NT).mean()
    assert under_the_rows_prior > losses[1] + 0.003
    if vocab_size == 10:
        assert under_the_rows_prior > np.log(10)


def test_balanced_chains_have_an_even_unigram_predictor() -> None:
    permutations_KVV = np.eye(3)[[[1, 2, 0], [2, 0, 1]]] * 0.4 + 0.2
    np.testing.assert_allclose(stationary_laws(permutations_KVV), 1 / 3, atol=1e-12)
    law_NTV = unigram_law(TOKENS_NT, 3, unigram_concentration(lambda count, draws: permutations_KVV))
    np.testing.assert_allclose(law_NTV, 1 / 3, atol=1e-9)
