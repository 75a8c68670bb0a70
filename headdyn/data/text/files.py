"""Documents from files: JSON lines, JSON, CSV, TSV, Parquet and plain text, one file or a folder of them.

Every format is read as a stream: one document, or one block of a columnar file, is in memory at a time.
"""

import codecs
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from headdyn.core.json_files import json_lines
from headdyn.core.store import file_hash
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

    A record's text is its `text_column`, its topic its `topic_column`; `topic_column=None` uses a column called "topic"
    if there is one. Plain text has no columns: a .txt file is one document (`file`), or each paragraph between blank
    lines is one (`blank_lines`). `encoding` is one of Python's names; Parquet does not need it. Errors are ValueErrors
    that name the file and, where there is one, the line or record.
    """

    path: Path
    text_column: str = "text"
    topic_column: str | None = None
    encoding: str = "utf-8"
    txt_documents: TxtDocuments = "file"

    def parts(self) -> list[str]:
        """All files as one part: reading them again after an interruption takes seconds."""
        unknown = files_of(self.path)[1]
        if unknown:
            log.warning("%d files under %s are of no known type and left out", unknown, self.path)
        return [str(self.path)]

    def read(self, part: str) -> Iterator[Record]:
        for file in files_of(Path(part))[0]:
            if file.stat().st_size:
                yield from self._read(file)

    def fingerprint(self) -> list[str]:
        """Suffix and SHA-256 of every file, in reading order; they do not depend on where the files are."""
        return [f"{file.suffix.lower()} {file_hash(file)}" for file in files_of(self.path)[0]]

    def _read(self, file: Path) -> Iterator[Record]:
        try:
            yield from _READERS[file.suffix.lower()](self, file)
        except UnicodeDecodeError as error:
            problem = f"byte {error.object[error.start]:#04x} is not possible where it stands ({error.reason})"
        except pa.ArrowInvalid as error:
            problem = str(error).splitlines()[0]
            if "utf8" not in problem.lower():
                raise ValueError(f"{file} cannot be read as {file.suffix}: {problem}") from error
        else:
            return
        raise ValueError(
            f"{file} is not {self.encoding} text: {problem}; name its encoding with data.encoding=..., e.g. latin-1"
        )

    @property
    def _encoding(self) -> str:
        """`encoding`, or for UTF-8 the variant that skips the byte-order mark which some editors write."""
        return "utf-8-sig" if codecs.lookup(self.encoding).name == "utf-8" else self.encoding

    def _check_columns(self, names: Iterable[str], place: str) -> None:
        for setting, column in (("text_column", self.text_column), ("topic_column", self.topic_column)):
            if column is not None and column not in names:
                raise ValueError(
                    f"{place} has no column {column!r}; it has {_listed(names)}; set data.{setting} to one of them"
                )

    def _record(self, values: Mapping[str, Any], names: Iterable[str], place: str) -> Record:
        text, topic = values.get(self.text_column), values.get(self.topic_column or DEFAULT_TOPIC_COLUMN)
        if text is not None and not isinstance(text, str):
            raise ValueError(
                f"{place}: {self.text_column} is a {type(text).__name__}, not text; name the column that holds the "
                f"text with data.text_column=... ({_listed(names)})"
            )
        return Record(text, None if topic in (None, "") else str(topic), place)

    def _jsonl(self, file: Path) -> Iterator[Record]:
        return self._objects(json_lines(file, self._encoding))

    def _json(self, file: Path) -> Iterator[Record]:
        values = enumerate(_json_values(file, self._encoding), 1)
        return self._objects((f"{file}, record {number}", value) for number, value in values)

    def _objects(self, values: Iterable[tuple[str, Any]]) -> Iterator[Record]:
        """The records of JSON values; each value comes with its place."""
        checked = False
        for place, value in values:
            if not isinstance(value, dict):
                raise ValueError(
                    f"{place} is a {type(value).__name__}, not an object with columns; write it as "
                    f'{{"{self.text_column}": ...}}'
                )
            if not checked:  # later records may lack a key; they count as records without text or topic
                self._check_columns(value, place)
                checked = True
            yield self._record(value, value, place)

    def _csv(self, file: Path) -> Iterator[Record]:
        reading = pa.csv.ReadOptions(encoding=self.encoding, block_size=_CSV_BLOCK_BYTES)
        delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
        parsing = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        with pa.csv.open_csv(file, read_options=reading, parse_options=parsing) as reader:
            names = reader.schema.names
        columns = self._columns(file, names)  # the others are not converted: their types may change half-way
        conversion = pa.csv.ConvertOptions(
            include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
        )
        with pa.csv.open_csv(file, read_options=reading, parse_options=parsing, convert_options=conversion) as reader:
            yield from self._rows(file, reader, names)

    def _parquet(self, file: Path) -> Iterator[Record]:
        with pa.parquet.ParquetFile(file) as opened:
            names = opened.schema_arrow.names
            batches = opened.iter_batches(batch_size=1000, columns=self._columns(file, names))
            yield from self._rows(file, batches, names)

    def _columns(self, file: Path, names: list[str]) -> list[str]:
        """The columns to read: that of the texts, and that of the topics where there is one."""
        self._check_columns(names, str(file))
        columns = (self.text_column, self.topic_column or DEFAULT_TOPIC_COLUMN)
        return [name for name in dict.fromkeys(columns) if name in names]

    def _rows(self, file: Path, batches: Iterable[pa.RecordBatch], names: list[str]) -> Iterator[Record]:
        rows = (values for batch in batches for values in batch.to_pylist())
        for number, values in enumerate(rows, 1):
            yield self._record(values, names, f"{file}, record {number}")

    def _txt(self, file: Path) -> Iterator[Record]:
        if self.txt_documents == "file":
            yield Record(file.read_text(encoding=self._encoding), None, str(file))
            return
        with file.open(encoding=self._encoding) as lines:
            for is_blank, numbered in itertools.groupby(enumerate(lines, 1), lambda line: not line[1].strip()):
                if not is_blank:
                    (first, *_), paragraph = zip(*numbered, strict=True)
                    yield Record("".join(paragraph), None, f"{file}:{first}")


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
    """The elements of a JSON array, or JSON values one after another; one value and a buffer are in memory."""
    decoder = json.JSONDecoder()
    with file.open(encoding=encoding) as opened:
        buffer = ""
        while not buffer and (more := opened.read(_READ_CHARACTERS)):
            buffer = more.lstrip(_SPACES)
        in_array = buffer.startswith("[")
        buffer = buffer[in_array:]
        ended = False
        while not ended:
            # The buffer is doubled each time, so that a huge value is not parsed too often.
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
