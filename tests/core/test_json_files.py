from pathlib import Path

import pytest

from headdyn.core.json_files import json_lines, read_json, write_json


def test_what_is_written_is_read_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ü": [1, None]})
    assert read_json(tmp_path / "a.json") == {"ü": [1, None]} and len([*tmp_path.iterdir()]) == 1
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert read_json(tmp_path / "a.json") == {"ü": [1, None]}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")


def test_lines_are_counted_from_one_blank_ones_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('1\n\n{"a": 2}\n[\n')
    lines = json_lines(path)
    assert [next(lines), next(lines)] == [(f"{path}:1", 1), (f"{path}:3", {"a": 2})]
    with pytest.raises(ValueError, match=r"a\.jsonl:4 is not JSON"):
        next(lines)
