"""First-order Markov chains, the topics of micro-languages: drawing transitions, their entropy, fast sampling.

Transition tables are float32 [S, V, V] with rows summing to 1 (science.md §1). Letters: S topics, V vocabulary,
N sequences, T tokens, R rows of a table.
"""

import math
from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np
import scipy  # imports its parts only when they are used, which keeps planning fast

from headdyn.core.randomness import stream_key
from headdyn.core.threads import in_threads

_MOST_SIGNATURES = 50  # signature bigrams of a topic in the original study, at most
_BALANCE_TOLERANCE = 1e-5  # worst column sum's distance from 1; float32 sums of 4096 terms are exact to 4e-6
_MOST_BALANCINGS = 10_000
_ALIAS_CELLS = 2**17  # cells of the alias table built at a time: each of the dozen arrays is 1 MB at most
_WALK_SEQUENCES = 8192  # sequences that step together: each array of one step is 64 KB
_WALK_STEPS = 32  # steps buffered before they are written by sequence: for each, a full cache line of uint16


def original_chains(
    vocab_size: int, num_topics: int, concentration: float, generator: np.random.Generator
) -> np.ndarray:
    """Chains [S, V, V] as the original study drew them: Dirichlet(0.5) rows, boosted own tokens, signature bigrams.

    Topic s owns the V // S tokens that begin at s·(V // S). Their columns are multiplied by `concentration`, so that a
    single token reveals the topic; `matched_chains` removes this defect. Up to 50 owned tokens a get a signature
    bigram a→b, with b another owned token: its entry is multiplied by 10, the other entries of row a by 0.3. Then rows
    are normalised.
    """
    own = vocab_size // num_topics
    transitions_SVV = np.empty((num_topics, vocab_size, vocab_size), np.float32)
    for topic, chain_VV in enumerate(transitions_SVV):
        owned = slice(topic * own, (topic + 1) * own)
        # A squared standard normal is a Gamma(1/2) variate (up to scale), and 4 times cheaper to draw.
        weights_VV = generator.standard_normal((vocab_size, vocab_size)) ** 2
        weights_VV[:, owned] *= concentration
        first = topic * own + generator.choice(own, size=min(_MOST_SIGNATURES, own), replace=False)
        second = topic * own + generator.integers(own, size=len(first))
        weights_VV[first] *= 0.3
        weights_VV[first, second] *= 10 / 0.3
        chain_VV[:] = weights_VV / weights_VV.sum(1, keepdims=True)
    return transitions_SVV


def matched_chains(
    vocab_size: int, num_topics: int, target_gap_nats: float, generator: np.random.Generator
) -> np.ndarray:
    """Doubly stochastic chains [S, V, V], each of mean row entropy ln V − `target_gap_nats`.

    The stationary distribution of every chain is uniform, so a single token does not reveal its topic. Entries are
    exp(β z) with z standard normal, made doubly stochastic by Sinkhorn's iteration. β is solved for each topic, with z
    fixed. Raises ValueError if the gap is so close to ln V that the iteration does not converge.
    """
    transitions_SVV = np.empty((num_topics, vocab_size, vocab_size), np.float32)
    generators = generator.spawn(num_topics)

    def fill(topic: int) -> None:
        normals_VV = generators[topic].standard_normal((vocab_size, vocab_size), dtype=np.float32)
        transitions_SVV[topic] = _with_gap(target_gap_nats, normals_VV)

    _in_two_threads(fill, range(num_topics))
    return transitions_SVV


def unmatched_chains(
    vocab_size: int, num_topics: int, target_gap_nats: float, generator: np.random.Generator, row_spread: float = 1.0
) -> np.ndarray:
    """Chains [S, V, V] with entropy rate ln V − `target_gap_nats`, each with its own distribution of single tokens.

    Rows are proportional to exp(β (r z + w)) with r the `row_spread`, z standard normal, and w a standard normal row
    that all rows of a chain share. So single tokens tell much about their chain; with r = 0 their counts tell all. β is
    solved for each chain.
    """
    transitions_SVV = np.empty((num_topics, vocab_size, vocab_size), np.float32)
    for topic in range(num_topics):
        exponent_VV = row_spread * generator.standard_normal((vocab_size, vocab_size))
        exponent_VV += generator.standard_normal(vocab_size)

        def chain(beta: float, exponent_VV: np.ndarray = exponent_VV) -> np.ndarray:
            return scipy.special.softmax(beta * exponent_VV, axis=1).astype(np.float32)

        def excess(beta: float, chain: Callable[[float], np.ndarray] = chain) -> float:
            rate = stationary_law(chain(beta)) @ row_entropy_nats(chain(beta))
            return math.log(vocab_size) - float(rate) - target_gap_nats

        high = 1.0
        while excess(high) < 0:
            high *= 1.5
        transitions_SVV[topic] = chain(scipy.optimize.brentq(excess, 0.0, high, rtol=1e-4))
    return transitions_SVV


