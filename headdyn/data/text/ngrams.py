"""Reference lines for a loss on real text: unigram, bigram and trigram laws with interpolated Kneser–Ney smoothing.

Kneser & Ney 1995 in the interpolated form of Chen & Goodman 1999, one discount an order (Ney's n1/(n1 + 2 n2)). They
read what a model reads: packed training sequences, contexts that end where the sequence begins. Exact at any size of
the training split: n-grams are counted in parts that hold all n-grams with the same last two tokens, and only what the
held-out tokens ask for is kept.

Letters: N sequences, T tokens, V vocabulary, Q scored held-out tokens, C contexts. An n-gram's tokens are u, v, w.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from headdyn.data.text.stages import Progress

KEYS_AT_ONCE = 1 << 23  # about 400 MB while a part is counted
_COUNT_SEQUENCES_TOKENS = 1 << 20
_SPREAD = 0x9E3779B97F4A7C15


def losses_nats(
    train_NT: np.ndarray, val_NT: np.ndarray, vocab_size: int, *, keys_at_once: int = KEYS_AT_ONCE
) -> Mapping[str, np.ndarray]:
    """−ln p [N, T−1] of every held-out token but the first of its sequence, under "unigram", "bigram" and "trigram".

    The second token of a sequence has one token of context, so there the trigram law is the bigram's. A context never
    seen leaves its order out. `train_NT` may be memory-mapped.
    """
    assert train_NT.shape[1] >= 3 and val_NT.shape[1] >= 3
    val_NT = np.asarray(val_NT, np.int64)
    unigram_V = np.zeros(vocab_size, np.int64)
    for part_NT in _chunks(train_NT):
        unigram_V += np.bincount(part_NT.ravel(), minlength=vocab_size)
    counts = _Counts(val_NT, vocab_size)
    parts = math.ceil(train_NT.size / keys_at_once)
    progress = Progress("counting n-grams", "parts", parts)
    for part in range(parts):
        counts.count(train_NT, part, parts)
        progress.add(1)
    uniform = 1 / vocab_size
    unigram = _discounted(unigram_V, Discount.of(unigram_V), unigram_V.sum(), int(np.count_nonzero(unigram_V)), uniform)
    shape = (len(val_NT), -1)
    bigram_Q, trigram_Q = counts.laws()
    return {
        "unigram": -np.log(unigram[val_NT[:, 1:]]),
        "bigram": -np.log(bigram_Q).reshape(shape),
        "trigram": -np.log(trigram_Q).reshape(shape),
    }


@dataclass
class Discount:
    """Ney's absolute discount of an order, from how many of its n-grams occur once and twice."""

    once: int = 0
    twice: int = 0

    @classmethod
    def of(cls, counts: np.ndarray) -> Discount:
        """The discount for these counts."""
        return cls().add(counts)

    def add(self, counts: np.ndarray) -> Discount:
        """Take in the counts of further n-grams, each given once."""
        self.once += int((counts == 1).sum())
        self.twice += int((counts == 2).sum())
        return self

    @property
    def value(self) -> float:
        """In 0..1; one half where no n-gram occurs once and the estimate would leave nothing for unseen ones."""
        return self.once / (self.once + 2 * self.twice) if self.once else 0.5


def _discounted(
    count: np.ndarray,
    discount: Discount,
    context_count: np.ndarray,
    context_types: np.ndarray | int,
    lower: np.ndarray | float,
) -> np.ndarray:
    """(max(c − D, 0) + D · types · lower) / context count; `lower` alone where the context never came."""
    d = discount.value
    seen = np.maximum(context_count, 1)
    law = (np.maximum(count - d, 0) + d * context_types * lower) / seen
    return np.where(context_count > 0, law, lower)


@dataclass
class _Sums:
    """Of each context: the sum of its n-grams' counts, and how many n-grams it has."""

    count: np.ndarray
    types: np.ndarray

    @classmethod
    def zeros(cls, contexts: int) -> _Sums:
        return cls(np.zeros(contexts, np.int64), np.zeros(contexts, np.int64))

    def add(self, context: np.ndarray, counts: np.ndarray) -> None:
        size = len(self.count)
        self.count += np.bincount(context, counts, size).astype(np.int64)  # float64 sums are exact below 2^53
        self.types += np.bincount(context, minlength=size)


