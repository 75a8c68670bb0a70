"""What every text corpus is made with, checked without the libraries that make it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

Topics = Literal["clusters", "given"]
EmbeddingName = Literal["auto", "minilm", "tfidf"]

SMALLEST_VOCABULARY = 257  # every byte, and the end of a text
LEAST_JACCARD = 0.7  # duplicates.py finds 92 % of pairs that similar, and ever fewer below


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

    @property
    def most_documents(self) -> int | None:
        """The most documents to read; None for all."""
        return None

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
        from headdyn.data.text.hub import find_encoder

        location, reason = find_encoder(self.embedding_model)
        if location is not None:
            return "minilm", location
        if self.embedding == "minilm":
            raise ValueError(
                f"data.embedding=minilm: {reason}; set data.embedding=tfidf, or data.embedding_model to a folder"
            )
        return "tfidf", reason
