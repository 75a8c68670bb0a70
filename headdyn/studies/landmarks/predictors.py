"""Exact predictors of the next symbol of a Markov chain, from the symbols of a sequence so far.

Letters: N sequences, T tokens, V symbols, K chains. A law [N, T-1, V] holds at t the probabilities of token t + 1 given
tokens 0..t.
"""

from collections.abc import Callable

import numpy as np
import scipy

from headdyn.core.randomness import generator

_CHAINS_OF_THE_PRIOR = 4_096


def stationary_laws(chains_KVV: np.ndarray) -> np.ndarray:
    """The stationary law of every chain, [K, V]."""
    vocab_size = chains_KVV.shape[2]
    # π solves (Pᵀ − 1 + J) π = (1, …, 1), where J is all ones.
    system_KVV = chains_KVV.astype(float).swapaxes(1, 2) - np.eye(vocab_size) + 1
    return np.linalg.solve(system_KVV, np.ones((len(system_KVV), vocab_size, 1)))[..., 0]


def unigram_concentration(draw_chains: Callable[[int, np.random.Generator], np.ndarray]) -> float:
    """The concentration of the symmetric Dirichlet law that resembles the stationary laws of drawn chains.

    Stationary laws are more even than the chains' rows: those of Dirichlet(1) rows of 10 symbols resemble
    Dirichlet(9.7). The Dirichlet law is matched by the mean of Σ_v π_v², which is (α + 1)/(V α + 1).
    """
    laws_KV = stationary_laws(draw_chains(_CHAINS_OF_THE_PRIOR, generator(0, "stationary laws")))
    square = float((laws_KV**2).sum(1).mean())
    return (1 - square) / max(laws_KV.shape[1] * square - 1, 1e-12)


def unigram_law(tokens_NT: np.ndarray, vocab_size: int, concentration: float) -> np.ndarray:
    """The law [N, T-1, V] from how often each symbol occurred, under a Dirichlet prior.

    (n_v + α) / (t + 1 + V α): exact for symbols drawn independently. It ignores the symbols' order.
    """
    count_NTV = np.cumsum(tokens_NT[:, :-1, None] == np.arange(vocab_size), axis=1) + concentration
    return count_NTV / count_NTV.sum(2, keepdims=True)


def bigram_law(tokens_NT: np.ndarray, vocab_size: int, concentration: float) -> np.ndarray:
    """The law [N, T-1, V] from what followed the present symbol, under Dirichlet rows.

    (n_uv + α) / (n_u + V α) with u = x_t. This is the Bayes predictor if the rows of chains are independent
    Dirichlet(α) and the first symbol is independent of the rows.
    """
    count, length = tokens_NT.shape
    rows_N = np.arange(count)
    counts_NVV = np.full((count, vocab_size, vocab_size), float(concentration))
    law_NTV = np.empty((count, length - 1, vocab_size))
    for t in range(length - 1):
        if t:
            counts_NVV[rows_N, tokens_NT[:, t - 1], tokens_NT[:, t]] += 1
        row_NV = counts_NVV[rows_N, tokens_NT[:, t]]
        law_NTV[:, t] = row_NV / row_NV.sum(1, keepdims=True)
    return law_NTV


def retrieval_laws(tokens_NT: np.ndarray, chains_KVV: np.ndarray, stationary_KV: np.ndarray) -> dict[str, np.ndarray]:
    """Two laws [N, T-1, V] for a sequence that is known to follow one of K chains, each equally likely.

    `bigram_retrieval` weighs chains by the transitions so far and predicts by their rows: the Bayes predictor, where
    the first symbol is uniform. `unigram_retrieval` ignores the symbols' order: it weighs chains by the symbols so far,
    as if drawn independently from the chains' stationary laws, and predicts by these laws.
    """
    count, length = tokens_NT.shape
    log_chains_KVV, log_stationary_KV = np.log(chains_KVV), np.log(stationary_KV)
    by_order_NK = np.zeros((count, len(chains_KVV)))
    by_symbols_NK = np.zeros((count, len(chains_KVV)))
    laws = {name: np.empty((count, length - 1, chains_KVV.shape[1])) for name in ("unigram", "bigram")}
    for t in range(length - 1):
        present_N = tokens_NT[:, t]
        by_symbols_NK += log_stationary_KV[:, present_N].T
        if t:
            by_order_NK += log_chains_KVV[:, tokens_NT[:, t - 1], present_N].T
        laws["unigram"][:, t] = scipy.special.softmax(by_symbols_NK, axis=1) @ stationary_KV
        weight_NK = scipy.special.softmax(by_order_NK, axis=1)
        for symbol in np.unique(present_N):
            rows = present_N == symbol
            laws["bigram"][rows, t] = weight_NK[rows] @ chains_KVV[:, symbol]
    return {f"{name}_retrieval": law_NTV for name, law_NTV in laws.items()}


def next_token_loss(law_NTV: np.ndarray, tokens_NT: np.ndarray) -> np.ndarray:
    """The loss [N, T-1] in nats of predicting each next token by the law [N, T-1, V]."""
    return -np.log(np.take_along_axis(law_NTV, tokens_NT[:, 1:, None].astype(np.int64), axis=2)[..., 0])


def divergence(law_NTV: np.ndarray, log_model_NTV: np.ndarray) -> np.ndarray:
    """KL(law ‖ model) in nats, [N, T-1]."""
    return (law_NTV * (np.log(law_NTV) - log_model_NTV)).sum(2)
