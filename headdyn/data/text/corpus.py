"""Corpora of real text, options of conf/data: their settings, and the sources of their documents.

`build` imports build.py, whose libraries take seconds to import; bad settings are refused before that.
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
    """A text corpus; subclasses say where its documents come from.

    `train_sequences` and `val_sequences` limit how many sequences are made; null uses the whole text. A share
    `val_share` of the documents is held out, so that no document is in both splits. If two documents are more similar
    than `near_duplicate_jaccard`, the later one is left out; null leaves out exact copies alone. `topics=given` uses
    the topics that come with the documents instead of clusters. `embedding=auto` uses the sentence encoder if it is
    available and TF-IDF otherwise, and logs which. With `mask_documents` a token attends to its own document alone.
    """

    vocab_size: Annotated[int, Field(ge=257, le=65536)]  # at least 256 bytes and the end of a text; stored as uint16
    sequence_length: int
    num_topics: NumTopics
    train_sequences: Count | None
    val_sequences: Count | None
    pieces_per_sequence: Annotated[int, Field(ge=2)] = 3  # of different documents, so that attention may cross them
    val_share: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    # At least 0.7, because duplicates.py finds 92 % of the pairs of that similarity, and fewer of less similar ones.
    near_duplicate_jaccard: Annotated[float, Field(ge=0.7, le=1)] | None = 0.8
    topics: Literal["clusters", "given"] = "clusters"
    embedding: Literal["auto", "minilm", "tfidf"] = "auto"
    embedding_model: str | None = None
    mask_documents: bool = False
    seed: Seed

    resumable: ClassVar[bool] = True  # `build` continues an interrupted build in the same folder

    def __post_init__(self) -> None:
        if self.sequence_length < 8 * self.pieces_per_sequence:
            raise ValueError(
                f"data.sequence_length={self.sequence_length} is too short for data.pieces_per_sequence="
                f"{self.pieces_per_sequence} pieces; set it to {8 * self.pieces_per_sequence} or more"
            )

    @property
    def primary_outcome(self) -> str | None:
        """The main metric: attention within topics beyond the own document; None if attention stays inside it."""
        return None if self.mask_documents else "selectivity_documents"

    @abstractmethod
    def reader(self) -> Reader:
        """The source of the documents."""

    def recipe(self) -> dict[str, Any]:
        """What the corpus depends on, for the store's key: the settings, with the embedding that `auto` chose."""
        recipe = {**dataclasses.asdict(self), "embedding": self.encoder()[0]}
        del recipe["mask_documents"]  # does not change the corpus itself
        return recipe

    def encoder(self) -> tuple[Literal["minilm", "tfidf"], str]:
        """The embedding to use, and where the sentence encoder is or why it is not used.

        Raises ValueError if `embedding=minilm` and the encoder is not available.
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
        """The same text in the tokens of a model that is trained already; `vocab_size` is then ignored.

        Raises ValueError if sequences exceed the model's learned positions, or if it has no tokenizer for text.
        """
        tokens.require_length(self.sequence_length)
        tokens.require_text()
        return TextInTokens(self, tokens)

    def build(self, folder: Path, tokens: ModelTokens | None = None) -> None:
        """Write {train,val}_{tokens,topics,documents}.npy, tokenizer/ and facts.json; a second call continues.

        The files depend on the documents and the settings alone, up to rounding in the embedding.
        """
        from headdyn.data.text.build import build_text

        if not (folder / "facts.json").exists():
            build_text(self, self.reader(), folder, folder / "work", tokens)
        shutil.rmtree(folder / "work", ignore_errors=True)

    def open(self, folder: Path) -> Corpus:
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
    """A text corpus in the tokens of a model that is trained already; the same documents are held out."""

    text: TextSource
    tokens: ModelTokens

    resumable: ClassVar[bool] = True

    def recipe(self) -> dict[str, Any]:
        return {**self.text.recipe(), **self.tokens.recipe()}

    def build(self, folder: Path) -> None:
        self.text.build(folder, self.tokens)

    def open(self, folder: Path) -> Corpus:
        return self.text.open(folder)


@settings
class LocalText(TextSource):
    """The user's own text: a file, or all files of a known type below a folder (files.py).

    `topic_column=null` uses the column "topic" if there is one. Given topics are compared with the clusters; with
    `topics=given` they replace them. `documents` limits how many documents are read.
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
    def bytes(self) -> int:
        """The size of all files together."""
        return sum(file.stat().st_size for file in files_of(Path(self.path))[0])

    def reader(self) -> TextFiles:
        from headdyn.data.text.files import TextFiles

        file_settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(TextFiles)}
        return TextFiles(**{**file_settings, "path": Path(self.path)})

    def recipe(self) -> dict[str, Any]:
        """The settings, with a hash of the files instead of their path: an edited file makes another corpus."""
        return {**super().recipe(), "path": self.reader().fingerprint()}


@settings
class Wikipedia(TextSource):
    """Articles of a Wikipedia dump, streamed from the Hugging Face hub (hub.py); a conf/data option."""

    dataset: str = "wikimedia/wikipedia"
    subset: str = "20231101.en"
    articles: Annotated[int, Field(ge=2)] = 500_000

    def reader(self) -> WikipediaArticles:
        from headdyn.data.text.hub import WikipediaArticles

        return WikipediaArticles(dataset=self.dataset, subset=self.subset, articles=self.articles)
