"""Corpora of real text as conf/data options: their settings, where their documents come from, built once and opened.

What `build` does is in build.py, which imports libraries that take seconds; a bad setting is refused before that.
"""

from __future__ import annotations

import codecs
import dataclasses
import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from headdyn.core.json_files import read_json
from headdyn.core.settings import Count, settings
from headdyn.data.corpus import Corpus, NumTopics, Seed, Split
from headdyn.data.model_tokens import ModelTokens
from headdyn.data.text.paths import TxtDocuments, files_of

if TYPE_CHECKING:
    from headdyn.data.text.documents import Reader
    from headdyn.data.text.files import TextFiles
    from headdyn.data.text.hub import WikipediaArticles

REFERENCE_LINES = ("random", "unigram", "bigram", "trigram")


@settings
class TextSource(ABC):
    """A text corpus that builds and opens itself; a subclass says where its documents come from.

    `train_sequences` and `val_sequences` are the most to pack, null for all that the text gives. Documents are split,
    not sequences: `val_share` of them are held out. Of two documents that are more similar than
    `near_duplicate_jaccard` the later is left out; null leaves out exact copies only. `topics=given` takes the topics
    that the documents come with in place of clusters. `embedding=auto` takes the sentence encoder where it can be had
    and TF-IDF elsewhere, and logs which. `mask_documents` confines attention to the document that a token belongs to.
    """

    vocab_size: Annotated[int, Field(ge=257, le=65536)]  # at least 256 bytes and the end of a text; stored as uint16
    sequence_length: int
    num_topics: NumTopics
    train_sequences: Count | None
    val_sequences: Count | None
    pieces_per_sequence: Annotated[int, Field(ge=2)] = 3  # with one, nothing in a sequence is across documents
    val_share: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    # Of pairs with a similarity of 0.7, duplicates.py finds 92 %; of less similar ones ever fewer.
    near_duplicate_jaccard: Annotated[float, Field(ge=0.7, le=1)] | None = 0.8
    topics: Literal["clusters", "given"] = "clusters"
    embedding: Literal["auto", "minilm", "tfidf"] = "auto"
    embedding_model: str | None = None
    mask_documents: bool = False
    seed: Seed

    resumable: ClassVar[bool] = True  # `build` goes on from what an interrupted one left in its folder

    def __post_init__(self) -> None:
        if self.sequence_length < 8 * self.pieces_per_sequence:
            raise ValueError(
                f"data.sequence_length={self.sequence_length} is too short for data.pieces_per_sequence="
                f"{self.pieces_per_sequence} pieces; set it to {8 * self.pieces_per_sequence} or more"
            )

    @abstractmethod
    def reader(self) -> Reader:
        """Where the documents come from."""

    @property
    def most_documents(self) -> int | None:
        """The most documents to read; None for all."""
        return None

    def recipe(self) -> dict[str, Any]:
        """What the corpus depends on, for a cache's key: the settings, with the embedding that `auto` stands for."""
        recipe = {**dataclasses.asdict(self), "embedding": self.encoder()[0]}
        del recipe["mask_documents"]  # how the corpus is read, not what it is
        return recipe

    def encoder(self) -> tuple[Literal["minilm", "tfidf"], str]:
        """The embedding to use, and where the sentence encoder is or why it is not used.

        Raises ValueError where the encoder is asked for and cannot be had.
        """
        if self.embedding == "tfidf" or self.topics == "given":
            return "tfidf", "as set"
        from headdyn.data.text.hub import find_encoder

        location, reason = find_encoder(self.embedding_model)
        if location is not None:
            return "minilm", location
        if self.embedding == "minilm":
            raise ValueError(
                f"data.embedding=minilm: {reason}; set data.embedding=tfidf, or data.embedding_model to a folder"
            )
        return "tfidf", reason

    def in_tokens_of(self, tokens: ModelTokens) -> TextInTokens:
        """The same text in the tokens of a model that comes trained; `vocab_size` then plays no part."""
        tokens.require_length(self.sequence_length)
        tokens.require_text()
        return TextInTokens(self, tokens)

    def build(self, folder: Path, tokens: ModelTokens | None = None) -> None:
        """Write {train,val}_{tokens,topics,documents}.npy, tokenizer/ and facts.json; called again, it goes on.

        The files depend on the documents and the settings alone, up to rounding in the embedding.
        """
        from headdyn.data.text.build import build_text

        if not (folder / "facts.json").exists():
            build_text(self, self.reader(), folder, folder / "work", tokens)
        shutil.rmtree(folder / "work", ignore_errors=True)

    def open(self, folder: Path) -> Corpus:
        """The corpus in `folder`, memory-mapped."""
        facts = read_json(folder / "facts.json")
        return Corpus(
            name="text",
            train=Split.open(folder, "train"),
            val=Split.open(folder, "val"),
            vocab_size=facts["vocab_size"],
            topic_names=tuple(facts["topic_names"]),
            reference_nats={name: facts[f"{name}_nats"] for name in REFERENCE_LINES},
            facts=facts,
            tokenizer=folder / "tokenizer",
            mask_documents=self.mask_documents,
        )


