from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from headdyn.training.resume import MetricsFile, State, load_newest_state, save_state
from tests.training.tiny import SETTINGS, task

NOTHING = {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}
RECIPE = {"train.steps": 8, "model.d_model": 16, "betas": [0.9, 0.95]}


def state(step: int, recipe: dict[str, object] | None = None) -> State:
    weights = {"w": torch.full((3, 2), float(step))}
    return State(
        step, 0.5 * step, recipe or RECIPE, weights, {"muon": {"3x2": torch.ones(1, 3, 2)}, "adamw": {}}, NOTHING
    )


def newest(folder: Path, recipe: Mapping[str, object] = RECIPE) -> State | None:
    return load_newest_state(folder, recipe, "cpu", folder / "metrics.jsonl")


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    for step in (3, 10, 4):
        save_state(tmp_path, state(step))
    found = newest(tmp_path)
    assert found is not None and (found.step, found.seconds, found.recipe) == (10, 5.0, RECIPE)
    assert torch.equal(found.model["w"], torch.full((3, 2), 10.0))
    assert torch.equal(found.optimizers["muon"]["3x2"], torch.ones(1, 3, 2))


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path) is None


class Code:
    """What runs where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("it ran",))


def test_a_state_is_never_unpickled_into_code(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """torch.load runs with weights_only: a file that holds anything but tensors and plain values is set aside."""
    torch.save({**vars(state(3)), "model": Code()}, tmp_path / "state000003.pt")
    assert newest(tmp_path) is None
    assert (tmp_path / "state000003.pt.damaged").exists() and "Weights only load failed" in caplog.text


@pytest.mark.parametrize("harm", range(0, 60, 3))
def test_of_a_damaged_state_the_older_one_serves(tmp_path: Path, harm: int) -> None:
    """One byte changed in the archive's directory, which lies in its last bytes and has no checksum of its own."""
    save_state(tmp_path, state(3))
    save_state(tmp_path, state(4))
    path = tmp_path / "state000004.pt"
    content = bytearray(path.read_bytes())
    content[-1 - harm * len(content) // 400] ^= 0xFF
    path.write_bytes(content)
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 3 or torch.equal(found.model["w"], torch.full((3, 2), 4.0))


def test_a_state_that_is_another_archive_is_set_aside(tmp_path: Path) -> None:
    save_state(tmp_path, state(3))
    torch.save({"other": 1}, tmp_path / "state000004.pt")
    found = newest(tmp_path)
    assert found is not None and found.step == 3


@pytest.mark.parametrize("line", range(4))
def test_of_damaged_metrics_the_state_before_the_damage_serves(tmp_path: Path, line: int) -> None:
    """Two lines stand before each of two states; one byte of one line is changed, to what may be sound JSON."""
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    for step in (3, 4):
        metrics.write(step, loss=2.0, norm=1.0)
        save_state(tmp_path, dataclasses.replace(state(step), metrics=metrics.content()))
    metrics.write(5, loss=1.0)
    metrics.close()
    whole = newest(tmp_path)
    assert whole is not None and whole.step == 4
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b".0", b".5")
    path.write_bytes(b"".join(lines))
    found = newest(tmp_path)
    assert (found and found.step) == (None if line < 2 else 3)
    assert (tmp_path / "state000004.pt.damaged").exists()


def test_an_unfinished_write_is_no_state(tmp_path: Path) -> None:
    save_state(tmp_path, state(3))
    (tmp_path / "state000004.pt.tmp").write_bytes(b"half a fil")
    found = newest(tmp_path)
    assert found is not None and found.step == 3


def test_another_recipe_is_refused_naming_what_differs(tmp_path: Path) -> None:
    save_state(tmp_path, state(3, {**RECIPE, "train.steps": 9}))
    with pytest.raises(ValueError, match=r"it has \{'train\.steps': 9\} where this one has \{'train\.steps': 8\}"):
        newest(tmp_path)


def test_a_state_of_another_precision_is_refused(tmp_path: Path) -> None:
    fp32, bf16 = (task(tmp_path, SETTINGS, precision=precision).recipe() for precision in ("fp32", "bf16"))
    save_state(tmp_path, state(3, dict(fp32)))
    with pytest.raises(ValueError, match=r"\{'precision': 'fp32'\} where this one has \{'precision': 'bf16'\}"):
        newest(tmp_path, bf16)


def entries(path: Path) -> list[tuple[int, str, float]]:
    lines = path.read_text().splitlines()
    return [(entry["step"], entry["name"], entry["value"]) for entry in map(json.loads, lines)]


def test_metrics_are_cut_back_to_the_state_and_a_torn_line_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    for step in range(1, 4):
        metrics.write(step, loss=step / 10, norm=1.0)
    at_3 = metrics.content()
    metrics.write(4, loss=0.4)
    metrics.close()
    assert at_3["sha256"] == hashlib.sha256(path.read_bytes()[: at_3["bytes"]]).hexdigest()
    with path.open("a") as file:
        file.write('{"step": 6, "name": "lo')
    metrics = MetricsFile(path, at_3["bytes"])
    assert entries(path)[-1] == (3, "norm", 1.0) and len(entries(path)) == 6
    metrics.write(4, loss=0.7)
    metrics.flush(to_disk=True)
    assert entries(path)[-1] == (4, "loss", 0.7)
    again = metrics.content()
    metrics.close()
    assert again == {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    MetricsFile(path, 0).close()
    assert entries(path) == []


def test_metrics_are_finite(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        metrics.write(1, loss=float("nan"))
    metrics.close()
