"""Repeated random tokens: sequences that repeat a random block, which only copying from the context can predict.

Letters: N sequences, T tokens, V symbols, B block lengths.
"""

import math
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from headdyn.core.json_files import read_json, write_json
from headdyn.core.randomness import generator
from headdyn.core.settings import Count, settings
from headdyn.data.corpus import Corpus, Seed, Split
from headdyn.data.lines import NOTHING_TO_SELECT, mean_and_error


@settings
class RepeatedBlocks:
    """Every sequence repeats a block of its own, of uniform symbols and of a length uniform in min_block..max_block.

    Lengths differ, so that the earlier occurrence of the next symbol stands at no fixed distance: a head must find it
    by the symbol before it.
    """

    num_symbols: Annotated[int, Field(ge=2, le=65536)] = 32
    min_block: Annotated[int, Field(ge=2)] = 8
    max_block: int = 24
    sequence_length: Annotated[int, Field(ge=8)] = 64
    train_sequences: Count
    val_sequences: Count
    seed: Seed

    has_topics: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.min_block <= self.max_block <= self.sequence_length // 2:
            raise ValueError(
                f"data.max_block={self.max_block} must be at least data.min_block={self.min_block} and at most half of "
                f"data.sequence_length={self.sequence_length}, so that every block is repeated"
            )

    def build(self, folder: Path) -> None:
        """Draw the sequences, and the exact loss on the validation split.

        Writes {train,val}_tokens.npy, {train,val}_topics.npy (all 0: there are no topics) and facts.json.
        """
        for split, count in (("train", self.train_sequences), ("val", self.val_sequences)):
            draws = generator(self.seed, f"repeated_blocks/{split}")
            length_N1 = draws.integers(self.min_block, self.max_block + 1, size=(count, 1))
            block_NB = draws.integers(self.num_symbols, size=(count, self.max_block))
            tokens_NT = np.take_along_axis(block_NB, np.arange(self.sequence_length) % length_N1, axis=1)
            Split.write(folder, split, tokens_NT.astype(np.uint16))
        facts = {"random_nats": math.log(self.num_symbols), **mean_and_error("floor_nats", self.filter(tokens_NT)[0])}
        write_json(folder / "facts.json", facts | NOTHING_TO_SELECT)

    def open(self, folder: Path) -> Corpus:
        """The corpus in `folder`, memory-mapped."""
        facts = read_json(folder / "facts.json")
        return Corpus(
            name="repeated_blocks",
            train=Split.open(folder, "train"),
            val=Split.open(folder, "val"),
            vocab_size=self.num_symbols,
            topic_names=("repeated block",),
            reference_nats={name: facts[f"{name}_nats"] for name in ("random", "floor")},
            facts=facts,
            oracle=self,
        )

    def filter(self, tokens_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Next-token loss [N, T-1] in nats of exact inference, and a posterior of 1 for the one topic, [N, T, 1].

        A block length is possible while every token equals the one a block before it; given the length, tokens 0..t
        have probability V^-min(t + 1, length).
        """
        tokens_NT = np.asarray(tokens_NT, dtype=np.int64)
        count, length = tokens_NT.shape
        blocks_B = np.arange(self.min_block, self.max_block + 1)
        possible_NB = np.ones((count, len(blocks_B)), bool)
        loss_NT = np.empty((count, length - 1))
        for t in range(length - 1):
            weight_NB = possible_NB * float(self.num_symbols) ** -np.minimum(t + 1, blocks_B)
            repeats_NB = tokens_NT[:, np.maximum(t + 1 - blocks_B, 0)] == tokens_NT[:, t + 1, None]
            law_NB = np.where(blocks_B > t + 1, 1 / self.num_symbols, repeats_NB)
            loss_NT[:, t] = -np.log((weight_NB * law_NB).sum(1) / weight_NB.sum(1))
            possible_NB &= (blocks_B > t + 1) | repeats_NB
        return np.maximum(loss_NT, 0), np.ones((count, length, 1))