@dataclass(frozen=True)
class TextInTokens:
    """A text corpus in the tokens of a model that comes trained; documents are held out as for a model trained here."""

    text: TextSource
    tokens: ModelTokens

    resumable: ClassVar[bool] = True

    def recipe(self) -> dict[str, Any]:
        """What the corpus depends on: the text's settings, with the model's tokens in place of learnt ones."""
        return {**self.text.recipe(), **self.tokens.recipe()}

    def build(self, folder: Path) -> None:
        """As `TextSource.build`."""
        self.text.build(folder, self.tokens)

    def open(self, folder: Path) -> Corpus:
        """The corpus in `folder`, memory-mapped."""
        return self.text.open(folder)


@settings
class LocalText(TextSource):
    """The user's own text: a file, or all files of a known type under a folder (files.py); a conf/data option.

    `topic_column=null` takes a column called "topic" where there is one. Given topics only serve to judge the clusters,
    unless `topics=given`. `documents` is the most to read.
    """

    path: str
    text_column: str = "text"
    topic_column: str | None = None
    encoding: str = "utf-8"
    txt_documents: TxtDocuments = "file"
    documents: Annotated[int, Field(ge=2)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            codecs.lookup(self.encoding)
        except LookupError as error:
            raise ValueError(f"data.encoding={self.encoding!r} is unknown; e.g. utf-8, latin-1 or utf-16") from error
        files_of(Path(self.path))

    @property
    def most_documents(self) -> int | None:
        return self.documents

    @property
    def bytes(self) -> int:
        """The size of the files."""
        return sum(file.stat().st_size for file in files_of(Path(self.path))[0])

    def reader(self) -> TextFiles:
        """The files."""
        from headdyn.data.text.files import TextFiles

        settings_of_files = {f.name: getattr(self, f.name) for f in dataclasses.fields(TextFiles)}
        return TextFiles(**{**settings_of_files, "path": Path(self.path)})

    def recipe(self) -> dict[str, Any]:
        """The settings, with the files' contents in place of their path: an edited file makes another corpus."""
        return {**super().recipe(), "path": self.reader().fingerprint()}


@settings
class Wikipedia(TextSource):
    """Articles of a Wikipedia dump, streamed from the Hugging Face hub (hub.py); a conf/data option."""

    dataset: str = "wikimedia/wikipedia"
    subset: str = "20231101.en"
    articles: Annotated[int, Field(ge=2)] = 500_000

    def reader(self) -> WikipediaArticles:
        """The dump."""
        from headdyn.data.text.hub import WikipediaArticles

        return WikipediaArticles(dataset=self.dataset, subset=self.subset, articles=self.articles)
