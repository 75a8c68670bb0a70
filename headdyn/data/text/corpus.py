"""Corpora of real text as conf/data options: where their documents come from, built once and opened.

What `build` does is read in build.py, whose libraries take seconds to import and no bad setting needs to wait for.
"""

from __future__ import annotations

import codecs
import json
import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from headdyn.data.corpus import Corpus, Split
from headdyn.data.text.paths import TxtDocuments, files_of
from headdyn.data.text.settings import TextSettings

if TYPE_CHECKING:
    from headdyn.data.text.documents import Reader
    from headdyn.data.text.files import TextFiles
    from headdyn.data.text.hub import WikipediaArticles

REFERENCE_LINES = ("random", "unigram", "bigram", "trigram")


@dataclass(frozen=True, kw_only=True)
class TextSource(TextSettings, ABC):
    """A text corpus that builds and opens itself."""

    @abstractmethod
    def reader(self) -> Reader:
        """Where the documents come from."""

    def build(self, folder: Path) -> None:
        """Write {train,val}_{tokens,topics,documents}.npy, tokenizer/ and facts.json; called again, it goes on.

        The files depend on the documents and the settings alone, up to rounding in the embedding.
        """
        from headdyn.data.text.build import build_text

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
class LocalText(TextSource):
    """The user's own text: a file, or all files of a known type under a folder (files.py); a conf/data option.

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

    @property
    def most_documents(self) -> int | None:
        return self.documents

    def reader(self) -> TextFiles:
        """The files."""
        from headdyn.data.text.files import TextFiles

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
class Wikipedia(TextSource):
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
        from headdyn.data.text.hub import WikipediaArticles

        return WikipediaArticles(dataset=self.dataset, subset=self.subset, articles=self.articles)


def _open_split(folder: Path, split: str) -> Split:
    tokens, topics, documents = (
        np.load(folder / f"{split}_{name}.npy", mmap_mode="r") for name in ("tokens", "topics", "documents")
    )
    return Split(tokens_NT=tokens, topics_NT=topics, documents_NT=documents)
