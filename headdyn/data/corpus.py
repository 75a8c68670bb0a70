"""What training and analyses see of a data set: token sequences with topic labels, and the lines to judge a loss by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Split:
    """Sequences of equal length, memory-mapped. `documents_NT` numbers the documents packed into a sequence."""

    tokens_NT: np.ndarray  # uint16
    topics_NT: np.ndarray  # uint8, the topic of every token
    documents_NT: np.ndarray | None = None  # uint16

    def __len__(self) -> int:
        return len(self.tokens_NT)


class Oracle(Protocol):
    """Exact inference under the law that generated a corpus."""

    def filter(self, tokens_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Next-token loss of the Bayes filter [N, T-1] in nats, and its topic posterior [N, T, S] given x_0..x_t."""
        ...


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """`reference_nats` are horizontal lines for a loss plot, e.g. random, mixture and floor; `facts` go on record."""

    name: str
    train: Split
    val: Split
    vocab_size: int
    topic_names: tuple[str, ...]
    reference_nats: Mapping[str, float]
    facts: Mapping[str, Any]
    oracle: Oracle | None = None
    tokenizer: Path | None = None

    @property
    def num_topics(self) -> int:
        return len(self.topic_names)


class Source(Protocol):
    """A conf/data option: a frozen dataclass of settings that builds its corpus into a folder once and opens it.

    `build` draws every random number from the seed in its settings; the store keys the folder by those settings.
    """

    def build(self, folder: Path) -> None: ...

    def open(self, folder: Path) -> Corpus: ...
