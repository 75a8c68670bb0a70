"""A run's record as others read it: whole, or damaged with the reason."""

from pathlib import Path

import pytest

from headdyn.core.json_files import read_json, write_json
from headdyn.core.records import Metric
from headdyn.core.run_folder import RunFolder, RunRecord
from headdyn.core.store import StageInterruptedError, file_hash
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


def test_scalars_of_a_failed_run_that_are_none_make_its_record_damaged(tmp_path: Path) -> None:
    folder = tmp_path / run(tmp_path, status="failed")["name"]
    assert RunRecord.read(folder).status == "failed"
    (folder / "summary.json").write_text("[]")
    record = RunRecord.read(folder)
    assert (record.status, record.scalars) == ("damaged", {}) and "holds no scalars" in record.manifest["error"]


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), "interrupted"), (StageInterruptedError("stop"), "interrupted"), (ValueError("x"), "failed")],
)
def test_a_run_that_is_stopped_is_told_from_one_that_fails(tmp_path: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), RunFolder(tmp_path, {}):
        raise error
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest["status"] == status and ("traceback" in manifest) == (status == "failed")


def test_an_open_end_of_a_metrics_range_is_recorded_as_none(tmp_path: Path) -> None:
    with RunFolder(tmp_path, {}) as folder:
        folder.describe("a", "about", {"below": Metric(meaning="m", high=1.0), "above": Metric(meaning="m", low=0.0)})
    metrics = read_json(tmp_path / "manifest.json")["glossary"]["a"]["metrics"]
    assert [(metrics[name]["low"], metrics[name]["high"]) for name in ("below", "above")] == [(None, 1.0), (0.0, None)]


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "heads.parquet"])
def test_a_changed_digit_is_seen_by_the_checksum_that_the_run_left(tmp_path: Path, name: str) -> None:
    folder = tmp_path / run(tmp_path)["name"]
    sums = {each: file_hash(folder / each) for each in ("metrics.jsonl", "summary.json", "heads.parquet")}
    write_json(folder / "manifest.json", {**read_json(folder / "manifest.json"), "sha256": sums})
    assert RunRecord.read(folder).status == "complete"
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content.replace(b"2", b"3", 1) if b"2" in content else content + b" ")
    record = RunRecord.read(folder)
    assert record.status == "damaged" and f"{name} is damaged" in record.manifest["error"]
    (folder / name).unlink()
    assert RunRecord.read(folder).status == "damaged"


def test_a_complete_run_leaves_checksums_of_what_it_measured(tmp_path: Path) -> None:
    with RunFolder(tmp_path, {}) as folder:
        (tmp_path / "metrics.jsonl").write_text("")
        folder.summarise(a=1.0)
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest["sha256"] == {name: file_hash(tmp_path / name) for name in ("summary.json", "metrics.jsonl")}
