"""A run's record as others read it: whole, or damaged with the reason."""

from pathlib import Path

import pytest

from headdyn.core.run_folder import RunRecord
from tests.report.folders import run


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("summary.json", b"[]", "holds no scalars by name"),
        ("summary.json", b"", "holds no JSON"),
        ("heads.parquet", b"PAR1", "holds no table"),
        ("patterns.safetensors", b"", "patterns.safetensors is damaged"),
        ("patterns.safetensors", b"\xff" * 64, "patterns.safetensors is damaged"),
        ("manifest.json", b"[]", "is no run's record"),
    ],
)
def test_a_damaged_file_makes_the_record_damaged_and_is_named(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    folder = tmp_path / run(tmp_path)["name"]
    assert RunRecord.read(folder).status == "complete"
    (folder / name).write_bytes(content)
    record = RunRecord.read(folder)
    assert record.status == "damaged" and words in record.manifest["error"] and name in record.manifest["error"]
