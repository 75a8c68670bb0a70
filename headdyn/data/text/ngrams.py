"""Reference lines for a loss on real text: unigram, bigram and trigram laws with interpolated Kneser–Ney smoothing.

Kneser & Ney 1995 in the interpolated form of Chen & Goodman 1999, with one discount an order (Ney's n1/(n1 + 2 n2)).
The laws see what a model sees: packed training sequences, and no context from before the sequence begins. The counts
are exact at any size of the training split: all n-grams with the same last two tokens are counted in one part, one part
after the other, and only the counts that the held-out tokens need are stored. The trigram and the bigram law fall back
to lower orders, which count how many distinct tokens come before an n-gram instead of how often it occurs.

Letters: N sequences, T tokens, V vocabulary, C contexts. An n-gram's tokens are u, v, w, and its key puts the last
two first: (v V + w) V + u.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from headdyn.core.progress import Progress

KEYS_AT_ONCE = 1 << 23  # about 400 MB while a part is counted
_CHUNK_TOKENS = 1 << 20
_SPREAD = 0x9E3779B97F4A7C15  # multiplicative hash
_ABSENT = -1  # in place of a key: no n-gram has it


def losses_nats(
    train_NT: np.ndarray, val_NT: np.ndarray, vocab_size: int, *, keys_at_once: int = KEYS_AT_ONCE
) -> Mapping[str, np.ndarray]:
    """−ln p [N, T−1] of every held-out token but the first of its sequence, under "unigram", "bigram" and "trigram".

    The second token of a sequence has one token of context, so there the trigram law is the bigram's. For a context
    that training never shows, the next lower order is used. `train_NT` may be memory-mapped.
    """
    assert train_NT.shape[1] >= 3 and val_NT.shape[1] >= 3
    V, val_NT = vocab_size, np.asarray(val_NT, np.int64)
    v_NT, w_NT = val_NT[:, :-1], val_NT[:, 1:]
    u_NT = np.pad(val_NT[:, :-2], ((0, 0), (1, 0)), constant_values=_ABSENT)
    vw_NT, has_u_NT = v_NT * V + w_NT, u_NT != _ABSENT
    trigrams = _Order(np.where(has_u_NT, vw_NT * V + u_NT, _ABSENT), np.where(has_u_NT, u_NT * V + v_NT, _ABSENT))
    bigrams, lower_bigrams = _Order(vw_NT, v_NT), _Order(vw_NT, v_NT)
    unigrams, lower_unigrams = (_Order(w_NT, np.zeros_like(w_NT)) for _ in range(2))

    counts_V, befores_V = np.zeros(V, np.int64), np.zeros(V, np.int64)
    for part_NT in _chunks(train_NT):
        counts_V += np.bincount(part_NT.ravel(), minlength=V)
    parts = math.ceil(train_NT.size / keys_at_once)
    progress = Progress("counting n-grams", "parts", parts)
    for part in range(parts):
        vwu, counts = _counted([_of_part(vwu, vwu // V, part, parts) for _, vwu in _ngrams(train_NT, V)])
        trigrams.add(vwu, counts, vwu % V * V + vwu // V // V)
        vw, befores = _runs(vwu // V)
        lower_bigrams.add(vw, befores, vw // V)
        vw, counts = _counted([_of_part(vw, vw, part, parts) for vw, _ in _ngrams(train_NT, V)])
        bigrams.add(vw, counts, vw // V)
        befores_V += np.bincount(vw % V, minlength=V)
        progress.add(1)
    for order, count_V in ((unigrams, counts_V), (lower_unigrams, befores_V)):
        w = np.flatnonzero(count_V)
        order.add(w, count_V[w], np.zeros_like(w))

    lowest_NT = lower_unigrams.law(1 / V)
    bigram_NT = bigrams.law(lowest_NT)
    trigram_NT = np.where(has_u_NT, trigrams.law(lower_bigrams.law(lowest_NT)), bigram_NT)
    laws = {"unigram": unigrams.law(1 / V), "bigram": bigram_NT, "trigram": trigram_NT}
    return {name: -np.log(law_NT) for name, law_NT in laws.items()}


class _Order:
    """The counts of one order of n-grams: how often each occurs, or how many distinct tokens come before it.

    `gram_NT` and `context_NT` are the keys of the scored tokens' n-grams and of their contexts. Stored are the counts
    of these n-grams, the sums over each context, and for Ney's discount how many of all n-grams have the count 1 and 2.
    """

    def __init__(self, gram_NT: np.ndarray, context_NT: np.ndarray) -> None:
        self.gram_NT = gram_NT
        self.context_C, self.place_NT = np.unique(context_NT, return_inverse=True)
        self.count_NT = np.zeros(gram_NT.shape, np.int64)
        self.total_C, self.types_C = (np.zeros(len(self.context_C), np.int64) for _ in range(2))
        self.once, self.twice = 0, 0

    def add(self, grams: np.ndarray, counts: np.ndarray, contexts: np.ndarray) -> None:
        """Add n-grams, ascending, with their counts and contexts; each n-gram is added only once over all calls."""
        if not len(grams):
            return
        place_NT = np.minimum(np.searchsorted(grams, self.gram_NT), len(grams) - 1)
        self.count_NT += np.where(grams[place_NT] == self.gram_NT, counts[place_NT], 0)
        place = np.minimum(np.searchsorted(self.context_C, contexts), len(self.context_C) - 1)
        scored = self.context_C[place] == contexts
        size = len(self.context_C)
        self.total_C += np.bincount(place[scored], counts[scored], size).astype(np.int64)  # sums exact below 2^53
        self.types_C += np.bincount(place[scored], minlength=size)
        self.once += int((counts == 1).sum())
        self.twice += int((counts == 2).sum())

    def law(self, lower: np.ndarray | float) -> np.ndarray:
        """p = (max(c − D, 0) + D · types · lower) / total; `lower` alone if the context never occurs."""
        # One half if no n-gram occurs once, because the estimate would then be 0 and leave nothing for unseen n-grams.
        discount = self.once / (self.once + 2 * self.twice) if self.once else 0.5
        total_NT, types_NT = self.total_C[self.place_NT], self.types_C[self.place_NT]
        law_NT = np.maximum(self.count_NT - discount, 0) + discount * types_NT * lower
        return np.where(total_NT > 0, law_NT / np.maximum(total_NT, 1), lower)


def _chunks(train_NT: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, _CHUNK_TOKENS // train_NT.shape[1])
    for first in range(0, len(train_NT), step):
        yield np.asarray(train_NT[first : first + step], np.int64)


def _ngrams(train_NT: np.ndarray, V: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Keys vw of all bigrams and vwu of all trigrams inside sequences, chunk by chunk; keys are below 2^48."""
    for part_NT in _chunks(train_NT):
        vw_NT = part_NT[:, :-1] * V + part_NT[:, 1:]
        yield vw_NT.ravel(), (vw_NT[:, 1:] * V + part_NT[:, :-2]).ravel()


def _of_part(keys: np.ndarray, vw: np.ndarray, part: int, parts: int) -> np.ndarray:
    """The keys whose last two tokens, `vw`, belong to a part."""
    return keys[(vw.astype(np.uint64) * np.uint64(_SPREAD) >> np.uint64(32)) % np.uint64(parts) == part]


def _counted(keys: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys, ascending, and how often each occurs."""
    together = np.concatenate(keys)
    keys.clear()
    together.sort()
    return _runs(together)


def _runs(ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values, and how often each occurs."""
    begins = np.flatnonzero(np.diff(ascending, prepend=-1))
    return ascending[begins], np.diff(begins, append=len(ascending))
