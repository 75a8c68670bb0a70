"""A byte-level BPE tokenizer made here, which splits numbers as Pythia's does: ` 9.11` is `Ġ9 . 11`."""

from __future__ import annotations

import functools

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

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
