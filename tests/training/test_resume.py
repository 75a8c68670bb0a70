from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from headdyn.training.resume import MetricsFile, State, begin_anew_if_damaged, load_newest_state, save_state
from tests.training.tiny import SETTINGS, task

RECIPE = {"train.steps": 8, "model.d_model": 16, "betas": [0.9, 0.95]}


def state(step: int, recipe: dict[str, object] | None = None) -> State:
    weights = {"w": torch.full((3, 2), float(step))}
    return State(step, 0.5 * step, recipe or RECIPE, weights, {"muon": {"3x2": torch.ones(1, 3, 2)}, "adamw": {}})


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    for step in (3, 10, 4):
        save_state(tmp_path, state(step))
    found = load_newest_state(tmp_path, RECIPE, "cpu")
    assert found is not None and (found.step, found.seconds, found.recipe) == (10, 5.0, RECIPE)
    assert torch.equal(found.model["w"], torch.full((3, 2), 10.0))
    assert torch.equal(found.optimizers["muon"]["3x2"], torch.ones(1, 3, 2))


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert load_newest_state(tmp_path, RECIPE, "cpu") is None


class Code:
    """What runs where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("it ran",))


def test_a_state_is_never_unpickled_into_code(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """torch.load runs with weights_only: a file that holds anything but tensors and plain values is set aside."""
    torch.save({**vars(state(3)), "model": Code()}, tmp_path / "state000003.pt")
    assert load_newest_state(tmp_path, RECIPE, "cpu") is None
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
    found = load_newest_state(tmp_path, RECIPE, "cpu")
    assert found is not None
    assert found.step == 3 or torch.equal(found.model["w"], torch.full((3, 2), 4.0))


def test_a_state_that_is_another_archive_is_set_aside(tmp_path: Path) -> None:
    save_state(tmp_path, state(3))
    torch.save({"other": 1}, tmp_path / "state000004.pt")
    found = load_newest_state(tmp_path, RECIPE, "cpu")
    assert found is not None and found.step == 3


@pytest.mark.parametrize("bad", [b"{", b"[]", b'{"step": 1}', b"\xff\xfe"])
def test_a_training_whose_metrics_are_damaged_begins_anew(tmp_path: Path, bad: bytes) -> None:
    good = b'{"step": 1, "name": "loss", "value": 2.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + bad + b"\n" + good)
    (tmp_path / "resume").mkdir()
    begin_anew_if_damaged(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "metrics.jsonl").write_bytes(good + b'{"step": 2, "na')  # a kill cut the last line short: no damage
    (tmp_path / "resume").mkdir()
    begin_anew_if_damaged(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_unfinished_write_is_no_state(tmp_path: Path) -> None:
    save_state(tmp_path, state(3))
    (tmp_path / "state000004.tmp").write_bytes(b"half a fil")
    found = load_newest_state(tmp_path, RECIPE, "cpu")
    assert found is not None and found.step == 3


def test_another_recipe_is_refused_naming_what_differs(tmp_path: Path) -> None:
    save_state(tmp_path, state(3, {**RECIPE, "train.steps": 9}))
    with pytest.raises(ValueError, match=r"it has \{'train\.steps': 9\} where this one has \{'train\.steps': 8\}"):
        load_newest_state(tmp_path, RECIPE, "cpu")


def test_a_state_of_another_precision_is_refused(tmp_path: Path) -> None:
    fp32, bf16 = (task(tmp_path, SETTINGS, precision=precision).recipe() for precision in ("fp32", "bf16"))
    save_state(tmp_path, state(3, dict(fp32)))
    with pytest.raises(ValueError, match=r"\{'precision': 'fp32'\} where this one has \{'precision': 'bf16'\}"):
        load_newest_state(tmp_path, bf16, "cpu")


def entries(path: Path) -> list[tuple[int, str, float]]:
    lines = path.read_text().splitlines()
    return [(entry["step"], entry["name"], entry["value"]) for entry in map(json.loads, lines)]


def test_metrics_are_cut_back_and_a_torn_line_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, keep_through=-1)
    for step in range(1, 6):
        metrics.write(step, loss=step / 10, norm=1.0)
    metrics.close()
    with path.open("a") as file:
        file.write('{"step": 6, "name": "lo')
    metrics = MetricsFile(path, keep_through=3)
    assert entries(path)[-1] == (3, "norm", 1.0) and len(entries(path)) == 6
    metrics.write(4, loss=0.7)
    metrics.flush(to_disk=True)
    assert entries(path)[-1] == (4, "loss", 0.7)
    metrics.close()
    MetricsFile(path, keep_through=-1).close()
    assert entries(path) == []


def test_metrics_are_finite(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl", keep_through=-1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        metrics.write(1, loss=float("nan"))
    metrics.close()
