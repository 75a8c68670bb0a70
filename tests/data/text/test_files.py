from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from headdyn.data.text import files
from headdyn.data.text.files import TextFiles

TEXTS = ['Plain, with "quotes"', "two\nlines\n\nand a blank one", "", "naïve — 日本語 🙂", "a" * 5000]
TOPICS = ["x", "y", "x", "", "z"]


def read(path: Path, **settings: Any) -> list[tuple[str | None, str | None]]:
    files = TextFiles(path=path, **settings)
    return [(record.text, record.topic) for part in files.parts() for record in files.read(part)]


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(ValueError) as caught:
        read(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path: Path) -> Path:
    columns = {"number": list(range(5)), "text": TEXTS, "topic": TOPICS}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    match path.suffix:
        case ".jsonl" | ".ndjson":
            path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
        case ".json":
            path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        case ".csv" | ".tsv":
            delimiter = "\t" if path.suffix == ".tsv" else ","
            options = pa.csv.WriteOptions(delimiter=delimiter)
            pa.csv.write_csv(pa.table(columns), path, options)
        case ".parquet":
            pa.parquet.write_table(pa.table(columns), path, row_group_size=2)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_documents(tmp_path: Path, suffix: str) -> None:
    expected = [(text, topic or None) for text, topic in zip(TEXTS, TOPICS, strict=True)]
    path = write(tmp_path / f"data{suffix}")
    assert read(path) == expected
    assert read(path, topic_column="number") == [(text, str(n)) for n, text in enumerate(TEXTS)]
    by_topic = [(topic, topic or None) for topic in TOPICS]
    assert read(path, text_column="topic", topic_column="topic") == by_topic
    message = refusal(path, text_column="body")
    assert all(word in message for word in ("'body'", "'number', 'text', 'topic'", "data.text_column"))
    assert "data.topic_column" in refusal(path, topic_column="label")
    if suffix not in (".csv", ".tsv"):  # where all is text
        assert "number is a int" in refusal(path, text_column="number")


def test_a_column_that_is_not_wanted_may_hold_anything(tmp_path: Path) -> None:
    """Arrow guesses a CSV column's type from the first block; a later value that does not fit must not matter."""
    filler = "y" * 200
    rows = [f"{n},{filler}" for n in range(100_000)] + [f"not a number,{filler}"]
    (tmp_path / "a.csv").write_text("id,text\n" + "\n".join(rows) + "\n")
    assert len(read(tmp_path / "a.csv")) == 100_001


