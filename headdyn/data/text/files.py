"""Documents from files: JSON lines, JSON, CSV, TSV, Parquet and plain text, one file or a folder of them.

Every format is read as a stream: what is held at once is one document, or one block of a columnar file.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from headdyn.data.text.documents import Record
from headdyn.data.text.paths import SUFFIXES, TxtDocuments, files_of

log = logging.getLogger(__name__)

DEFAULT_TOPIC_COLUMN = "topic"
_READ_CHARACTERS = 1 << 20
_CSV_BLOCK_BYTES = 16 << 20  # a row must fit in one
_SPACES = " \t\r\n"


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """The documents in a file, or in all files of a known type under a folder, in the order of their paths.

    A record's text is its `text_column`, its given topic its `topic_column`; `topic_column=None` takes a column called
    "topic" where there is one. Plain text has no columns: a .txt file is one document (`file`), or each of its
    paragraphs set apart by blank lines is one (`blank_lines`). Encodings are Python's names; Parquet has its own.
    Errors are ValueErrors that name file and line, or record.
    """

    path: Path
    text_column: str = "text"
    topic_column: str | None = None
    encoding: str = "utf-8"
    txt_documents: TxtDocuments = "file"

    def parts(self) -> list[str]:
        """The files."""
        files, unknown = files_of(self.path)
        if unknown:
            log.warning("%d files under %s are of no known type and left out", unknown, self.path)
        return [str(file) for file in files]

    def read(self, part: str) -> Iterator[Record]:
        """One file's documents."""
        file = Path(part)
        try:
            yield from _READERS[file.suffix.lower()](self, file)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file} is not {self.encoding} text: byte {error.object[error.start]:#04x} cannot stand where it does "
                f"({error.reason}); name its encoding with data.encoding=..., e.g. latin-1"
            ) from error
        except pa.ArrowInvalid as error:
            raise ValueError(f"{file} cannot be read as {file.suffix}: {str(error).splitlines()[0]}") from error

    def fingerprint(self) -> list[str]:
        """SHA-256 of every file's bytes in reading order: what the files hold, wherever they lie."""
        hashes = []
        for file in files_of(self.path)[0]:
            with file.open("rb") as opened:
                hashes.append(file.suffix.lower() + " " + hashlib.file_digest(opened, "sha256").hexdigest())
        return hashes

    @property
    def _encoding(self) -> str:
        """Python's own name for UTF-8 that may begin with a byte-order mark, as some editors write it."""
        return "utf-8-sig" if codecs.lookup(self.encoding).name == "utf-8" else self.encoding

    def _wanted(self, names: Iterable[str]) -> list[str]:
        columns = (self.text_column, self.topic_column or DEFAULT_TOPIC_COLUMN)
        return [name for name in dict.fromkeys(columns) if name in names]

    def _record(self, values: Mapping[str, Any], names: Iterable[str], place: str) -> Record:
        text, topic = values.get(self.text_column), values.get(self.topic_column or DEFAULT_TOPIC_COLUMN)
        if text is not None and not isinstance(text, str):
            raise ValueError(
                f"{place}: {self.text_column} is a {type(text).__name__}, not text; name the column that holds the "
                f"text with data.text_column=... ({_listed(names)})"
            )
        return Record(text, None if topic in (None, "") else str(topic), place)

    def _check_columns(self, names: Iterable[str], place: str) -> None:
        for setting, column in (("text_column", self.text_column), ("topic_column", self.topic_column)):
            if column is not None and column not in names:
                raise ValueError(
                    f"{place} has no column {column!r}; it has {_listed(names)}; set data.{setting} to one of them"
                )

    def _jsonl(self, file: Path) -> Iterator[Record]:
        with file.open(encoding=self._encoding) as lines:
            number = 0
            seen = False
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    values = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{file}:{number} is not JSON ({error}); mend or remove the line") from error
                yield self._json_record(values, f"{file}:{number}", first=not seen)
                seen = True

    def _json(self, file: Path) -> Iterator[Record]:
        for number, values in enumerate(_json_values(file, self._encoding), 1):
            yield self._json_record(values, f"{file}, record {number}", first=number == 1)

    def _json_record(self, values: Any, place: str, *, first: bool) -> Record:
        if not isinstance(values, dict):
            raise ValueError(
                f"{place} is a {type(values).__name__}, not an object with columns; write it as "
                f'{{"{self.text_column}": ...}}'
            )
        if first:  # later records may lack a key; they count as without it
            self._check_columns(values, place)
        return self._record(values, values, place)

    def _csv(self, file: Path) -> Iterator[Record]:
        if file.stat().st_size == 0:
            return
        read = pa.csv.ReadOptions(encoding=self.encoding, block_size=_CSV_BLOCK_BYTES)
        delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
        parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        try:
            with pa.csv.open_csv(file, read_options=read, parse_options=parse) as reader:
                names = reader.schema.names
            self._check_columns(names, str(file))
            wanted = self._wanted(names)  # the others are not converted: their types may change half-way
            types = {name: pa.string() for name in wanted}
            convert = pa.csv.ConvertOptions(include_columns=wanted, column_types=types, strings_can_be_null=False)
            with pa.csv.open_csv(file, read_options=read, parse_options=parse, convert_options=convert) as reader:
                yield from self._rows(file, reader, names)
        except pa.ArrowInvalid as error:
            if "utf8" in str(error).lower():
                raise ValueError(
                    f"{file} is not {self.encoding} text ({str(error).splitlines()[0]}); "
                    "name its encoding with data.encoding=..., e.g. latin-1"
                ) from error
            raise

    def _parquet(self, file: Path) -> Iterator[Record]:
        if file.stat().st_size == 0:
            return
        with pa.parquet.ParquetFile(file) as opened:
            names = opened.schema_arrow.names
            self._check_columns(names, str(file))
            yield from self._rows(file, opened.iter_batches(batch_size=1000, columns=self._wanted(names)), names)

    def _rows(self, file: Path, batches: Iterable[pa.RecordBatch], names: list[str]) -> Iterator[Record]:
        rows = (values for batch in batches for values in batch.to_pylist())
        for number, values in enumerate(rows, 1):
            yield self._record(values, names, f"{file}, record {number}")

    def _txt(self, file: Path) -> Iterator[Record]:
        if self.txt_documents == "file":
            yield Record(file.read_text(encoding=self._encoding), None, str(file))
            return
        paragraph: list[str] = []
        begun = 1
        with file.open(encoding=self._encoding) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    begun = begun if paragraph else number
                    paragraph.append(line)
                elif paragraph:
                    yield Record("".join(paragraph), None, f"{file}:{begun}")
                    paragraph = []
        if paragraph:
            yield Record("".join(paragraph), None, f"{file}:{begun}")


