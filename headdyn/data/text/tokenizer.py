"""A byte-level BPE tokenizer learnt from the training documents. Its tokens give back the exact bytes of any text.

Letters: V vocabulary, D documents.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from headdyn.core.progress import Progress
from headdyn.core.randomness import generator
from headdyn.data.text.documents import Documents

END_OF_TEXT = "<|endoftext|>"  # as in GPT-2; stands at the end of every document
END_ID = 0
TRAINING_BYTES = 64 << 20  # of randomly chosen documents; more text changes rare merges only


def train_tokenizer(documents: Documents, rows: np.ndarray, vocab_size: int, seed: int) -> tuple[Tokenizer, int]:
    """A tokenizer of exactly `vocab_size` tokens, and how many bytes of `rows` it was learnt from.

    A pair must occur twice to be merged. Raises ValueError if too few pairs do.
    """
    sample = generator(seed, "text/tokenizer sample").permutation(rows)
    sizes = documents.bytes_D[sample]
    sample = np.sort(sample[np.cumsum(sizes) <= max(TRAINING_BYTES, int(sizes[0]))])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    progress = Progress("learning a tokenizer", "documents", len(sample))

    def batches() -> Iterator[list[str]]:
        for chosen, texts in documents.chunks(sample):
            yield texts
            progress.add(len(chosen))

    tokenizer.train_from_iterator(batches(), trainer, length=len(sample))
    reached = tokenizer.get_vocab_size()
    if reached < vocab_size:
        raise ValueError(
            f"data.vocab_size={vocab_size} is more than {len(sample)} training documents support: after {reached} "
            f"tokens no pair inside a word occurs twice; set data.vocab_size to {reached} or less, or bring more text"
        )
    assert tokenizer.token_to_id(END_OF_TEXT) == END_ID
    tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a document's text is not the end of the document
    return tokenizer, int(documents.bytes_D[sample].sum())


def save_tokenizer(tokenizer: Tokenizer, folder: Path, sequence_length: int) -> None:
    """Write a folder that transformers' AutoTokenizer.from_pretrained opens.

    The class has the name that transformers 4 and 5 both know; version 5 would write one that 4 does not know.
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


def tokenize(
    tokenizer: Tokenizer,
    documents: Documents,
    rows: np.ndarray,
    tokens_file: Path,
    *,
    end: int | None = END_ID,
    dtype: type[np.unsignedinteger] = np.uint16,
) -> np.ndarray:
    """Write the tokens of documents `rows` end to end, each document followed by the token `end`, unless that is None.

    Returns the index after each document's last token [D]. The library encodes the documents of a chunk on all cores.
    """
    progress = Progress("tokenising", "documents", len(rows))
    lengths: list[np.ndarray] = []
    closing = [] if end is None else [end]
    with tokens_file.open("wb") as out:
        for chosen, texts in documents.chunks(rows):
            encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
            np.concatenate([np.array([*ids, *closing], dtype) for ids in encoded]).tofile(out)
            lengths.append(np.array([len(ids) + len(closing) for ids in encoded]))
            progress.add(len(chosen))
    return np.cumsum(np.concatenate(lengths))
