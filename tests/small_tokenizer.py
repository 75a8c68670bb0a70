"""A byte-level BPE tokenizer made here, which splits numbers as Pythia's does (` 9.11` is `Ġ9 . 11`), and prompts."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from headdyn.data.comparisons import Comparisons, Format
from headdyn.data.prompts import Prompts

WORDS = "Which is bigger larger greater number or Q A : ? The answer think I would say"


@functools.cache
def byte_level() -> PreTrainedTokenizerFast:
    """All bytes, the two-digit numbers and the words of the comparison prompts; no special tokens, so no padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    numbers = [f"{number}" for number in range(10, 100)] + [f" {digit}" for digit in range(1, 10)]
    words = [form for word in WORDS.split() for form in (word, f" {word}")]
    tokenizer.train_from_iterator([*numbers, *words] * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


BIGGER = Format(
    name="bigger",
    clean="Which is bigger: {first} or {second}?",
    corrupted="Q: Which is bigger: {first} or {second}?\nA:",
)
LARGER = Format(
    name="larger",
    clean="Which number is larger: {first} or {second}?",
    corrupted="Q: Which number is larger: {first} or {second}?\nA:",
)


def prompts(bug_pairs: int = 5, control_pairs: int = 3, **settings: Any) -> Prompts:
    """A family in two formats of different length, so in several groups."""
    settings = {"formats": (BIGGER, LARGER), "bug_pairs": bug_pairs, "control_pairs": control_pairs, **settings}
    return Comparisons(**settings).prompts(byte_level())


class Pieces:
    """A tokenizer of whole pieces, for ways to split that no trained one shows: one id per piece in order of arrival."""

    def __init__(self, *pieces: str) -> None:
        self.pattern = re.compile("|".join([*pieces, "."]), re.DOTALL)
        self.ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        return [self.ids.setdefault(piece, len(self.ids)) for piece in self.pattern.findall(text)]

    def decode(self, token_ids: Sequence[int]) -> str:
        pieces = list(self.ids)
        return "".join(pieces[i] for i in token_ids)
