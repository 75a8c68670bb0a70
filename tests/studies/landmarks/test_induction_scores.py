"""Prefix matching of heads whose patterns are made by hand, and the scores of a whole model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from headdyn.core.randomness import generator
from headdyn.data.corpus import Corpus
from headdyn.models.decoder import Decoder, Edit
from headdyn.studies.landmarks.induction_scores import InductionScores
from headdyn.studies.landmarks.induction_scores_measure import head_scores
from headdyn.studies.landmarks.repeated_blocks import RepeatedBlocks
from tests.small_models import MHA, drawn

BLOCK, LENGTH = 4, 12
SCORES = InductionScores(sequences=4, block=BLOCK, repeats=3, bootstrap_draws=100)


def one_key(offset: int) -> torch.Tensor:
    """Every query attends to the key this far behind it, or to key 0 before there is one."""
    keys_Q = (torch.arange(LENGTH) - offset).clamp(min=0)
    return torch.nn.functional.one_hot(keys_Q, LENGTH).double()[None, None]


@pytest.mark.parametrize(
    ("offset", "prefix", "previous"),
    # Key q + 1 − 4 follows the same token, and so does q + 1 − 8 for the queries 8 to 11; key 0 follows none.
    [(BLOCK - 1, 1.0, 1 / 11), (2 * BLOCK - 1, 4 / 8, 1 / 11), (BLOCK, 0.0, 1 / 11), (1, 0.0, 1.0)],
)
def test_scores_of_heads_that_look_at_one_distance(offset: int, prefix: float, previous: float) -> None:
    prefix_BH, previous_BH = head_scores(one_key(offset), BLOCK)
    assert prefix_BH.item() == pytest.approx(prefix) and previous_BH.item() == pytest.approx(previous)


def test_uniform_attention_scores_what_the_null_says(tmp_path: Path) -> None:
    decoder = with_pattern(torch.tril(torch.ones(LENGTH, LENGTH)) / torch.arange(1, LENGTH + 1)[:, None])
    rows = SCORES(decoder, made(tmp_path), generator(0, "test")).table.rows()
    for name in ("prefix_matching", "previous_token"):
        values = {(round(row["value"], 6), round(row["null"], 6)) for row in rows if row["metric"] == name}
        assert len(values) == 1 and len(set(*values)) == 1


def test_the_best_head_is_that_of_the_model(tmp_path: Path) -> None:
    table = SCORES(drawn(dataclasses.replace(MHA, vocab_size=8)), made(tmp_path), generator(0, "test")).table
    assert table.summary()["best_prefix_matching"]["value"] == pytest.approx(table.matrix("prefix_matching").max())


def test_too_few_symbols_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"induction_scores.block=16 needs as many different tokens.* has 8"):
        InductionScores().check(made(tmp_path))


def made(folder: Path) -> Corpus:
    source = RepeatedBlocks(
        num_symbols=8, min_block=2, max_block=4, sequence_length=16, train_sequences=4, val_sequences=8, seed=0
    )
    source.build(folder)
    return source.open(folder)


def with_pattern(pattern_QK: torch.Tensor) -> Decoder:
    """A decoder all of whose heads attend by this pattern when they are traced on its length."""
    decoder = drawn(dataclasses.replace(MHA, vocab_size=8))
    trace = decoder.trace

    def traced(tokens_BT: torch.Tensor, **arguments: object) -> object:
        edits = [Edit(site="pattern", layer=layer, value=pattern_QK) for layer in range(decoder.config.num_layers)]
        return trace(tokens_BT, edits=edits, **arguments)  # type: ignore[arg-type]

    decoder.trace = traced  # type: ignore[method-assign,assignment]
    return decoder
