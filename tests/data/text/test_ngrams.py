"""Kneser–Ney by the formulas, one n-gram at a time in dictionaries, against the sorted and partitioned counts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np
import pytest

from headdyn.core.randomness import generator
from headdyn.data.markov import AliasSampler, matched_chains, sample_tokens
from headdyn.data.text.ngrams import losses_nats

V = 7


def tokens(sequences: int, seed: int, length: int = 9) -> np.ndarray:
    """Tokens with structure: each likely follows from the two before; the last two words of the vocabulary are rare."""
    rng = np.random.default_rng(seed)
    x_NT = rng.integers(V - 2, size=(sequences, length))
    for t in range(2, length):
        follows = rng.random(sequences) < 0.6
        x_NT[follows, t] = (x_NT[follows, t - 1] + 2 * x_NT[follows, t - 2]) % (V - 2)
    x_NT[rng.random(x_NT.shape) < 0.02] = V - 2  # V − 1 never comes
    return x_NT.astype(np.uint16)


def ney(counts: Counter[tuple[int, ...]]) -> float:
    once, twice = (sum(1 for c in counts.values() if c == n) for n in (1, 2))
    return once / (once + 2 * twice) if once else 0.5


class Reference:
    """p(w | context) straight from the definition."""

    def __init__(self, train_NT: np.ndarray, *, across: bool = False, raw_lower: bool = False, d: float | None = None):
        rows = [row.tolist() for row in train_NT]
        if across:  # mutant: n-grams run on over the ends of sequences
            rows = [[token for row in rows for token in row]]
        grams = {n: Counter(tuple(r[i : i + n]) for r in rows for i in range(len(r) - n + 1)) for n in (1, 2, 3)}
        self.d = d
        self.uni, self.bi, self.tri = grams[1], grams[2], grams[3]
        self.lower_bi = self.bi if raw_lower else Counter(gram[1:] for gram in self.tri)  # how many u before vw
        self.lowest = self.uni if raw_lower else Counter(gram[1:] for gram in self.bi)
        self.after: dict[int, dict[tuple[int, ...], list[int]]] = {}
        for counts in (self.uni, self.bi, self.tri, self.lower_bi, self.lowest):
            self.after[id(counts)] = defaultdict(list)
            for gram, count in counts.items():
                self.after[id(counts)][gram[:-1]].append(count)

    def smoothed(self, counts: Counter[tuple[int, ...]], gram: tuple[int, ...], lower: float) -> float:
        following = self.after[id(counts)][gram[:-1]]
        if not following:
            return lower
        d = ney(counts) if self.d is None else self.d
        return (max(counts[gram] - d, 0) + d * len(following) * lower) / sum(following)

    def unigram(self, w: int) -> float:
        return self.smoothed(self.uni, (w,), 1 / V)

    def bigram(self, v: int, w: int) -> float:
        return self.smoothed(self.bi, (v, w), self.smoothed(self.lowest, (w,), 1 / V))

    def trigram(self, u: int, v: int, w: int) -> float:
        middle = self.smoothed(self.lower_bi, (v, w), self.smoothed(self.lowest, (w,), 1 / V))
        return self.smoothed(self.tri, (u, v, w), middle)

    def losses(self, val_NT: np.ndarray) -> dict[str, np.ndarray]:
        def each(p: Callable[[list[int], int], float]) -> np.ndarray:
            return np.array([[-math.log(p(r, t)) for t in range(1, len(r))] for r in val_NT.tolist()])

        return {
            "unigram": each(lambda r, t: self.unigram(r[t])),
            "bigram": each(lambda r, t: self.bigram(r[t - 1], r[t])),
            "trigram": each(lambda r, t: self.bigram(r[0], r[1]) if t == 1 else self.trigram(r[t - 2], r[t - 1], r[t])),
        }


def agree(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return all(np.allclose(a[name], b[name], rtol=0, atol=1e-12) for name in ("unigram", "bigram", "trigram"))


@pytest.mark.parametrize("keys_at_once", [1 << 23, 100, 17])
def test_against_the_definition(keys_at_once: int) -> None:
    train_NT, val_NT = tokens(40, 0), tokens(25, 1)
    ours = dict(losses_nats(train_NT, val_NT, V, keys_at_once=keys_at_once))
    assert list(ours) == ["unigram", "bigram", "trigram"] and ours["trigram"].shape == (25, 8)
    assert agree(ours, Reference(train_NT).losses(val_NT))


def test_wrong_variants_are_told_apart() -> None:
    train_NT, val_NT = tokens(40, 0), tokens(25, 1)
    ours = dict(losses_nats(train_NT, val_NT, V))
    assert not agree(ours, Reference(train_NT, across=True).losses(val_NT))
    assert not agree(ours, Reference(train_NT, raw_lower=True).losses(val_NT))
    assert not agree(ours, Reference(train_NT, d=0.75).losses(val_NT))


@pytest.mark.parametrize("sequences", [2, 40, 3000])
def test_every_law_sums_to_one(sequences: int) -> None:
    """Over every next token of every context, seen or not; 3,000 sequences leave no n-gram that occurs once."""
    contexts = [(u, v) for u in range(V) for v in range(V)]
    val_NT = np.array([(u, v, w) for u, v in contexts for w in range(V)], np.uint16)
    losses = losses_nats(tokens(sequences, 2), val_NT, V)
    for name in ("unigram", "bigram", "trigram"):
        p = np.exp(-losses[name][:, 1]).reshape(len(contexts), V)
        np.testing.assert_allclose(p.sum(1), 1, rtol=0, atol=1e-12)
        assert (p > 0).all()


def test_orders_find_what_is_there_to_find() -> None:
    """On a first-order chain the bigram law comes to the entropy rate and the trigram gains nothing."""
    chain_SVV = matched_chains(16, 1, 1.0, generator(0, "chain"))

    def drawn(count: int, key: int) -> np.ndarray:
        x_NT = np.zeros((count, 64), np.uint16)
        sample_tokens(AliasSampler(chain_SVV), np.zeros((count, 64), np.uint8), np.array([key, 0], np.uint64), x_NT)
        return x_NT

    losses = losses_nats(drawn(4000, 1), drawn(1000, 2), 16)
    mean = {name: loss.mean() for name, loss in losses.items()}
    rate = math.log(16) - 1.0  # the gap of 1 nat asked for above
    assert mean["unigram"] == pytest.approx(math.log(16), abs=0.002)
    assert mean["bigram"] == pytest.approx(rate, abs=0.02)  # 64,000 tokens: standard error about 0.004
    assert mean["bigram"] < mean["trigram"] < mean["bigram"] + 0.05
