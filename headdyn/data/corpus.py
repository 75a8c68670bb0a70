"""A corpus as training and analyses see it: token sequences with topic labels, and reference losses."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, Self

import numpy as np
from pydantic import Field

from headdyn.core.settings import Natural

Seed = Natural
NumTopics = Annotated[int, Field(ge=2, le=256)]  # topics are stored as uint8


@dataclass(frozen=True, kw_only=True)
class Split:
    """Sequences of equal length, memory-mapped. `documents_NT` numbers the documents within each sequence."""

    tokens_NT: np.ndarray  # uint16, or uint32 if the vocabulary is larger
    topics_NT: np.ndarray  # uint8, the topic of every token
    documents_NT: np.ndarray | None = None  # uint16

    def __len__(self) -> int:
        return len(self.tokens_NT)

    @classmethod
    def open(cls, folder: Path, split: str) -> Self:
        """The split in {split}_tokens.npy, {split}_topics.npy and, if there is one, {split}_documents.npy."""
        files = {name: folder / f"{split}_{name}.npy" for name in ("tokens", "topics", "documents")}
        return cls(**{f"{name}_NT": np.load(file, mmap_mode="r") for name, file in files.items() if file.exists()})

    @staticmethod
    def write(folder: Path, split: str, tokens_NT: np.ndarray, topics_NT: np.ndarray | None = None) -> None:
        """Write the files that `open` reads; without topics every token has topic 0."""
        topics_NT = np.zeros(tokens_NT.shape) if topics_NT is None else topics_NT
        np.save(folder / f"{split}_tokens.npy", tokens_NT)
        np.save(folder / f"{split}_topics.npy", topics_NT.astype(np.uint8))


def token_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """The narrowest type that holds every token's id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


class Oracle(Protocol):
    """Exact inference under the law that generated a corpus."""

    def filter(self, tokens_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Next-token loss of the Bayes filter [N, T-1] in nats, and its topic posterior [N, T, S] given x_0..x_t."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus. `reference_nats` are losses that charts draw as lines: random, floor …; `facts` go into the record.

    `tokenizer` is the folder of the tokenizer of a corpus of text. `domain_of_topic` [S] is the domain (set of topics)
    of each topic; if it is given, orderings sort by domain. With `mask_documents` every model that reads the corpus
    attends inside documents only.
    """

    name: str
    train: Split
    val: Split
    vocab_size: int
    topic_names: tuple[str, ...]
    reference_nats: Mapping[str, float]
    facts: Mapping[str, Any]
    oracle: Oracle | None = None
    tokenizer: Path | None = None
    mask_documents: bool = False
    domain_of_topic: np.ndarray | None = None

    @property
    def num_topics(self) -> int:
        return len(self.topic_names)

    @property
    def random_nats(self) -> float:
        """The loss of guessing uniformly among the possible next tokens: the corpus's line "random", else ln V."""
        return self.reference_nats.get("random", math.log(self.vocab_size))

    def order_labels(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """The labels by which orderings sort training sequences, one for every token [N, T], and the labels' names."""
        if self.domain_of_topic is None:
            return self.train.topics_NT, self.topic_names
        names = tuple(f"domain {domain}" for domain in range(int(self.domain_of_topic.max()) + 1))
        return self.domain_of_topic[self.train.topics_NT], names

    @property
    def without_topics(self) -> str | None:
        """Why attention cannot be related to topics on this corpus, or None if it can."""
        if self.mask_documents:
            return "attention stays inside documents, each of one topic"
        return None if self.num_topics > 1 else f"{self.name} have no topics"


class Source(Protocol):
    """A conf/data option: a frozen dataclass of settings, which builds its corpus into a folder once and opens it.

    `open` maps the files into memory. `build` draws every random number from the seed in its settings. The store keys
    the folder by `corpus_recipe`. A class attribute `resumable = True` means that `build` can continue in the folder of
    an interrupted call. An option for models that are already trained has `in_tokens_of(tokens: ModelTokens)`, which
    returns its Source in these tokens, or raises ValueError.
    """

    def build(self, folder: Path) -> None: ...

    def open(self, folder: Path) -> Corpus: ...


def corpus_recipe(source: Source) -> dict[str, Any]:
    """What the store makes a corpus's key from: the class, and the settings or what the source's `recipe()` returns.

    A source that depends on more than its settings, on files for instance, has a method `recipe`.
    """
    recipe = getattr(source, "recipe", None)
    settings = recipe() if recipe is not None else dataclasses.asdict(source)  # type: ignore[call-overload]
    return {"source": f"{type(source).__module__}.{type(source).__qualname__}", **settings}