_READERS: Mapping[str, Callable[[TextFiles, Path], Iterator[Record]]] = {
    ".jsonl": TextFiles._jsonl,
    ".ndjson": TextFiles._jsonl,
    ".json": TextFiles._json,
    ".csv": TextFiles._csv,
    ".tsv": TextFiles._csv,
    ".parquet": TextFiles._parquet,
    ".txt": TextFiles._txt,
}
assert tuple(_READERS) == SUFFIXES


def _json_values(file: Path, encoding: str) -> Iterator[Any]:
    """The elements of a JSON array, or JSON values one after another, without holding more than one and a buffer."""
    decoder = json.JSONDecoder()
    with file.open(encoding=encoding) as opened:
        buffer = ""
        while not buffer and (more := opened.read(_READ_CHARACTERS)):
            buffer = more.lstrip(_SPACES)
        in_array = buffer.startswith("[")
        buffer = buffer[in_array:]
        ended = False
        while not ended:
            # Reading as much again as is there keeps a huge value from being parsed too often.
            more = opened.read(max(_READ_CHARACTERS, len(buffer)))
            ended, buffer = not more, (buffer + more).lstrip(_SPACES)
            while buffer and not (in_array and buffer[0] == "]"):
                try:
                    value, end = decoder.raw_decode(buffer)
                except json.JSONDecodeError as error:
                    if ended:
                        raise ValueError(f"{file} is not JSON ({error.msg} near {buffer[:40]!r}); mend it") from error
                    break
                yield value
                buffer = buffer[end:].lstrip(_SPACES + ",")
        if in_array and buffer.rstrip(_SPACES) != "]":
            raise ValueError(f"{file} is not JSON: its list does not end where the file does; mend it")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "no columns"