def test_plain_text(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one\nstill one\n\n \ntwo\n\n\n\nthree")
    assert read(file) == [(file.read_text(), None)]
    assert read(file, txt_documents="blank_lines") == [("one\nstill one\n", None), ("two\n", None), ("three", None)]
    files = TextFiles(path=file, txt_documents="blank_lines")
    assert [record.place.rpartition(":")[2] for record in files.read(str(file))] == ["1", "5", "9"]


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, text in (("b.txt", "second"), ("a/z.txt", "first"), (".hidden.txt", "no"), ("notes.md", "no")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    write(tmp_path / "c.jsonl")
    with caplog.at_level(logging.WARNING):
        texts = [text for text, _ in read(tmp_path)]
    assert texts == ["first", "second", *TEXTS]
    assert "1 files" in caplog.text and "no known type" in caplog.text


@pytest.mark.parametrize("size", [1, 2, 7, 40, 1 << 20])
def test_json_is_read_through_any_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """A list, one object, and objects one after another: against the whole file parsed at once."""
    monkeypatch.setattr(files, "_READ_CHARACTERS", size)
    rows: list[dict[str, Any]] = [{"text": f'a]}}{{[\\ {n} "', "deep": {"list": [1, [2], {}]}} for n in range(5)]
    for name, content in (
        ("list.json", json.dumps(rows, indent=2)),
        ("tight.json", " \n" + json.dumps(rows, separators=(",", ":")) + "\n \n"),
        ("lines.json", "\n".join(map(json.dumps, rows))),
    ):
        (tmp_path / name).write_text(content)
        assert [text for text, _ in read(tmp_path / name)] == [row["text"] for row in rows]
    (tmp_path / "one.json").write_text(json.dumps(rows[0]))
    assert len(read(tmp_path / "one.json")) == 1
    (tmp_path / "empty.json").write_text(" [ ] ")
    assert read(tmp_path / "empty.json") == []
    for cut in (json.dumps(rows)[:-1], json.dumps(rows)[:-20], json.dumps(rows) + "[]"):
        (tmp_path / "cut.json").write_text(cut)
        assert "cut.json is not JSON" in refusal(tmp_path / "cut.json")


def test_bad_files_are_named_with_the_place_and_the_fix(tmp_path: Path) -> None:
    def file(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    latin = "caf\xe9".encode("latin-1")
    for name, content in (
        ("l.jsonl", b'{"text": "' + latin + b'"}\n'),
        ("l.json", b'[{"text": "' + latin + b'"}]'),
        ("l.txt", latin),
        ("l.csv", b"text\n" + latin + b"\n"),
    ):
        message = refusal(file(name, content))
        assert "is not utf-8 text" in message and "data.encoding" in message and name in message
        assert read(tmp_path / name, encoding="latin-1") == [("café", None)]
    assert "0xe9" in refusal(tmp_path / "l.jsonl")
    assert "broken.jsonl:2 is not JSON" in refusal(file("broken.jsonl", b'{"text": "a"}\n{"text": \n'))
    assert "strings.jsonl:1 is a str" in refusal(file("strings.jsonl", b'"a"\n"b"\n'))
    assert "list.jsonl:2: text is a list" in refusal(file("list.jsonl", b'{"text": "a"}\n{"text": ["b"]}\n'))
    assert "'.docx'" in refusal(file("a.docx", b"x")) and ".jsonl" in refusal(tmp_path / "a.docx")
    assert "does not exist" in refusal(tmp_path / "nowhere.jsonl")
    (tmp_path / "empty").mkdir()
    assert "no files" in refusal(tmp_path / "empty")
    assert "cannot be read as .parquet" in refusal(file("a.parquet", b"not parquet"))
    for suffix in ("jsonl", "json", "csv", "tsv", "parquet", "txt"):
        assert f"nothing.{suffix} is empty" in refusal(file(f"nothing.{suffix}", b""))
        (tmp_path / suffix).mkdir()  # in a folder, an empty file adds nothing
        file(f"{suffix}/nothing.{suffix}", b"")
        file(f"{suffix}/a.txt", b"text")
        assert ("text", None) in read(tmp_path / suffix)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "txt"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, suffix: str) -> None:
    contents = {"jsonl": '{"text": "a"}\n', "json": '[{"text": "a"}]', "csv": "text\na\n", "txt": "a"}
    (tmp_path / f"a.{suffix}").write_text(contents[suffix], encoding="utf-8-sig")
    assert read(tmp_path / f"a.{suffix}") == [("a", None)]


def test_a_record_may_lack_its_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"other": 1}\n\n{"text": null}\n')
    assert read(tmp_path / "a.jsonl") == [("a", None), (None, None), (None, None)]


def test_a_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    def fingerprint(folder: str, *contents: str) -> list[str]:
        (tmp_path / folder).mkdir()
        for number, content in enumerate(contents):
            (tmp_path / folder / f"{folder}{number}.txt").write_text(content)
        return TextFiles(path=tmp_path / folder).fingerprint()

    first = fingerprint("a", "one", "two")
    assert first == fingerprint("b", "one", "two")
    assert first != fingerprint("c", "two", "one")
    assert first != fingerprint("d", "one", "two ")
    assert first != fingerprint("e", "onetwo")
