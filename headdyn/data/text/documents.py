"""Documents on disk: cleaned one by one, stored in Parquet files, and read back one row group at a time.

Letters: D documents. One row group, and a few bytes for each document, are in memory at a time.
"""

import itertools
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headdyn.core.progress import Progress
from headdyn.data.text.stages import once

log = logging.getLogger(__name__)

NO_TOPIC = -1
CHUNK_BYTES = 1 << 17  # text in a row group; the sentence encoder takes some 20 seconds for it on two cores

_SCHEMA = pa.schema({"text": pa.string(), "bytes": pa.int64(), "topic": pa.string()})
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# Zero-width space, soft hyphen, byte-order mark, direction marks and controls. Zero-width joiners are not among them,
# because they carry meaning in several scripts.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell them, UTF-8 cannot
_SPACES = re.compile(r"[^\S\n]+")
_AROUND_LINE_END = re.compile(" ?\n ?")
_BLANK_LINES = re.compile("\n{3,}")


@dataclass(frozen=True)
class Record:
    """One document as read from its source. `place` says where it was, for messages."""

    text: str | None
    topic: str | None
    place: str


class Reader(Protocol):
    """A source of documents in one or more parts. If reading is interrupted, finished parts are not read again."""

    def parts(self) -> list[str]:
        """The names of the parts, in order."""

    def read(self, part: str) -> Iterator[Record]:
        """The documents of one part."""


def clean(text: str) -> str:
    """The text in Unicode's NFC form, without invisible characters, with single spaces and at most one blank line.

    NFC does not change what a reader sees (NFKC would turn ² into 2). Markup, entities, upper case, and the `<unk>`
    that some corpora print for rare words are not changed: they are part of the text that a model is to predict.
    """
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    text = _LINE_ENDS.sub("\n", text)
    text = _INVISIBLE.sub("", text)
    text = _LONE_SURROGATE.sub("\ufffd", text)
    text = _AROUND_LINE_END.sub("\n", _SPACES.sub(" ", text))
    return _BLANK_LINES.sub("\n\n", text).strip()


@dataclass(frozen=True)
class Documents:
    """The documents that `store_documents` wrote to a folder, in order of reading."""

    folder: Path

    @cached_property
    def _files(self) -> list[pq.ParquetFile]:
        return [pq.ParquetFile(file) for file in sorted(self.folder.glob("*.parquet"))]

    @cached_property
    def bytes_D(self) -> np.ndarray:
        """The size of each document in UTF-8 bytes [D] int64."""
        return np.concatenate([file.read(["bytes"])["bytes"].to_numpy() for file in self._files])

    @cached_property
    def _given(self) -> pa.DictionaryArray:
        topics = pa.concat_tables(file.read(["topic"]) for file in self._files)["topic"]
        return topics.combine_chunks().dictionary_encode()

    @property
    def given_D(self) -> np.ndarray:
        """The index of each document's given topic [D] int32; NO_TOPIC if it has none."""
        return self._given.indices.fill_null(NO_TOPIC).to_numpy()

    @property
    def given_names(self) -> list[str]:
        """The names of the given topics by index, in order of first appearance."""
        return self._given.dictionary.to_pylist()

    def __len__(self) -> int:
        return len(self.bytes_D)

    def chunks(self, rows: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, list[str]]]:
        """Pairs (rows, texts) of at most about CHUNK_BYTES, in order: of all documents, or of `rows`, ascending."""
        first = 0
        for file in self._files:
            for group in range(file.num_row_groups):
                stop = first + file.metadata.row_group(group).num_rows
                chosen = np.arange(first, stop) if rows is None else rows[slice(*np.searchsorted(rows, (first, stop)))]
                if len(chosen):
                    texts = file.read_row_group(group, ["text"])["text"]
                    yield chosen, texts.take(chosen - first).to_pylist()
                first = stop


def store_documents(reader: Reader, folder: Path, *, at_most: int | None = None) -> Mapping[str, Any]:
    """Clean and store all documents with text, or the first `at_most`. Finished parts are not read again.

    Returns, for the record, the numbers of documents stored, of records without text (logged as a warning), of
    documents with a given topic, and of bytes. Raises ValueError if no record has text.
    """
    progress = Progress("reading", "documents", at_most)
    stored, without_text, first_without_text = 0, 0, None
    for number, part in enumerate(reader.parts()):
        if stored == at_most:
            break
        remaining = None if at_most is None else at_most - stored
        store = partial(_store, reader, part, folder / f"{number:06}.parquet", remaining, progress)
        facts = once(folder, f"reading part {number}", store)
        stored, without_text = stored + facts["stored"], without_text + facts["without_text"]
        first_without_text = first_without_text or facts["first_without_text"]
    if without_text:
        log.warning("%d records have no text and are left out, the first at %s", without_text, first_without_text)
    if not stored:
        cause = f"all {without_text} records lack text" if without_text else "there are no records"
        raise ValueError(f"the data hold no document: {cause}; give documents with text")
    documents = Documents(folder)
    return {
        "documents_read": stored,
        "documents_without_text": without_text,
        "documents_with_given_topic": int((documents.given_D != NO_TOPIC).sum()),
        "text_bytes": int(documents.bytes_D.sum()),
    }


def _store(reader: Reader, part: str, file: Path, at_most: int | None, progress: Progress) -> Mapping[str, Any]:
    """Write one part's documents to `file`; returns its counts, which `store_documents` adds up."""
    facts: dict[str, Any] = {"stored": 0, "without_text": 0, "first_without_text": None}

    def documents() -> Iterator[dict[str, Any]]:
        for record in reader.read(part):
            if text := clean(record.text or ""):
                yield {"text": text, "bytes": len(text.encode()), "topic": record.topic}
            else:
                facts["without_text"] += 1
                facts["first_without_text"] = facts["first_without_text"] or record.place

    with pq.ParquetWriter(file, _SCHEMA) as writer:
        for chunk in _chunked(itertools.islice(documents(), at_most)):
            writer.write_batch(pa.RecordBatch.from_pylist(chunk, _SCHEMA))
            facts["stored"] += len(chunk)
            progress.add(len(chunk))
    return facts


def _chunked(documents: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Consecutive documents in groups of at most CHUNK_BYTES; a larger document is a group of its own."""
    chunk: list[dict[str, Any]] = []
    size = 0
    for document in documents:
        if chunk and size + document["bytes"] > CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(document)
        size += document["bytes"]
    if chunk:
        yield chunk
