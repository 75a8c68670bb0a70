"""Corpus generation against a Python loop over tokens, at V 4096, 5 topics, T 512; run as

    python -m tests.benchmarks.corpus_generation

The loop is what a plain reading of the original study's description gives (one token at a time, each from its topic's row
of the last). Two honest ways to draw a token are timed and the faster one is the baseline: numpy's `choice` with the
row's probabilities, and a search in the row's cumulative probabilities with uniforms drawn beforehand. The chains are
the same for both sides and left out; each side's own tables (cumulative sums; alias tables) are timed and given with
and without. Ratios come from one process, repetitions in turn; absolute figures belong to the machine.
The budget is 30 times the faster loop; the aim beside it 10 M tokens/s.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from headdyn.core.randomness import generator
from headdyn.data.bayes import SegmentLaw
from headdyn.data.markov import AliasSampler, original_chains, sample_tokens

VOCAB_SIZE, NUM_TOPICS, CONCENTRATION = 4096, 5, 5.0
LAW = SegmentLaw(sequence_length=512, min_segments=2, max_segments=5, min_segment=32)
OUR_SEQUENCES = 100_000  # the study's Run 1
LOOP_SEQUENCES = {"choice": 10, "search": 400}
REPETITIONS = 5


def draw_topics(count: int) -> np.ndarray:
    rng = generator(0, "benchmark segments")
    lengths_NK = LAW.draw(count, rng)
    topics_NK = rng.integers(NUM_TOPICS, size=lengths_NK.shape, dtype=np.uint8)
    return np.repeat(topics_NK.ravel(), lengths_NK.ravel()).reshape(count, LAW.sequence_length)


def loop_with_choice(transitions_SVV: np.ndarray, topics_NT: np.ndarray) -> np.ndarray:
    """`transitions_SVV` in float64, as `choice` checks the sum."""
    rng = generator(0, "benchmark loop")
    tokens_NT = np.empty(topics_NT.shape, np.uint16)
    for n, topics_T in enumerate(topics_NT.tolist()):
        token = int(rng.integers(VOCAB_SIZE))
        for t, topic in enumerate(topics_T):
            if t:
                token = rng.choice(VOCAB_SIZE, p=transitions_SVV[topic, token])
            tokens_NT[n, t] = token
    return tokens_NT


def loop_with_search(cumulative: Sequence[Sequence[np.ndarray]], topics_NT: np.ndarray) -> np.ndarray:
    """`cumulative[s][v]` is the cumulative row, kept as lists of arrays since indexing a list is quicker."""
    rng = generator(0, "benchmark loop")
    tokens_NT = np.empty(topics_NT.shape, np.uint16)
    for n, topics_T in enumerate(topics_NT.tolist()):
        uniforms_T = rng.random(len(topics_T)).tolist()
        token = int(uniforms_T[0] * VOCAB_SIZE)
        row = [token]
        for topic, uniform in zip(topics_T[1:], uniforms_T[1:], strict=True):
            token = int(cumulative[topic][token].searchsorted(uniform, "right"))
            row.append(token)
        tokens_NT[n] = row
    return tokens_NT


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def spread(values: Sequence[float], unit: float = 1.0) -> str:
    low, middle, high = min(values) / unit, statistics.median(values) / unit, max(values) / unit
    return f"{low:.2f} / {middle:.2f} / {high:.2f}"


def main() -> None:
    start = time.perf_counter()
    transitions_SVV = original_chains(VOCAB_SIZE, NUM_TOPICS, CONCENTRATION, generator(0, "benchmark chains"))
    chains_seconds = time.perf_counter() - start
    topics_NT = draw_topics(OUR_SEQUENCES)
    tokens_NT = np.zeros(topics_NT.shape, np.uint16)
    key = np.array([1, 2], np.uint64)

    rates: dict[str, list[float]] = {"choice": [], "search": [], "ours": []}
    with_tables: dict[str, list[float]] = {"search": [], "ours": []}
    tables: dict[str, list[float]] = {"search": [], "ours": []}
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        sampler = AliasSampler(transitions_SVV)
        tables["ours"].append(time.perf_counter() - start)
        took = seconds(partial(sample_tokens, sampler, topics_NT, key, tokens_NT))
        rates["ours"].append(tokens_NT.size / took)
        with_tables["ours"].append(tokens_NT.size / (took + tables["ours"][-1]))
        del sampler

        start = time.perf_counter()
        sums_SVV = np.cumsum(transitions_SVV, axis=2, dtype=np.float64)
        sums_SVV /= sums_SVV[..., -1:]
        cumulative = [list(chain_VV) for chain_VV in sums_SVV]
        tables["search"].append(time.perf_counter() - start)
        part_NT = topics_NT[: LOOP_SEQUENCES["search"]]
        rates["search"].append(part_NT.size / seconds(partial(loop_with_search, cumulative, part_NT)))
        with_tables["search"].append(tokens_NT.size / (tokens_NT.size / rates["search"][-1] + tables["search"][-1]))
        del sums_SVV, cumulative

        part_NT = topics_NT[: LOOP_SEQUENCES["choice"]]
        as_double_SVV = transitions_SVV.astype(np.float64)
        as_double_SVV /= as_double_SVV.sum(2, keepdims=True)
        rates["choice"].append(part_NT.size / seconds(partial(loop_with_choice, as_double_SVV, part_NT)))
        del as_double_SVV

    million = 1e6
    faster = max(("choice", "search"), key=lambda name: statistics.median(rates[name]))
    print(f"V {VOCAB_SIZE}, {NUM_TOPICS} topics, T {LAW.sequence_length}, {tokens_NT.size / million:.1f} M tokens,")
    print(f"at most 2 threads of {os.cpu_count()} cores; min / median / max of {REPETITIONS}, in M tokens/s")
    for name, label in (("choice", "loop, choice"), ("search", "loop, search"), ("ours", "headdyn")):
        print(f"  {label:28}{spread(rates[name], million)}{'   (aim: 10)' if name == 'ours' else ''}")
    print(f"  {'headdyn, with alias tables':28}{spread(with_tables['ours'], million)}")
    print(f"tables, s: alias {spread(tables['ours'])}, cumulative sums {spread(tables['search'])}")
    print(f"chains, s (common to both, once): {chains_seconds:.2f}")
    pairs = list(zip(rates["ours"], rates[faster], strict=True))
    whole = list(zip(with_tables["ours"], with_tables[faster] if faster in with_tables else rates[faster], strict=True))
    print(f"ratio to the faster loop ({faster}): {spread([ours / loop for ours, loop in pairs])}   (at least 30)")
    print(f"ratio with each side's tables:      {spread([ours / loop for ours, loop in whole])}   (at least 30)")


if __name__ == "__main__":
    main()