class _Counts:
    """What the bigram and trigram laws need to know of the training split to score the held-out tokens."""

    def __init__(self, val_NT: np.ndarray, vocab_size: int) -> None:
        self.vocab_size = V = vocab_size
        self.vw_Q = (val_NT[:, :-1] * V + val_NT[:, 1:]).ravel()
        u_NQ = np.concatenate([np.zeros_like(val_NT[:, :1]), val_NT[:, :-2]], axis=1)
        self.has_u_Q = np.broadcast_to(np.arange(u_NQ.shape[1]) > 0, u_NQ.shape).ravel()
        self.vwu_Q = self.vw_Q * V + u_NQ.ravel()
        self.context_C, self.context_Q = np.unique(
            u_NQ.ravel() * V + val_NT[:, :-1].ravel(), return_inverse=True
        )  # pairs u, v
        # Of each scored token: occurrences of uvw, of vw, and how many u come before vw.
        self.uvw_Q, self.pair_Q, self.before_Q = (np.zeros(len(self.vw_Q), np.int64) for _ in range(3))
        self.after_uv = _Sums.zeros(len(self.context_C))
        self.after_v = _Sums.zeros(V)  # occurrences of vw
        self.before_v = _Sums.zeros(V)  # how many u come before vw
        self.kinds_V = np.zeros(V, np.int64)  # how many v come before w
        self.discounts = {name: Discount() for name in ("uvw", "pair", "before")}

    def count(self, train_NT: np.ndarray, part: int, parts: int) -> None:
        """Take in the n-grams of one part; all parts together are the whole training split."""
        V = self.vocab_size
        vwu_keys, uvw = _counted([_chosen(vwu, vwu // V, part, parts) for _, vwu in _ngrams(train_NT, V)])
        vw_keys, pair = _counted([_chosen(vw, vw, part, parts) for vw, _ in _ngrams(train_NT, V)])
        vw_of_u, before = _runs(vwu_keys // V)

        self.uvw_Q += np.where(self.has_u_Q, _looked_up(vwu_keys, uvw, self.vwu_Q), 0)
        self.pair_Q += _looked_up(vw_keys, pair, self.vw_Q)
        self.before_Q += _looked_up(vw_of_u, before, self.vw_Q)

        context = vwu_keys % V * V + vwu_keys // V // V
        place = np.minimum(np.searchsorted(self.context_C, context), len(self.context_C) - 1)
        asked = self.context_C[place] == context
        self.after_uv.add(place[asked], uvw[asked])
        self.after_v.add(vw_keys // V, pair)
        self.before_v.add(vw_of_u // V, before)
        self.kinds_V += np.bincount(vw_keys % V, minlength=V)
        for name, counts in (("uvw", uvw), ("pair", pair), ("before", before)):
            self.discounts[name].add(counts)

    def laws(self) -> tuple[np.ndarray, np.ndarray]:
        """p of every scored token [Q] under the bigram and the trigram law."""
        v_Q, w_Q = np.divmod(self.vw_Q, self.vocab_size)
        kinds = self.kinds_V
        lowest_V = _discounted(
            kinds, Discount.of(kinds), kinds.sum(), int(np.count_nonzero(kinds)), 1 / self.vocab_size
        )
        bigram_Q = _discounted(
            self.pair_Q, self.discounts["pair"], self.after_v.count[v_Q], self.after_v.types[v_Q], lowest_V[w_Q]
        )
        middle_Q = _discounted(
            self.before_Q, self.discounts["before"], self.before_v.count[v_Q], self.before_v.types[v_Q], lowest_V[w_Q]
        )
        count_Q, types_Q = self.after_uv.count[self.context_Q], self.after_uv.types[self.context_Q]
        trigram_Q = _discounted(self.uvw_Q, self.discounts["uvw"], count_Q, types_Q, middle_Q)
        return bigram_Q, np.where(self.has_u_Q, trigram_Q, bigram_Q)


def _chunks(train_NT: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, _COUNT_SEQUENCES_TOKENS // train_NT.shape[1])
    for first in range(0, len(train_NT), step):
        yield np.asarray(train_NT[first : first + step], np.int64)


def _ngrams(train_NT: np.ndarray, V: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Keys vw of all bigrams and vwu of all trigrams inside sequences, chunk by chunk (below 2^48)."""
    for part_NT in _chunks(train_NT):
        vw_NT = part_NT[:, :-1] * V + part_NT[:, 1:]
        yield vw_NT.ravel(), (vw_NT[:, 1:] * V + part_NT[:, :-2]).ravel()


def _chosen(keys: np.ndarray, vw: np.ndarray, part: int, parts: int) -> np.ndarray:
    """The keys whose last two tokens fall into the part, by a multiplicative hash."""
    if parts == 1:
        return keys
    return keys[(vw.astype(np.uint64) * np.uint64(_SPREAD) >> np.uint64(32)) % np.uint64(parts) == part]


def _counted(keys: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys, ascending, and how often each occurs."""
    together = np.concatenate(keys)
    keys.clear()
    together.sort()
    return _runs(together)


def _runs(ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    begins = np.flatnonzero(np.diff(ascending, prepend=-1))
    return ascending[begins], np.diff(begins, append=len(ascending))


def _looked_up(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """`values` of the keys asked for, 0 for absent ones."""
    if not len(keys):
        return np.zeros(len(asked), np.int64)
    place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[place] == asked, values[place], 0)
