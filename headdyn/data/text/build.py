"""Builds a packed corpus from documents, in steps, each done once and with a bounded part of the text in memory.

Letters: D documents (all that are stored, or those of a split), K documents without duplicates, E embedding width,
S topics, N sequences, T tokens.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headdyn.core.json_files import write_json
from headdyn.core.randomness import generator
from headdyn.data.corpus import Split, token_dtype
from headdyn.data.lines import mean_and_error
from headdyn.data.model_tokens import ModelTokens
from headdyn.data.text import topics as clusters
from headdyn.data.text.documents import NO_TOPIC, Documents, Reader, store_documents
from headdyn.data.text.duplicates import find_duplicates
from headdyn.data.text.embedding import MiniLM, NoTermsError, Tfidf, embed, sample_rows, texts_of
from headdyn.data.text.ngrams import losses_nats
from headdyn.data.text.packing import full_sequences, pack
from headdyn.data.text.stages import once
from headdyn.data.text.tokenizer import END_ID, load_tokenizer, save_tokenizer, tokenize, train_tokenizer

if TYPE_CHECKING:
    from headdyn.data.text.corpus import TextSource

log = logging.getLogger(__name__)

CLUSTER_DOCUMENTS = 20_000  # k-means is fitted to at most so many; then every document gets its nearest centre
REFERENCE_SEQUENCES = 2000  # held-out sequences on which the n-gram lines are computed


def build_text(
    settings: TextSource, reader: Reader, folder: Path, work: Path, tokens: ModelTokens | None = None
) -> None:
    """Write a corpus to `folder`. The steps' files are in `work`, so that an interrupted build can continue.

    `tokens` are those of a model that is already trained; without them a tokenizer is learnt from the text. Raises
    ValueError if no corpus can be made of the documents: too few, too short, without text.
    """
    steps = _Build(settings, reader, folder, work, tokens)
    facts: dict[str, Any] = {}
    for name, step in (
        ("reading", steps.read),
        ("duplicates", steps.drop_duplicates),
        ("topics", steps.find_topics if settings.topics == "clusters" else steps.take_topics),
        ("tokenizer", steps.learn_tokenizer if tokens is None else steps.take_tokenizer),
        ("packing", steps.pack),
        ("reference lines", steps.measure_references),
    ):
        facts |= once(work, name, step)
    write_json(folder / "facts.json", facts)


def sequences_of(
    settings: TextSource, reader: Reader, folder: Path, tokens: ModelTokens | None = None
) -> tuple[dict[str, int], list[str]]:
    """How many sequences each split of the corpus would have, and all reasons why `build_text` would refuse it.

    Clustering is not tried. `folder` takes the steps' files; the caller removes it. The numbers lack a split whose
    documents do not fill one sequence.
    """
    steps = _Build(settings, reader, folder, folder, tokens)
    sequences: dict[str, int] = {}
    problems: list[str] = []
    for step in (
        steps.read,
        steps.drop_duplicates,
        *([steps.take_topics] if settings.topics == "given" else []),
        steps.learn_tokenizer if tokens is None else steps.take_tokenizer,
    ):
        if step == steps.learn_tokenizer and not len(steps.rows("train")):
            continue
        try:
            step()
        except ValueError as error:
            problems.append(str(error))
            if step == steps.read:
                return sequences, problems
    for split, at_most in (("train", settings.train_sequences), ("val", settings.val_sequences)):
        if (folder / "tokenizer").exists() and len(steps.rows(split)):
            count = int(steps.tokenize(split)[-1])
            try:
                full = full_sequences(split, count, settings.sequence_length, steps.begin)
                sequences[split] = full if at_most is None else min(full, at_most)
            except ValueError as error:
                problems.append(str(error))
    return sequences, problems


class _Build:
    """The steps. Each returns facts for the record, and writes files to `work` or `folder`, which later steps read."""

    def __init__(
        self, settings: TextSource, reader: Reader, folder: Path, work: Path, tokens: ModelTokens | None
    ) -> None:
        self.settings, self.reader, self.folder, self.work, self.tokens = settings, reader, folder, work, tokens
        self.vocab_size = settings.vocab_size if tokens is None else tokens.vocab_size
        self.documents = Documents(work / "documents")

    def rows(self, split: str) -> np.ndarray:
        """The documents of the split train or val, ascending; "kept" means both."""
        return np.load(self.work / f"{split}.npy")

    def read(self) -> Mapping[str, Any]:
        return store_documents(self.reader, self.documents.folder, at_most=getattr(self.settings, "documents", None))

    def drop_duplicates(self) -> Mapping[str, Any]:
        """Remove duplicates, and split the other documents into training and held-out ones."""
        s = self.settings
        kept_K, facts = find_duplicates(self.documents, self.work, jaccard=s.near_duplicate_jaccard, seed=s.seed)
        held_out = max(1, round(s.val_share * len(kept_K)))
        drawn_K = generator(s.seed, "text/split").permutation(kept_K)
        np.save(self.work / "kept.npy", kept_K)
        np.save(self.work / "val.npy", np.sort(drawn_K[:held_out]))
        np.save(self.work / "train.npy", np.sort(drawn_K[held_out:]))
        training = len(kept_K) - held_out
        if training < s.num_topics:
            raise ValueError(
                f"data.num_topics={s.num_topics}, but of {len(self.documents)} documents {len(kept_K)} differ and "
                f"{max(training, 0)} are left for training; bring more documents, lower data.num_topics, or, if one "
                "text file holds several, set data.txt_documents=blank_lines"
            )
        return facts

    def take_topics(self) -> Mapping[str, Any]:
        """Use the topics that the documents came with, the most frequent first."""
        kept_K = self.rows("kept")
        given_K = self.documents.given_D[kept_K]
        if without_topic := int((given_K == NO_TOPIC).sum()):
            raise ValueError(
                f"data.topics=given, but {without_topic} of {len(kept_K)} documents come without a topic; name their "
                "column with data.topic_column=..., or set data.topics=clusters"
            )
        sizes = np.bincount(given_K)
        order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
        if len(order) != self.settings.num_topics:
            raise ValueError(
                f"data.topics=given, but the documents come with {len(order)} topics and not data.num_topics="
                f"{self.settings.num_topics}; set data.num_topics={len(order)}"
            )
        rank = np.zeros(len(sizes), np.uint8)
        rank[order] = np.arange(len(order))
        np.save(self.work / "topics.npy", rank[given_K])
        names = self.documents.given_names
        return {"topic_names": [names[topic] for topic in order], "topic_documents": sizes[order].tolist()}

    def find_topics(self) -> Mapping[str, Any]:
        """Cluster the documents' embeddings: k-means is fitted to training documents, then all are assigned."""
        s, kept_K, train_K = self.settings, self.rows("kept"), self.rows("train")
        name, detail = s.encoder()
        level = logging.WARNING if s.embedding == "auto" else logging.INFO
        title = {"tfidf": "TF-IDF", "minilm": "MiniLM"}[name]
        text = "topics come from %s embeddings (data.embedding=%s; the encoder: %s)"
        log.log(level, text, title, s.embedding, detail)
        term_rows = sample_rows(self.documents, train_K, generator(s.seed, "text/terms sample"))
        term_texts = texts_of(self.documents, term_rows)
        embedding = MiniLM(detail) if name == "minilm" else Tfidf(term_texts, s.seed)
        file = self.work / f"{name}.f32"
        facts: dict[str, Any] = {"embedding": name, **embedding.facts}
        facts |= embed(embedding, self.documents, kept_K, file)

        sample = generator(s.seed, "text/cluster sample").permutation(train_K)[:CLUSTER_DOCUMENTS]
        places = np.searchsorted(kept_K, sample)
        sample_DE = np.array(np.memmap(file, np.float32, "r").reshape(-1, embedding.width)[places])
        centres_SE, _ = clusters.cluster(sample_DE, s.num_topics, generator(s.seed, "text/clusters"))
        topics_K = clusters.assign(centres_SE, file, len(kept_K))
        np.save(self.work / "topics.npy", topics_K)
        facts |= clusters.quality(sample_DE, topics_K[places], s.num_topics, s.seed)
        given_K = self.documents.given_D[kept_K]
        with_topic_K = given_K != NO_TOPIC
        if with_topic_K.any():
            facts |= clusters.agreement(topics_K[with_topic_K], given_K[with_topic_K], s.seed)
        try:
            terms = clusters.top_terms(term_texts, topics_K[np.searchsorted(kept_K, term_rows)], s.num_topics)
        except NoTermsError as error:  # possible with the sentence encoder; the topics then have no names
            terms = [[] for _ in range(s.num_topics)]
            facts["topic_terms_absent"] = str(error)
        return facts | {
            "topic_terms": terms,
            "topic_names": [f"{topic} {' '.join(words[:3])}".strip() for topic, words in enumerate(terms)],
            "topic_documents": np.bincount(topics_K, minlength=s.num_topics).tolist(),
        }

    def learn_tokenizer(self) -> Mapping[str, Any]:
        s = self.settings
        tokenizer, learnt_bytes = train_tokenizer(self.documents, self.rows("train"), s.vocab_size, s.seed)
        save_tokenizer(tokenizer, self.folder / "tokenizer", s.sequence_length)
        return {"vocab_size": s.vocab_size, "tokenizer_training_bytes": learnt_bytes}

    def take_tokenizer(self) -> Mapping[str, Any]:
        assert self.tokens is not None
        file = self.folder / "tokenizer" / "tokenizer.json"
        file.parent.mkdir(exist_ok=True)
        self.tokens.text_tokenizer.save(str(file))
        return {"vocab_size": self.vocab_size}

    def pack(self) -> Mapping[str, Any]:
        s, kept_K = self.settings, self.rows("kept")
        topics_K = np.load(self.work / "topics.npy")
        facts: dict[str, Any] = {}
        for split, at_most in (("train", s.train_sequences), ("val", s.val_sequences)):
            rows, tokens_file, ends_D = self.rows(split), self.tokens_file(split), self.tokenize(split)
            facts[f"{split}_bytes_per_token"] = int(self.documents.bytes_D[rows].sum()) / int(ends_D[-1])
            facts |= pack(
                tokens_file,
                ends_D,
                topics_K[np.searchsorted(kept_K, rows)],
                self.folder,
                split,
                sequence_length=s.sequence_length,
                pieces_per_sequence=s.pieces_per_sequence,
                at_most=at_most,
                rng=generator(s.seed, f"text/packing {split}"),
                begin=self.begin,
                dtype=token_dtype(self.vocab_size),
            )
        return facts

    @property
    def begin(self) -> int | None:
        return None if self.tokens is None else self.tokens.begin

    def tokens_file(self, split: str) -> Path:
        return self.work / f"{split}.tokens"

    def tokenize(self, split: str) -> np.ndarray:
        """Write the tokens of a split end to end; returns the index after each document's last token [D]."""
        return tokenize(
            load_tokenizer(self.folder / "tokenizer"),
            self.documents,
            self.rows(split),
            self.tokens_file(split),
            end=END_ID if self.tokens is None else self.tokens.end,
            dtype=token_dtype(self.vocab_size),
        )

    def measure_references(self) -> Mapping[str, Any]:
        """The losses of a uniform law and of n-gram laws on held-out sequences, to compare a model's loss with."""
        train_NT = Split.open(self.folder, "train").tokens_NT
        val_NT = Split.open(self.folder, "val").tokens_NT[:REFERENCE_SEQUENCES]
        facts: dict[str, Any] = {"random_nats": math.log(self.vocab_size)}
        for name, losses_NT in losses_nats(train_NT, val_NT, self.vocab_size).items():
            facts |= mean_and_error(f"{name}_nats", losses_NT)
        return facts | {"reference_sequences": len(val_NT)}
