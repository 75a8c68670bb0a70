"""Pairs of prompts from the user's file: a clean one, a corrupted one, the right answer and the wrong one.

This suits any task that contrasts two answers: indirect objects, subject and verb, greater than … (science.md §21).
Imports neither torch nor a tokenizer library, so that a bad line is refused before anything is loaded.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headdyn.core.json_files import json_lines
from headdyn.core.settings import Count, settings
from headdyn.core.store import file_hash
from headdyn.data.prompts import Prompts, Tokenizer, grouped, prompt_row, require_plain

FIELDS = ("clean", "corrupted", "right", "wrong")
CONTROL = "control"  # the group of pairs whose corrupted prompts do not mislead
_SUFFIXES = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class PromptPair:
    """One line of the file, the independent unit of every statistic; `place` is the file and the line."""

    clean: str
    corrupted: str
    right: str
    wrong: str
    group: str
    place: str

    @property
    def is_bug(self) -> bool:
        """Whether the corrupted prompt misleads: true for all pairs but those of the group "control"."""
        return self.group != CONTROL


def read_pairs(path: Path) -> tuple[PromptPair, ...]:
    """The pairs in a JSONL, CSV or Parquet file with the columns clean, corrupted, right, wrong and perhaps group.

    Raises ValueError, which names the bad line or row and what it must have, or the file if that is missing, of unknown
    type, damaged, empty or not UTF-8.
    """
    if not path.is_file() or path.suffix.lower() not in _SUFFIXES:
        fact = "is of no known type" if path.is_file() else "does not exist"
        raise ValueError(f"data.path={path} {fact}; give a file of pairs: {', '.join(_SUFFIXES)}")
    try:
        pairs = tuple(_pair(place, record) for place, record in _records(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"data.path={path} is not UTF-8 text ({error}); save it as UTF-8") from error
    if not pairs:
        raise ValueError(f"data.path={path} holds no pair; give lines with {', '.join(FIELDS)}")
    return pairs


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Every record with its place, FILE:LINE or "FILE, row NUMBER"."""
    if path.suffix.lower() == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            records = pq.read_table(path).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"data.path={path} is no whole Parquet file ({error}); write it again") from error
        for number, record in enumerate(records, 1):
            yield f"{path}, row {number}", record
    elif path.suffix.lower() == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for record in reader:
                if None in record:
                    raise ValueError(
                        f"{path}:{reader.line_num} has more cells than columns; quote values that hold commas"
                    )
                yield f"{path}:{reader.line_num}", record
    else:
        yield from json_lines(path)


def _pair(place: str, record: Any) -> PromptPair:
    values = record if isinstance(record, Mapping) else {}
    for field in FIELDS:
        if not isinstance(values.get(field), str) or not values[field]:
            raise ValueError(f"{place} has {field}={values.get(field)!r}; give text for each of {', '.join(FIELDS)}")
    if values["right"] == values["wrong"]:
        raise ValueError(f"{place}: right and wrong are both {values['right']!r}; give two answers")
    group = values.get("group") or "pairs"
    return PromptPair(**{field: values[field] for field in FIELDS}, group=str(group), place=place)


@settings
class PromptPairs:
    """The pairs of a file as prompts; a conf/data option. `prompts(tokenizer)` gives them in tokens.

    An answer continues its prompt, so it begins with a space where the text needs one. Δ = log p(right) − log p(wrong)
    should be high after the clean prompt and low after the corrupted one. Patches carry values between the two prompts:
    position by position if they have equally many tokens, else in the longest token block that they share after their
    first difference. `pairs` is how many pairs to read at most; null is all.
    """

    path: str
    pairs: Count | None = None
    allow_chat_template: bool = False

    def __post_init__(self) -> None:
        if not any(pair.is_bug for pair in self._read()):
            raise ValueError(f"data.path={self.path} holds pairs of the group {CONTROL!r} alone; add others")

    def _read(self) -> tuple[PromptPair, ...]:
        return read_pairs(Path(self.path))[: self.pairs]

    def fingerprint(self) -> str:
        """SHA-256 of the file, by which a run notices that the file was edited."""
        return file_hash(Path(self.path))

    def prompts(self, tokenizer: Tokenizer) -> Prompts:
        """The pairs in this tokenizer's tokens.

        Raises ValueError for a chat model's tokenizer (unless allowed), and, naming the line, for an answer whose
        tokens do not simply follow the prompt's, for answers that share all tokens of the shorter one, and for prompts
        without a common token block.
        """
        require_plain(tokenizer, self.allow_chat_template)
        pairs, rows = self._read(), []
        for unit, pair in enumerate(pairs):
            texts, answers = (pair.clean, pair.corrupted), (pair.right, pair.wrong)
            try:
                rows.append(prompt_row(tokenizer, texts, answers, unit=unit, group=pair.group))
            except ValueError as error:
                raise ValueError(f"{pair.place}: {error}") from error
        return Prompts(
            name="prompt pairs",
            pairs=pairs,
            groups=grouped(rows),
            original_prompt=rows[0],
            decode=tokenizer.decode,
            facts={"pairs": len(pairs), "sha256": self.fingerprint()},
        )
