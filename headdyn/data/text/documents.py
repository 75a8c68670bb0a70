"""Documents on disk: cleaned one by one, appended to one file, read back in pieces of bounded size.

Letters: D documents. Only a few bytes a document are ever held in memory.
"""

from __future__ import annotations

import json
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from headdyn.core.records import write_json
from headdyn.data.text.stages import Progress

log = logging.getLogger(__name__)

NO_TOPIC = -1
CHUNK_BYTES = 4 << 20

_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# Zero-width space, soft hyphen, byte-order mark, direction marks and controls. The zero-width joiners stay: they carry
# meaning in several scripts.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell them, UTF-8 cannot
_SPACES = re.compile(r"[^\S\n]+")
_AROUND_LINE_END = re.compile(" ?\n ?")
_BLANK_LINES = re.compile("\n{3,}")


@dataclass(frozen=True)
class Record:
    """One document as its source holds it. `place` says where, for a message."""

    text: str | None
    topic: str | None
    place: str


class Reader(Protocol):
    """Where documents come from: several parts (files, shards), so that a long reading can go on after a stop."""

    def parts(self) -> list[str]:
        """The parts' names, in order."""
        ...

    def read(self, part: str) -> Iterator[Record]:
        """One part's documents."""
        ...


def clean(text: str) -> str:
    """The text in Unicode's NFC form, without invisible characters, with single spaces and at most one blank line.

    NFC leaves what a reader sees as it is (NFKC would turn ² into 2). Words stay as they are: markup, entities, case
    and the `<unk>` that some corpora print for rare words are part of the text a model is to predict.
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
    """What `store_documents` wrote: the texts' UTF-8 bytes end to end, where each ends, and its given topic."""

    folder: Path

    @cached_property
    def ends_D(self) -> np.ndarray:
        """Where each document ends, in bytes [D] int64."""
        return np.fromfile(self.folder / "ends.i64", np.int64)

    @cached_property
    def given_D(self) -> np.ndarray:
        """The number of the topic each came with [D] int32, NO_TOPIC where it came with none."""
        return np.fromfile(self.folder / "given.i32", np.int32)

    @cached_property
    def given_names(self) -> list[str]:
        """What the given topics are called, by number."""
        return list(json.loads((self.folder / "read.json").read_text(encoding="utf-8"))["topics"])

    def __len__(self) -> int:
        return len(self.ends_D)

    def bytes_of(self, rows: np.ndarray) -> np.ndarray:
        """The sizes in bytes of documents `rows`."""
        return self.ends_D[rows] - np.where(rows > 0, self.ends_D[rows - 1], 0)

    def chunks(
        self, rows: np.ndarray | None = None, *, chunk_bytes: int = CHUNK_BYTES
    ) -> Iterator[tuple[np.ndarray, list[str]]]:
        """(rows, texts) in order, a few MiB at a time (a larger document comes alone); all documents or `rows`.

        `rows` must be ascending.
        """
        first, ends_D = 0, self.ends_D
        with (self.folder / "texts.utf8").open("rb") as file:
            while first < len(ends_D):
                start = int(ends_D[first - 1]) if first else 0
                stop = max(first + 1, int(np.searchsorted(ends_D, start + chunk_bytes, side="right")))
                if rows is None:
                    chosen = np.arange(first, stop)
                else:
                    chosen = rows[np.searchsorted(rows, first) : np.searchsorted(rows, stop)]
                if len(chosen):
                    file.seek(start)
                    data = file.read(int(ends_D[stop - 1]) - start)
                    begins = np.where(chosen > 0, ends_D[chosen - 1], 0) - start
                    spans = zip(begins.tolist(), (ends_D[chosen] - start).tolist(), strict=True)
                    yield chosen, [data[begin:end].decode() for begin, end in spans]
                first = stop


class _Writer:
    """Appends documents; `checkpoint` makes what is there so far survive, and opening again goes on from there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.state_file = folder / "read.json"
        self.state: dict[str, Any] = {"parts": [], "documents": 0, "bytes": 0, "topics": {}, "without_text": 0}
        if self.state_file.exists():
            self.state = json.loads(self.state_file.read_text(encoding="utf-8"))
        sizes = {"texts.utf8": self.state["bytes"], "ends.i64": self.state["documents"] * 8}
        sizes["given.i32"] = self.state["documents"] * 4
        self.files = {name: (folder / name).open("ab") for name in sizes}
        for name, size in sizes.items():
            self.files[name].truncate(size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            file.close()

    def add(self, texts: list[str], topics: list[str | None]) -> None:
        numbers: dict[str, int] = self.state["topics"]
        encoded = [text.encode() for text in texts]
        ends = self.state["bytes"] + np.cumsum([len(text) for text in encoded], dtype=np.int64)
        given = [NO_TOPIC if topic is None else numbers.setdefault(topic, len(numbers)) for topic in topics]
        for name, part in zip(self.files, (b"".join(encoded), ends, np.array(given, np.int32)), strict=True):
            self.files[name].write(part)
        self.state["documents"] += len(texts)
        self.state["bytes"] = int(ends[-1])

    def checkpoint(self, part: str) -> None:
        self.state["parts"].append(part)
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        write_json(self.state_file, self.state)


def store_documents(reader: Reader, folder: Path, *, at_most: int | None = None) -> Mapping[str, Any]:
    """Clean and store every document that has text, or the first `at_most`; finished parts are not read twice.

    Returns how many records there were, how many had no text (also a warning), and how many came with a topic.
    Raises ValueError where none has text.
    """
    progress = Progress("reading", "documents", at_most)
    with _Writer(folder) as writer:
        state = writer.state
        progress.add(state["documents"])
        for part in reader.parts():
            if part in state["parts"] or (at_most is not None and state["documents"] >= at_most):
                continue
            for batch in _batches(reader.read(part)):
                cleaned = [(clean(record.text or ""), record) for record in batch]
                kept = [(text, record) for text, record in cleaned if text]
                if len(kept) < len(cleaned):
                    empty = next(record.place for text, record in cleaned if not text)
                    state.setdefault("first_without_text", empty)
                    state["without_text"] += len(cleaned) - len(kept)
                if at_most is not None:
                    kept = kept[: at_most - state["documents"]]
                if kept:
                    writer.add([text for text, _ in kept], [record.topic for _, record in kept])
                progress.add(len(kept))
                if state["documents"] == at_most:
                    break
            writer.checkpoint(part)
    if state["without_text"]:
        where = f"the first at {state['first_without_text']}"
        log.warning("%d records have no text and are left out, %s", state["without_text"], where)
    if not state["documents"]:
        what = f"all {state['without_text']} records lack text" if state["without_text"] else "there are no records"
        raise ValueError(f"the data hold no document: {what}; give documents with text")
    documents = Documents(folder)
    return {
        "documents_read": state["documents"],
        "documents_without_text": state["without_text"],
        "documents_with_given_topic": int((documents.given_D != NO_TOPIC).sum()),
        "text_bytes": state["bytes"],
    }


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Up to 1,000 records, or about a MiB of text, at a time."""
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.text or "")
        if len(batch) == 1000 or size >= 1 << 20:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
