"""Corpora of real text: documents with topics found by clustering, tokens of a tokenizer learnt from them.

The settings, their checks and the opening; what `build` does is read in text_build.py, whose libraries take seconds to
import and are not needed to refuse a bad setting.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np

from headdyn.data.corpus import Corpus, Split
from headdyn.data.text_paths import TxtDocuments, files_of

if TYPE_CHECKING:
    from headdyn.data.documents import Reader
    from headdyn.data.hub import WikipediaArticles
    from headdyn.data.text_files import TextFiles

Topics = Literal["clusters", "given"]
EmbeddingName = Literal["auto", "minilm", "tfidf"]

SMALLEST_VOCABULARY = 257  # every byte, and the end of a text
LEAST_JACCARD = 0.7  # duplicates.py finds 92 % of pairs that similar, and ever fewer below
REFERENCE_LINES = ("random", "unigram", "bigram", "trigram")


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """What text corpora are made with, wherever their documents come from.

    `train_sequences` and `val_sequences` are the most to pack, null for all the text gives. Documents are split, not
    sequences: `val_share` of them are held out. `near_duplicate_jaccard` is the similarity from which of two documents
    the later is left out, null for exact copies only. `topics=given` takes the topics that documents come with in place
    of clusters. `embedding=auto` takes the sentence encoder where it can be had and TF-IDF elsewhere, and says which.
    `mask_documents` confines attention to the document a token belongs to.
    Raises ValueError for settings that no corpus can have.
    """

    vocab_size: int
    sequence_length: int
    num_topics: int
    train_sequences: int | None
    val_sequences: int | None
    pieces_per_sequence: int = 3
    val_share: float = 0.1
    near_duplicate_jaccard: float | None = 0.8
    topics: Topics = "clusters"
    embedding: EmbeddingName = "auto"
    embedding_model: str | None = None
    mask_documents: bool = False
    seed: int

    resumable: ClassVar[bool] = True  # `build` goes on from what an interrupted one left in its folder

    def __post_init__(self) -> None:
        if not SMALLEST_VOCABULARY <= self.vocab_size <= 65536:
            raise ValueError(
                f"data.vocab_size={self.vocab_size} must lie in {SMALLEST_VOCABULARY}..65536: "
                "256 bytes and the end of a text, stored as uint16"
            )
        if not 2 <= self.num_topics <= 256:
            raise ValueError(f"data.num_topics={self.num_topics} must lie in 2..256: topics are stored as uint8")
        if self.pieces_per_sequence < 2:
            raise ValueError(
                f"data.pieces_per_sequence={self.pieces_per_sequence} leaves sequences of one document, in which "
                "nothing is across documents; set it to 2 or more"
            )
        if self.sequence_length < 8 * self.pieces_per_sequence:
            raise ValueError(
                f"data.sequence_length={self.sequence_length} is too short for data.pieces_per_sequence="
                f"{self.pieces_per_sequence} pieces; set it to {8 * self.pieces_per_sequence} or more"
            )
        for name in ("train_sequences", "val_sequences"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"data.{name}={value} must be at least 1, or null for all there are")
        if not 0 < self.val_share <= 0.5:
            raise ValueError(f"data.val_share={self.val_share} must lie above 0 and at most at 0.5; 0.1 is usual")
        if self.near_duplicate_jaccard is not None and not LEAST_JACCARD <= self.near_duplicate_jaccard <= 1:
            raise ValueError(
                f"data.near_duplicate_jaccard={self.near_duplicate_jaccard} must lie in {LEAST_JACCARD}..1, as less "
                "similar pairs are not found reliably; or be null, to remove exact duplicates only"
            )
        for name, known in (("topics", Topics), ("embedding", EmbeddingName)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"data.{name}={getattr(self, name)!r} is unknown; choose one of {get_args(known)}")
        if self.seed < 0:
            raise ValueError(f"data.seed={self.seed} must be 0 or more")

    def reader(self) -> Reader:
        """Where the documents come from."""
        raise NotImplementedError

    def recipe(self) -> dict[str, Any]:
        """What the corpus depends on, for a cache's key: the settings, with the embedding that `auto` comes to."""
        recipe = {**dataclasses.asdict(self), "embedding": self.encoder()[0]}
        del recipe["mask_documents"]  # how the corpus is read, not what it is
        return recipe

    def encoder(self) -> tuple[Literal["minilm", "tfidf"], str]:
        """The embedding to use and where the encoder is, or why it is not used.

        Raises ValueError where the encoder is asked for and cannot be had.
        """
        if self.embedding == "tfidf" or self.topics == "given":
            return "tfidf", "as set"
        from headdyn.data.hub import find_encoder

        location, reason = find_encoder(self.embedding_model)
        if location is not None:
            return "minilm", location
        if self.embedding == "minilm":
            raise ValueError(
                f"data.embedding=minilm: {reason}; set data.embedding=tfidf, or data.embedding_model to a folder"
            )
        return "tfidf", reason

    def build(self, folder: Path) -> None:
        """Write {train,val}_{tokens,topics,documents}.npy, tokenizer/ and facts.json; called again, it goes on.

        The files depend on the documents and the settings alone, up to rounding in the embedding.
        """
        from headdyn.data.text_build import build_text

        if not (folder / "facts.json").exists():
            build_text(self, self.reader(), folder, folder / "work")
        shutil.rmtree(folder / "work", ignore_errors=True)

    def open(self, folder: Path) -> Corpus:
        """The corpus in `folder`, memory-mapped."""
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        return Corpus(
            name="text",
            train=_open_split(folder, "train"),
            val=_open_split(folder, "val"),
            vocab_size=self.vocab_size,
            topic_names=tuple(facts["topic_names"]),
            reference_nats={name: facts[f"{name}_nats"] for name in REFERENCE_LINES},
            facts=facts,
            tokenizer=folder / "tokenizer",
            mask_documents=self.mask_documents,
        )


