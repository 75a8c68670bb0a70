"""Repeated blocks: what the sequences are, and exact inference against the sum over all blocks."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headdyn.core.settings import ConfigError, build
from headdyn.studies.landmarks.repeated_blocks import RepeatedBlocks

SMALL: dict[str, Any] = {"train_sequences": 16, "val_sequences": 300, "seed": 1}


def probability(tokens: tuple[int, ...], symbols: int, lengths: range) -> float:
    """p of a run of tokens by adding up all blocks of all lengths."""
    total = 0.0
    for length in lengths:
        blocks = itertools.product(range(symbols), repeat=length)
        fits = sum(all(token == block[t % length] for t, token in enumerate(tokens)) for block in blocks)
        total += fits / symbols**length / len(lengths)
    return total


def test_the_floor_is_the_sum_over_all_blocks_and_lengths() -> None:
    source = RepeatedBlocks(num_symbols=2, min_block=2, max_block=4, sequence_length=8, **SMALL)
    every_NT = np.array([np.resize(block, 8) for n in (2, 3, 4) for block in itertools.product((0, 1), repeat=n)])
    loss_NT, _ = source.filter(every_NT)
    for tokens, losses in zip(every_NT.tolist(), loss_NT, strict=True):
        for t in range(7):
            ratio = probability(tuple(tokens[: t + 2]), 2, range(2, 5)) / probability(
                tuple(tokens[: t + 1]), 2, range(2, 5)
            )
            assert losses[t] == pytest.approx(-math.log(ratio), abs=1e-12)


def test_a_sequence_repeats_its_block_and_blocks_differ_in_length(tmp_path: Path) -> None:
    source = RepeatedBlocks(**SMALL)
    source.build(tmp_path)
    tokens_NT = np.asarray(source.open(tmp_path).val.tokens_NT).astype(int)
    periods = [next(p for p in range(1, 64) if (row[p:] == row[:-p]).all()) for row in tokens_NT]
    assert min(periods) >= 8 and max(periods) <= 24 and len(set(periods)) == 17
    assert len(np.unique(tokens_NT)) == 32


def test_the_lines_are_guessing_and_the_floor_below_it(tmp_path: Path) -> None:
    source = RepeatedBlocks(**SMALL)
    source.build(tmp_path)
    corpus = source.open(tmp_path)
    # Symbols of the first block are guessed, 16 of 64 on average; then a token or two until the length is known.
    assert corpus.reference_nats["random"] == math.log(32)
    first_block = 15 / 63 * math.log(32)
    assert first_block < corpus.reference_nats["floor"] < first_block + 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_block": 40}, "data.max_block=40 must be at least data.min_block=8 and at most half of data.sequence_length=64"),
        ({"min_block": 25}, "data.max_block=24 must be at least data.min_block=25"),
        ({"num_symbols": 1}, "data.num_symbols=1 must be at least 2"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(RepeatedBlocks, {**SMALL, **change}, "data")
    assert str(error.value).startswith(message)
