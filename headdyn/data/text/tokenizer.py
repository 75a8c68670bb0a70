"""A byte-level BPE tokenizer learnt from the training documents, and documents turned into tokens with it.

Any text can be written in its tokens and read back to the byte. Letters: V vocabulary, D documents.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from headdyn.core.randomness import generator
from headdyn.data.text.documents import Documents
from headdyn.data.text.stages import Progress

log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"  # GPT-2's; stands at the end of every document
END_ID = 0
TRAINING_BYTES = 64 << 20  # a random part of the documents; more changes rare merges only
_LEAST_PAIR_COUNT = 2


def train_tokenizer(documents: Documents, rows: np.ndarray, vocab_size: int, seed: int) -> tuple[Tokenizer, int]:
    """A tokenizer of exactly `vocab_size` tokens, and the bytes it was learnt from: `rows`, or a random part.

    A merge must occur twice. Raises ValueError where the text has too few that do.
    """
    drawn = generator(seed, "text/tokenizer sample").permutation(rows)
    sizes = documents.bytes_of(drawn)
    drawn = np.sort(drawn[np.cumsum(sizes) <= max(TRAINING_BYTES, int(sizes[0]))])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=_LEAST_PAIR_COUNT,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    progress = Progress("learning a tokenizer", "documents", len(drawn))

    def batches() -> Iterator[list[str]]:
        for chosen, texts in documents.chunks(drawn):
            yield texts
            progress.add(len(chosen))

    tokenizer.train_from_iterator(batches(), trainer, length=len(drawn))
    reached = tokenizer.get_vocab_size()
    if reached < vocab_size:
        raise ValueError(
            f"data.vocab_size={vocab_size} is more than {len(drawn)} training documents support: after {reached} "
            f"tokens no pair inside a word occurs twice; set data.vocab_size to {reached} or less, or bring more text"
        )
    assert tokenizer.token_to_id(END_OF_TEXT) == END_ID
    tokenizer.encode_special_tokens = True  # a document that spells the mark out holds no mark
    return tokenizer, int(documents.bytes_of(drawn).sum())


def save_tokenizer(tokenizer: Tokenizer, folder: Path, sequence_length: int) -> None:
    """Write a folder that transformers' AutoTokenizer.from_pretrained opens.

    The class is named as both transformers 4 and 5 know it; version 5 itself would write a name that 4 does not.
    """
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "model_max_length": sequence_length,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The saved tokenizer."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


def tokenize(tokenizer: Tokenizer, documents: Documents, rows: np.ndarray, tokens_file: Path) -> np.ndarray:
    """Write the tokens of documents `rows` end to end (uint16), each document closed by END_ID; where each ends [D].

    The library encodes a chunk's documents on all cores.
    """
    progress = Progress("tokenising", "documents", len(rows))
    lengths: list[np.ndarray] = []
    with tokens_file.open("wb") as out:
        for chosen, texts in documents.chunks(rows, chunk_bytes=1 << 20):
            encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
            np.concatenate([np.array([*ids, END_ID], np.uint16) for ids in encoded]).tofile(out)
            lengths.append(np.array([len(ids) + 1 for ids in encoded]))
            progress.add(len(chosen))
    return np.cumsum(np.concatenate(lengths))
