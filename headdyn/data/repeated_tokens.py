"""Random tokens, repeated once: what is read right the second time was copied, and the heads that copy are induction
heads (Olsson et al. 2022, arXiv 2209.11895; science.md §19).

Letters: N sequences, T tokens.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from headdyn.core.json_files import read_json, write_json
from headdyn.core.randomness import generator
from headdyn.core.settings import settings
from headdyn.data.corpus import Corpus, Seed, Split, token_dtype
from headdyn.data.model_tokens import ModelTokens


@settings
class RepeatedTokens:
    """Sequences of random tokens of the model's vocabulary whose end is a copy of what stands before it; a conf/data
    option for models that come trained.

    A sequence begins with the token that the model's tokenizer puts before every text, if any. The copied part has
    between a quarter and half of the sequence's tokens, evenly spread over the sequences, and what is left over stands
    before it. So a token's copy stands at another distance in every sequence, and attention that looks back by a fixed
    distance does not pass for induction: the null of `induction`, the same attention against other sequences' tokens,
    tells them apart.
    """

    sequences: Annotated[int, Field(ge=2)] = 64
    sequence_length: Annotated[int, Field(ge=16)] = 64
    seed: Seed = 0

    has_topics: ClassVar[bool] = False
    primary_outcome: ClassVar[str] = "induction_top"

    def in_tokens_of(self, tokens: ModelTokens) -> RepeatedTokensOfModel:
        """The sequences in these tokens."""
        tokens.require_length(self.sequence_length)
        return RepeatedTokensOfModel(self, tokens)

    def write(self, regular: np.ndarray, begin: int | None = None) -> np.ndarray:
        """The tokens [N, T], drawn from the ids `regular`."""
        rng = generator(self.seed, "repeated tokens")
        length = self.sequence_length - (begin is not None)
        tokens_NT = rng.choice(regular, (self.sequences, length))
        copied_N = np.linspace(length // 4, length // 2, self.sequences).round().astype(int)
        for tokens_T, copied in zip(tokens_NT, rng.permutation(copied_N), strict=True):
            tokens_T[length - copied :] = tokens_T[length - 2 * copied : length - copied]
        return tokens_NT if begin is None else np.insert(tokens_NT, 0, begin, axis=1)


@dataclass(frozen=True)
class RepeatedTokensOfModel:
    """Random tokens of one model, repeated: a corpus without topics and without a training split."""

    settings: RepeatedTokens
    tokens: ModelTokens

    def recipe(self) -> dict[str, Any]:
        """What the corpus depends on."""
        return {**dataclasses.asdict(self.settings), **self.tokens.recipe()}

    def build(self, folder: Path) -> None:
        """Write val_tokens.npy, val_topics.npy and facts.json."""
        tokens_NT = self.settings.write(self.tokens.regular, self.tokens.begin)
        Split.write(folder, "val", tokens_NT.astype(token_dtype(self.tokens.vocab_size)))
        write_json(folder / "facts.json", {"val_sequences": len(tokens_NT), "val_tokens": tokens_NT.size})

    def open(self, folder: Path) -> Corpus:
        """The corpus in `folder`."""
        val = Split.open(folder, "val")
        return Corpus(
            name="repeated tokens",
            train=Split(tokens_NT=val.tokens_NT[:0], topics_NT=val.topics_NT[:0]),
            val=val,
            vocab_size=self.tokens.vocab_size,
            topic_names=("random tokens",),
            reference_nats={"random": math.log(len(self.tokens.regular))},
            facts=read_json(folder / "facts.json"),
        )
