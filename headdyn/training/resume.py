"""The files from which a killed training continues to the same weights: its whole state, and its metrics."""

import hashlib
import json
import logging
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headdyn.core.whole_files import whole_file

log = logging.getLogger(__name__)

_NAME = re.compile(r"state(\d{6,})\.pt")
_GENERATIONS = 2  # states to keep on the disk; if the newest is damaged, the one before it is used


@dataclass(frozen=True)
class State:
    """Everything on which the next step depends; batches and learning rates are functions of the step.

    `recipe` describes the training, so that a state is never continued by another one.
    """

    step: int
    seconds: float  # spent on the updates so far
    recipe: Mapping[str, Any]
    model: Mapping[str, Tensor]
    optimizers: Mapping[str, Any]
    metrics: Mapping[str, Any]  # length and checksum of metrics.jsonl up to this step


def save_state(folder: Path, state: State) -> None:
    """Write `state000400.pt` (for step 400), whole or not at all, and remove all but the newest two.

    Raises OSError if the disk fails; the earlier states then remain.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / f"state{state.step:06d}.pt", durable=True) as path, path.open("wb") as file:
        torch.save(vars(state), file)  # Python's own file raises OSError if the disk is full
    for old in _states(folder)[:-_GENERATIONS]:
        old.unlink()


def load_newest_state(folder: Path, recipe: Mapping[str, Any], device: str, metrics: Path) -> State | None:
    """The newest sound state whose part of the file `metrics` is sound too; None if there is none.

    A state that is damaged, or whose metrics are, is set aside as `*.damaged`, with a warning. Raises ValueError if the
    state belongs to another training.
    """
    for path in reversed(_states(folder)):
        state, damage = _read(path, device)
        if state is not None and not _begins_with(metrics, **state.metrics):
            state, damage = None, f"{metrics.name} is not what was written before it"
        if state is not None:
            other = {name: value for name, value in state.recipe.items() if value != recipe.get(name)}
            if other:
                own = {name: recipe.get(name) for name in other}
                raise ValueError(
                    f"{path} is the state of another training: it has {other} where this one has {own}; "
                    f"train into another folder, or delete {folder} to start anew"
                )
            return state
        aside = path.with_name(path.name + ".damaged")
        path.replace(aside)
        log.warning("%s is damaged (%s): set aside as %s, going on from the one before", path, damage, aside.name)
    return None


def _states(folder: Path) -> list[Path]:
    states = [path for path in folder.glob("*.pt") if _NAME.fullmatch(path.name)]
    return sorted(states, key=lambda path: int(path.stem.removeprefix("state")))


def _read(path: Path, device: str) -> tuple[State | None, str]:
    """The state in a file that torch.save wrote (a zip archive with checksums), or None and how the file is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            if bad := archive.testzip():
                return None, f"record {bad} does not match its checksum"
        return State(**torch.load(path, map_location=device, weights_only=True)), ""
    except Exception as error:  # what zipfile and torch raise depends on which byte of the archive is wrong
        return None, str(error).partition("\n")[0] or type(error).__name__


def _begins_with(path: Path, bytes: int, sha256: str) -> bool:
    content = path.read_bytes() if path.exists() else b""
    return len(content) >= bytes and hashlib.sha256(content[:bytes]).hexdigest() == sha256


class MetricsFile:
    """metrics.jsonl, a line {"step", "name", "value"} for each number. Opening cuts it to `keep_bytes` bytes."""

    def __init__(self, path: Path, keep_bytes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._file = path.open("r+b")
        self._sum = hashlib.sha256(self._file.read(keep_bytes))
        self._file.truncate(keep_bytes)

    def write(self, step: int, **values: float) -> None:
        """Add a step's numbers. Raises ValueError for one that is not finite."""
        for name, value in values.items():
            entry = {"step": step, "name": name, "value": value}
            line = (json.dumps(entry, allow_nan=False) + "\n").encode()
            self._file.write(line)
            self._sum.update(line)

    def content(self) -> dict[str, Any]:
        """Length and checksum of all that was written, for a state that goes on from here."""
        return {"bytes": self._file.tell(), "sha256": self._sum.hexdigest()}

    def flush(self, *, to_disk: bool = False) -> None:
        """Let readers see what was written; with `to_disk`, also wait until it would survive a power cut."""
        self._file.flush()
        if to_disk:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