def _with_gap(target_gap_nats: float, normals_VV: np.ndarray) -> np.ndarray:
    """The balanced chain made of these normals with entropy ln V − `target_gap_nats`, to about 0.2 %."""
    vocab_size = len(normals_VV)

    @lru_cache
    def excess(beta: float) -> float:
        return math.log(vocab_size) - row_entropy_nats(_balanced(beta, normals_VV)).mean() - target_gap_nats

    low, high = 0.0, math.sqrt(2 * target_gap_nats)  # a log-normal row of infinite length has a gap of β²/2
    try:
        while excess(high) < 0:
            low, high = high, 1.1 * high
        return _balanced(scipy.optimize.brentq(excess, low, high, rtol=2e-3), normals_VV)
    except _UnbalancedError as error:
        raise ValueError(
            f"data.target_gap_nats={target_gap_nats} is too near ln V = {math.log(vocab_size):.3f}: chains so sparse "
            f"are not doubly stochastic after {_MOST_BALANCINGS} rounds; lower the gap"
        ) from error


class _UnbalancedError(Exception):
    """Sinkhorn's iteration did not reach its tolerance."""


def _balanced(beta: float, normals_VV: np.ndarray) -> np.ndarray:
    """The doubly stochastic matrix of the form diag(u) exp(β z) diag(v) (Sinkhorn 1964); its rows sum to 1."""
    kernel_VV = normals_VV - normals_VV.max(1, keepdims=True)
    kernel_VV *= np.float32(beta)
    np.exp(kernel_VV, out=kernel_VV)
    columns_V = np.ones(len(kernel_VV), np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for _ in range(_MOST_BALANCINGS):
            # einsum, since a BLAS product's rounding, and with it the corpus, would depend on the number of threads.
            rows_V = 1 / np.einsum("ij,j->i", kernel_VV, columns_V)
            sums_V = np.einsum("ij,i->j", kernel_VV, rows_V)
            if np.abs(sums_V * columns_V - 1).max() <= _BALANCE_TOLERANCE:
                kernel_VV *= rows_V[:, None]
                kernel_VV *= columns_V
                return kernel_VV
            columns_V = 1 / sums_V
    raise _UnbalancedError


def row_entropy_nats(transitions_VV: np.ndarray) -> np.ndarray:
    """The entropy [V] of every row of one chain, in nats."""
    logs_VV = np.log(np.maximum(transitions_VV, np.finfo(np.float32).tiny))
    logs_VV *= transitions_VV
    return -logs_VV.sum(1, dtype=np.float64)


def stationary_law(transitions_VV: np.ndarray) -> np.ndarray:
    """The stationary distribution [V] of one positive chain, by power iteration to 1e-6 in total variation."""
    law_V = np.full(len(transitions_VV), 1 / len(transitions_VV))
    while True:
        next_V = np.einsum("i,ij->j", law_V, transitions_VV)
        next_V /= next_V.sum()
        if np.abs(next_V - law_V).sum() <= 2e-6:
            return next_V
        law_V = next_V


class AliasSampler:
    """Draws from every row of a stack of chains by Walker's alias method, one memory access a token.

    A cell packs a threshold (high bits) and an alias (low ⌈log₂ V⌉ bits) into a uint32. Row probabilities are first
    rounded to whole numbers of units, V cells of 2^(32 − ⌈log₂ V⌉) units in all, and the table holds these integers
    exactly. With V a power of two the tokens follow the rounded row: each probability to 2^-33, the largest to
    V × 2^-33.
    """

    def __init__(self, transitions_SVV: np.ndarray) -> None:
        self.num_topics, self.vocab_size, _ = transitions_SVV.shape
        self.alias_bits = max(1, (self.vocab_size - 1).bit_length())
        rows_RV = transitions_SVV.reshape(-1, self.vocab_size)
        self.table_RV = np.empty(rows_RV.shape, np.uint32)
        step = max(1, _ALIAS_CELLS // self.vocab_size)
        # glibc returns freed memory to the system piece by piece, and getting it back took more than half of this
        # build (35 against 15 ns a cell at V 4096). Freeing one large block raises glibc's threshold (mallopt(3)).
        np.empty(2**24, np.uint8)

        def fill(start: int) -> None:
            piece = slice(start, start + step)
            self.table_RV[piece] = _alias_rows(rows_RV[piece], self.alias_bits)

        _in_two_threads(fill, range(0, len(rows_RV), step))

    def walk(self, topics_NT: np.ndarray, key: np.ndarray, first: int, out_NT: np.ndarray) -> None:
        """Fill `out_NT` (uint16): a uniform token at t = 0; each later one from its topic's row of the token before.

        Sequence n of the call is number `first` + n of the corpus, and its random number at t depends only on `key`
        (Philox, two words), that number and t: how a corpus is cut into calls changes nothing. `first` must be a
        multiple of 8, the number of 32-bit words in a Philox block.
        """
        assert first % 8 == 0
        count, length = topics_NT.shape
        topics_TN = np.ascontiguousarray(topics_NT.T)
        table, bits, vocab = self.table_RV.ravel(), np.uint32(self.alias_bits), self.vocab_size
        low_bits = np.uint32((1 << self.alias_bits) - 1)
        buffer_tN = np.empty((_WALK_STEPS, count), np.uint16)
        cells_N = np.empty(count, np.uint32)
        index_N, tokens_N = np.empty(count, np.int64), np.empty(count, np.int64)
        for t in range(length):
            philox = np.random.Philox(key=key, counter=[first // 8, t, 0, 0])
            words_N = philox.random_raw(-(-count // 2)).view(np.uint32)[:count]
            # The high half of word × V is a uniform cell, the low half a uniform place within it (Lemire 2019).
            scaled_N = np.multiply(words_N, np.uint64(vocab), dtype=np.uint64)
            column_N = (scaled_N >> np.uint64(32)).view(np.int64)
            if t == 0:
                tokens_N = column_N
            else:
                np.multiply(topics_TN[t], vocab, out=index_N, dtype=np.int64)
                index_N += tokens_N
                index_N *= vocab
                index_N += column_N
                table.take(index_N, out=cells_N, mode="clip")  # "raise" would copy through a buffer
                within_N = scaled_N.astype(np.uint32) >> bits
                tokens_N = np.where(within_N < cells_N >> bits, column_N, cells_N & low_bits)
            row = t % _WALK_STEPS
            buffer_tN[row] = tokens_N
            if row == _WALK_STEPS - 1 or t == length - 1:
                out_NT[:, t - row : t + 1] = buffer_tN[: row + 1].T


def _alias_rows(rows_RV: np.ndarray, alias_bits: int) -> np.ndarray:
    """The packed alias table of every row, all rows in one sweep.

    Cells below a full cell ("light") are filled, in order, from those above ("heavy"): the donor of a light cell is the
    first heavy cell whose cumulated surplus exceeds what the light cells before it want in all, and a heavy cell that
    gave away too much is filled from the next heavy one. In each row wants and surpluses are integers with equal sums,
    so one cumulative sum runs through all rows at once and no donor is in another row.
    """
    count, vocab = rows_RV.shape
    full = 1 << (32 - alias_bits)
    scaled_RV = rows_RV * (-vocab * full / rows_RV.sum(1, dtype=np.float64))[:, None]
    want_RV = (np.rint(scaled_RV, out=scaled_RV) + full).astype(np.int64)
    want_RV[np.arange(count), rows_RV.argmax(1)] -= want_RV.sum(1)  # the largest cell takes the rounding
    want = want_RV.ravel()

    is_light = want > 0
    light, heavy = np.flatnonzero(is_light), np.flatnonzero(~is_light)
    light_want, heavy_column = want[light], (heavy % vocab).astype(np.uint32)
    wanted = np.concatenate([[0], np.cumsum(light_want)])
    surplus = np.cumsum(-want[heavy])
    served = np.searchsorted(wanted, surplus)  # light cells whose filling has begun once a heavy cell is used up
    donor = np.repeat(heavy_column, np.diff(served, prepend=0))
    table = np.empty(count * vocab, np.uint32)
    table[light] = (full - light_want).astype(np.uint32) << np.uint32(alias_bits) | donor

    overdrawn = wanted[served] - surplus
    following = np.append(heavy_column[1:], heavy_column[:1])
    topped_up = (full - overdrawn).astype(np.uint32) << np.uint32(alias_bits) | following
    table[heavy] = np.where(overdrawn > 0, topped_up, heavy_column)  # a full cell has threshold 0, and is its own alias
    return table.reshape(count, vocab)


def sample_tokens(
    sampler: AliasSampler, topics_NT: np.ndarray, key: np.ndarray, out_NT: np.ndarray, *, chunk: int = _WALK_SEQUENCES
) -> None:
    """Fill `out_NT` with one sequence per row of `topics_NT`, `chunk` (a multiple of 8) sequences at a time."""

    def walk(first: int) -> None:
        sampler.walk(topics_NT[first : first + chunk], key, first, out_NT[first : first + chunk])

    _in_two_threads(walk, range(0, len(topics_NT), chunk))


def chain_tokens(chains_KVV: np.ndarray, chain_N: np.ndarray, length: int, seed: int, purpose: str) -> np.ndarray:
    """Sequences, uint16 [N, T]: number n from chain `chain_N[n]`, drawn from `seed`'s random stream for `purpose`."""
    tokens_NT = np.empty((len(chain_N), length), np.uint16)
    chain_NT = np.broadcast_to(chain_N[:, None], tokens_NT.shape)
    sample_tokens(AliasSampler(chains_KVV), chain_NT, stream_key(seed, purpose), tokens_NT)
    return tokens_NT


def _in_two_threads(work: Callable[[int], None], items: Iterable[int]) -> None:
    for _ in in_threads(work, items, at_most=2):
        pass