@dataclass(frozen=True, kw_only=True)
class LocalText(TextSettings):
    """The user's own text: a file, or all files of a known type under a folder (text_files.py); a conf/data option.

    `topic_column=null` takes a column called "topic" where there is one; given topics only serve to judge the clusters,
    unless `topics=given`. `documents` is the most to read.
    """

    path: str
    text_column: str = "text"
    topic_column: str | None = None
    encoding: str = "utf-8"
    txt_documents: TxtDocuments = "file"
    documents: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.txt_documents not in get_args(TxtDocuments):
            raise ValueError(
                f"data.txt_documents={self.txt_documents!r} is unknown; choose one of {get_args(TxtDocuments)}"
            )
        if self.documents is not None and self.documents < 2:
            raise ValueError(f"data.documents={self.documents} must be at least 2, or null for all")
        try:
            codecs.lookup(self.encoding)
        except LookupError as error:
            raise ValueError(f"data.encoding={self.encoding!r} is unknown; e.g. utf-8, latin-1 or utf-16") from error
        files_of(Path(self.path))

    def reader(self) -> TextFiles:
        """The files."""
        from headdyn.data.text_files import TextFiles

        return TextFiles(
            path=Path(self.path),
            text_column=self.text_column,
            topic_column=self.topic_column,
            encoding=self.encoding,
            txt_documents=self.txt_documents,
        )

    def recipe(self) -> dict[str, Any]:
        """The settings with the files' contents in place of their path, so that an edited file is another corpus."""
        return {**super().recipe(), "path": self.reader().fingerprint()}


@dataclass(frozen=True, kw_only=True)
class Wikipedia(TextSettings):
    """Articles of a Wikipedia dump, streamed from the Hugging Face hub (hub.py); a conf/data option."""

    dataset: str = "wikimedia/wikipedia"
    subset: str = "20231101.en"
    articles: int = 500_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.articles < 2:
            raise ValueError(f"data.articles={self.articles} must be at least 2")

    def reader(self) -> WikipediaArticles:
        """The dump."""
        from headdyn.data.hub import WikipediaArticles

        return WikipediaArticles(dataset=self.dataset, subset=self.subset, articles=self.articles)


def _open_split(folder: Path, split: str) -> Split:
    tokens, topics, documents = (
        np.load(folder / f"{split}_{name}.npy", mmap_mode="r") for name in ("tokens", "topics", "documents")
    )
    return Split(tokens_NT=tokens, topics_NT=topics, documents_NT=documents)
