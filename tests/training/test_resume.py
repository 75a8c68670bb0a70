from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from headdyn.training.resume import MetricsFile, State, load_newest_state, save_state

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


def test_a_state_is_never_unpickled_into_code(tmp_path: Path) -> None:
    """torch.load runs with weights_only: a file that holds anything but tensors and plain values is refused."""
    torch.save({**vars(state(3)), "model": Path("/")}, tmp_path / "state000003.pt")
    with pytest.raises(Exception, match="weights_only"):
        load_newest_state(tmp_path, RECIPE, "cpu")


def test_an_unfinished_write_is_no_state(tmp_path: Path) -> None:
    save_state(tmp_path, state(3))
    (tmp_path / "state000004.tmp").write_bytes(b"half a fil")
    found = load_newest_state(tmp_path, RECIPE, "cpu")
    assert found is not None and found.step == 3


def test_another_recipe_is_refused_naming_what_differs(tmp_path: Path) -> None:
    save_state(tmp_path, state(3, {**RECIPE, "train.steps": 9}))
    with pytest.raises(ValueError, match=r"it has \{'train\.steps': 9\} where this one has \{'train\.steps': 8\}"):
        load_newest_state(tmp_path, RECIPE, "cpu")


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
