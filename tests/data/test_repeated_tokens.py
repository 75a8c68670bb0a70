"""Random tokens, repeated once, and the tokens of models that come trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from headdyn.analysis.attention import AttentionStatistics
from headdyn.data.corpus import Corpus
from headdyn.data.model_tokens import ModelTokens
from headdyn.data.repeated_tokens import RepeatedTokens
from headdyn.models.decoder import Decoder
from tests.analysis.tiny import PatternModel
from tests.small_tokenizer import byte_level

LENGTH = 40


def corpus(folder: Path, tokens: ModelTokens, sequences: int = 30, seed: int = 0) -> Corpus:
    source = RepeatedTokens(sequences=sequences, sequence_length=LENGTH, seed=seed).in_tokens_of(tokens)
    source.build(folder)
    return source.open(folder)


def copied(tokens_T: np.ndarray) -> int:
    """How many tokens at the end repeat those right before them."""
    return max(k for k in range(1, LENGTH // 2 + 1) if (tokens_T[-k:] == tokens_T[-2 * k : -k]).all())


def test_a_quarter_to_half_of_every_sequence_is_a_copy_at_another_distance_in_each(tmp_path: Path) -> None:
    tokens_NT = corpus(tmp_path, ModelTokens("m", 70_000)).val.tokens_NT
    assert tokens_NT.dtype == np.uint32 and tokens_NT.max() > 65_536
    lengths = np.array([copied(tokens_T) for tokens_T in tokens_NT])
    assert lengths.min() == LENGTH // 4 and lengths.max() == LENGTH // 2 and len(set(lengths)) == 11
    distinct = [len(set(tokens_T.tolist())) for tokens_T in tokens_NT]
    assert (LENGTH - lengths - np.array(distinct) <= 1).all()  # nothing else repeats, but for a chance of 1 %


def test_tokens_are_regular_ones_behind_the_token_that_begins_every_text(tmp_path: Path) -> None:
    tokenizer = byte_level().__class__(tokenizer_object=byte_level().backend_tokenizer, bos_token="<s>")
    size = len(tokenizer)
    plain = ModelTokens("m", size + 7, 0, tokenizer)
    assert plain.begin is None and plain.regular.tolist() == list(range(size - 1)) == sorted(
        byte_level().vocab.values()
    )

    class Beginning:
        """The same, with <s> before every text, as Llama's."""

        def __getattr__(self, name: str) -> object:
            return getattr(tokenizer, name)

        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [tokenizer.bos_token_id] * add_special_tokens + tokenizer.encode(text)

    tokens_NT = corpus(tmp_path, ModelTokens("m", size, 0, Beginning())).val.tokens_NT
    assert tokens_NT.shape == (30, LENGTH) and (tokens_NT[:, 0] == tokenizer.bos_token_id).all()
    assert tokens_NT[:, 1:].max() < size - 1


def test_what_the_tokens_refuse() -> None:
    with pytest.raises(ValueError, match=r"model.name=m: its tokenizer has token \d+, but its vocabulary ends at 28"):
        ModelTokens("m", 29, 0, byte_level())
    with pytest.raises(ValueError, match=r"data.sequence_length=40 is longer than the 24 positions"):
        RepeatedTokens(sequence_length=40).in_tokens_of(ModelTokens("m", 29, 24))
    with pytest.raises(ValueError, match="has no tokenizer, and text needs one"):
        _ = ModelTokens("m", 29).text_tokenizer


def induction(tokens_BT: torch.Tensor) -> torch.Tensor:
    """All attention on the key behind the last earlier occurrence of the query's token, else on position 0."""
    pattern_BQK = torch.zeros(*tokens_BT.shape, tokens_BT.shape[1])
    for b, tokens_T in enumerate(tokens_BT.tolist()):
        for t, token in enumerate(tokens_T):
            earlier = [j + 1 for j in range(t - 1) if tokens_T[j] == token]
            pattern_BQK[b, t, earlier[-1] if earlier else 0] = 1
    return pattern_BQK


def fixed_distance(tokens_BT: torch.Tensor, distance: int = 14) -> torch.Tensor:
    """All attention on the key at one distance, which is an induction key in the sequences whose copy is as far."""
    pattern_QK = torch.zeros(tokens_BT.shape[1], tokens_BT.shape[1])
    for t in range(tokens_BT.shape[1]):
        pattern_QK[t, max(0, t - distance)] = 1
    return pattern_QK.expand(len(tokens_BT), -1, -1)


def test_an_induction_head_is_beyond_its_null_and_one_that_looks_back_by_a_fixed_distance_is_not(
    tmp_path: Path,
) -> None:
    model = PatternModel(
        lambda tokens_BT, layer: torch.stack((induction(tokens_BT), fixed_distance(tokens_BT)), 1), 1, 2
    )
    settings = AttentionStatistics(sequences=30, bootstrap_draws=100)
    repeated = corpus(tmp_path, ModelTokens("m", 500))
    table = settings(cast(Decoder, model), repeated, np.random.default_rng(0)).table
    values, nulls, p = (table.matrix("induction", column)[0] for column in ("value", "null", "p"))
    assert values[0] > 0.99 and nulls[0] < 0.1 and p[0] < 0.001
    assert values[1] == pytest.approx(nulls[1], abs=0.03) and p[1] > 0.05
    top = table.summary()["induction_top"]
    assert top["value"] == values[0] and p[0] <= top["p"] < 0.001  # of the larger head in every flip
    mask = dataclasses.replace(repeated, mask_documents=True).without_topics
    assert mask is not None and "inside documents" in mask
