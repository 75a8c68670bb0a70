"""A run's record as others read it: whole, or damaged with the reason."""

import logging
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from headdyn.core.json_files import read_json, write_json
from headdyn.core.records import Findings, HeadTable, Metric
from headdyn.core.run_folder import (
    LogFile,
    RunFolder,
    RunRecord,
    add_checksums,
    snapshot_table,
    snapshot_table_is_sound,
    write_snapshot_table,
)
from headdyn.core.special_charts import text_tables
from headdyn.core.store import StageInterruptedError
from tests.report.folders import run

FACTS = {name: {} for name in ("factors", "machine", "config")}


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


def test_a_run_begins_without_what_an_earlier_run_of_its_folder_left(tmp_path: Path) -> None:
    """Else a figure of the page, written after the checksums, would be sealed under those of the next run."""
    own, step = HeadTable.whole("selectivity", 0.1, n=9, unit="sequence"), 100
    with RunFolder(tmp_path, {**FACTS, "name": tmp_path.name}) as folder:
        folder.add("attention", Findings(table=own, tables={"attention_profiles": pa.table({"head": [0]})}))
        folder.figure("attention", "map", text_tables({"a": [["x"], ["1"]]}, widths=[9]))
    write_snapshot_table(tmp_path, step, own)
    figure = tmp_path / "figures" / "training_loss.json"
    figure.write_text("1")
    assert RunRecord.read(tmp_path).status == "complete" and snapshot_table_is_sound(tmp_path, step)
    with RunFolder(tmp_path, {**FACTS, "name": tmp_path.name}) as folder:
        left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
        assert left == {"log.txt", "manifest.json"}
        folder.describe("attention", "about", {})
        folder.add("attention", Findings(table=own))
    figure.write_text("2")
    assert RunRecord.read(tmp_path).status == "complete"
    add_checksums(tmp_path, [figure])
    assert RunRecord.read(tmp_path).status == "complete"
    figure.write_text("3")
    assert RunRecord.read(tmp_path).status == "damaged"


def test_a_snapshots_table_is_sound_as_it_was_written_alone(tmp_path: Path) -> None:
    """Every bit of it changed, and the table of another run or another step in its place."""
    first, second = (tmp_path / name for name in ("first", "second"))
    for number, folder in enumerate((first, second)):
        folder.mkdir()
        for step in (100, 200):
            value = number + step / 1000
            write_snapshot_table(folder, step, HeadTable.whole("selectivity", value, n=9, unit="sequence"))
    path = snapshot_table(first, 100)
    content = path.read_bytes()
    for place in range(0, 8 * len(content), 7):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        assert not snapshot_table_is_sound(first, 100)
    for other in (snapshot_table(second, 100), snapshot_table(first, 200)):
        shutil.copy(other, path)
        assert not snapshot_table_is_sound(first, 100)
    shutil.copy(snapshot_table(second, 100).with_suffix(".json"), path.with_suffix(".json"))
    shutil.copy(snapshot_table(second, 100), path)
    assert not snapshot_table_is_sound(first, 100)  # whole, with its checksum, of another run
    path.write_bytes(content)
    path.with_suffix(".json").unlink()
    assert snapshot_table_is_sound(first, 100)  # as earlier versions left it
    path.unlink()
    assert not snapshot_table_is_sound(first, 100)


def test_an_open_end_of_a_metrics_range_is_recorded_as_none(tmp_path: Path) -> None:
    with RunFolder(tmp_path, {}) as folder:
        folder.describe("a", "about", {"below": Metric(meaning="m", high=1.0), "above": Metric(meaning="m", low=0.0)})
    metrics = read_json(tmp_path / "manifest.json")["glossary"]["a"]["metrics"]
    assert [(metrics[name]["low"], metrics[name]["high"]) for name in ("below", "above")] == [(None, 1.0), (0.0, None)]


def test_a_changed_bit_in_any_file_of_a_complete_run_makes_its_record_damaged(tmp_path: Path) -> None:
    source = tmp_path / "source"
    made = source / run(source)["name"]
    manifest = read_json(made / "manifest.json")
    folder = tmp_path / "run"
    with RunFolder(folder, {name: manifest[name] for name in ("name", "factors", "machine", "config")}) as record:
        for name in ("summary.json", "metrics.jsonl", "heads.parquet", "patterns.safetensors"):
            shutil.copyfile(made / name, folder / name)
        record.figure("loss", "by_position", text_tables({"a": [["1.5"]]}, widths=[40]))
        record.describe("loss", "about", {"loss": Metric(meaning="m")})
    assert RunRecord.read(folder).status == "complete"
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "log.txt")
    assert len(files) == 6
    generator = random.Random(0)
    for path in files:
        content = path.read_bytes()
        for _ in range(40):
            place, bit = generator.randrange(len(content)), 1 << generator.randrange(8)
            path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            record = RunRecord.read(folder)
            assert record.status == "damaged", (path.name, place, bit)
            named = path.name in record.manifest["error"]
            assert named or path.name == "manifest.json", "a changed checksum blames the file that it is of"
        path.unlink()
        assert RunRecord.read(folder).status in ("damaged", "absent")
        path.write_bytes(content)
    assert RunRecord.read(folder).status == "complete"
    kept = read_json(folder / "manifest.json")
    write_json(folder / "manifest.json", dict(reversed(kept.items())))
    assert RunRecord.read(folder).status == "complete", "the order of a manifest's entries says nothing"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_log_on_a_full_disk_costs_its_line_alone(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.Logger("a test's")
    logger.addHandler(LogFile("/dev/full"))
    logger.info("a line")
    assert capsys.readouterr() == ("", "")
    logger.handlers[0] = logging.FileHandler("/dev/full")  # which prints a traceback before any error is raised
    logger.info("a line")
    assert "No space left on device" in capsys.readouterr().err


def test_a_record_without_checksums_is_read_as_older_ones_are(tmp_path: Path) -> None:
    folder = tmp_path / run(tmp_path)["name"]
    assert "sha256" not in read_json(folder / "manifest.json")
    assert RunRecord.read(folder).status == "complete"
    assert RunRecord.read(folder).manifest["sha256"] == {}
