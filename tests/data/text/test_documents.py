from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from headdyn.data.text.documents import NO_TOPIC, Documents, Record, clean, store_documents

TEXTS = [f"document {n} " + "é🙂x" * (n * 7 % 50) for n in range(40)]


class Parts:
    """A reader of four parts, which stops before the record numbered `stop` as a lost connection would."""

    def __init__(self, texts: list[str | None], stop: int | None = None) -> None:
        self.texts, self.stop = texts, stop
        self.read_parts: list[str] = []

    def parts(self) -> list[str]:
        return ["0", "1", "2", "3"]

    def read(self, part: str) -> Iterator[Record]:
        self.read_parts.append(part)
        size = len(self.texts) // 4
        for number in range(int(part) * size, (int(part) + 1) * size):
            if number == self.stop:
                raise ConnectionError("lost")
            topic = None if number % 3 == 0 else f"topic {number % 3}"
            yield Record(self.texts[number], topic, f"place {number}")


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("e\u0301", "\u00e9"),  # composed
        ("x² ﬁ Ａ", "x² ﬁ Ａ"),  # but not made compatible
        ("a\r\nb\rc\u2028d\x0ce", "a\nb\nc\nd\ne"),
        ("a \t\u00a0\u3000 b", "a b"),
        ("  a  \n   b \n\n\n\n c  ", "a\nb\n\nc"),
        ("\ufeffa\u200bb\u00adc\x00d\x1be", "abcde"),
        ("नमस्\u200dते", "नमस्\u200dते"),  # a joiner that changes what one sees
        ("\ud83d alone", "\ufffd alone"),
        ("<unk> & &amp; <b>", "<unk> & &amp; <b>"),
        (" \n\t\u200b ", ""),
    ],
)
def test_cleaning(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned
    assert clean(cleaned) == cleaned
    assert clean(raw).encode().decode() == cleaned


def test_what_is_stored_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned = [clean(text) for text in TEXTS]
    rng = np.random.default_rng(0)
    for chunk_bytes in (1, 50, 300, 10**6):
        monkeypatch.setattr("headdyn.data.text.documents.CHUNK_BYTES", chunk_bytes)
        facts = store_documents(Parts(list(TEXTS)), tmp_path / str(chunk_bytes))
        documents = Documents(tmp_path / str(chunk_bytes))
        for rows in (None, np.arange(40), np.array([0, 39]), np.sort(rng.permutation(40)[:17]), np.array([], int)):
            expected = range(40) if rows is None else rows.tolist()
            chunks = list(documents.chunks(rows))
            assert [row for part, _ in chunks for row in part] == list(expected)
            assert [text for _, texts in chunks for text in texts] == [cleaned[row] for row in expected]
            sizes = [sum(len(text.encode()) for text in texts) for _, texts in chunks]
            assert all(size <= chunk_bytes or len(texts) == 1 for size, (_, texts) in zip(sizes, chunks, strict=True))
    assert len(documents) == facts["documents_read"] == 40
    assert facts["documents_with_given_topic"] == 26 and facts["text_bytes"] == sum(len(t.encode()) for t in cleaned)
    names = [None if t == NO_TOPIC else documents.given_names[t] for t in documents.given_D]
    assert names == [None if n % 3 == 0 else f"topic {n % 3}" for n in range(40)]
    assert documents.bytes_D.tolist() == [len(text.encode()) for text in cleaned]


def test_reading_goes_on_after_a_stop(tmp_path: Path) -> None:
    store_documents(Parts(list(TEXTS)), tmp_path / "whole")
    with pytest.raises(ConnectionError):
        store_documents(Parts(list(TEXTS), stop=25), tmp_path / "torn")
    again = Parts(list(TEXTS))
    facts = store_documents(again, tmp_path / "torn")
    assert len(Documents(tmp_path / "torn")) == 40 and again.read_parts == ["2", "3"] and facts["documents_read"] == 40
    assert len(list((tmp_path / "whole").iterdir())) == 8
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "torn" / file.name).read_bytes() == file.read_bytes()


def test_records_without_text_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = [None if n in (3, 20) else " \u200b" if n == 30 else text for n, text in enumerate(TEXTS)]
    with caplog.at_level(logging.WARNING):
        facts = store_documents(Parts(texts), tmp_path / "d")
    assert facts["documents_read"] == 37 and facts["documents_without_text"] == 3
    assert "3 records have no text" in caplog.text and "place 3" in caplog.text
    with pytest.raises(ValueError, match="all 40 records lack text"):
        store_documents(Parts([None] * 40), tmp_path / "none")
    with pytest.raises(ValueError, match="there are no records"):
        store_documents(Parts([]), tmp_path / "empty")


def test_no_more_than_asked_for(tmp_path: Path) -> None:
    reader = Parts(list(TEXTS))
    assert store_documents(reader, tmp_path / "d", at_most=13)["documents_read"] == 13
    assert reader.read_parts == ["0", "1"] and len(Documents(tmp_path / "d")) == 13
