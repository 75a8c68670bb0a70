"""Random tokens, repeated once, which only copying predicts; the heads that copy are induction heads.

Olsson et al. 2022, arXiv 2209.11895; science.md §19.

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
    """Sequences of random tokens of the model's vocabulary whose last K tokens repeat the K before them.

    A conf/data option for models that are already trained. A sequence begins with the token that the model's tokenizer
    puts before every text, if any. K differs between sequences, evenly from a quarter to half of their tokens. So
    copies are at different distances, and the null of `induction`, the same attention with other sequences' tokens, can
    tell induction from attention at a fixed distance.
    """

    sequences: Annotated[int, Field(ge=2)] = 64
    sequence_length: Annotated[int, Field(ge=16)] = 64
    seed: Seed = 0

    has_topics: ClassVar[bool] = False
    primary_outcome: ClassVar[str] = "induction_top"

    def in_tokens_of(self, tokens: ModelTokens) -> RepeatedTokensOfModel:
        """The sequences as a corpus in these tokens. Raises ValueError if they exceed the model's learned positions."""
        tokens.require_length(self.sequence_length)
        return RepeatedTokensOfModel(self, tokens)

    def write(self, regular: np.ndarray, begin: int | None = None) -> np.ndarray:
        """The sequences [N, T], drawn from the token ids `regular`, each behind the token `begin` if there is one."""
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
        return {**dataclasses.asdict(self.settings), **self.tokens.recipe()}

    def build(self, folder: Path) -> None:
        tokens_NT = self.settings.write(self.tokens.regular, self.tokens.begin)
        Split.write(folder, "val", tokens_NT.astype(token_dtype(self.tokens.vocab_size)))
        write_json(folder / "facts.json", {"val_sequences": len(tokens_NT), "val_tokens": tokens_NT.size})

    def open(self, folder: Path) -> Corpus:
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
