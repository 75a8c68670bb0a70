"""A long analysis in parts that are saved to disk, so that a stopped analysis continues where it was.

A run names the folder with `keeping`; an analysis does its long work through `parts`, which also logs the progress. The
results have the same bits as without a stop: a part is saved with the state of the random generator after it.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from headdyn.core.progress import Progress
from headdyn.core.source_code import source_digest
from headdyn.core.store import StageInterruptedError

log = logging.getLogger(__name__)

LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn")
SAVE_EVERY_SECONDS = 10.0  # an analysis that takes less time leaves no file

Part = Mapping[str, np.ndarray]
_SavedPart = tuple[float, str, Part]  # the seconds it took, the generator's state after it, the part
# On disk a part is: a checksum of the rest, the part's number and its seconds, the arrays as .npz.
_CHECK, _HEAD = struct.Struct("<I"), struct.Struct("<qd")
_STATE = "generator's state"


class _Saver:
    """Saves the parts of one analysis to its folder, those of every call of `parts` to a file of their own.

    `calls` counts the calls of `parts` that have begun. `seconds` is how long an earlier try took to compute the parts
    that were read.
    """

    def __init__(self, folder: Path, identity: str, should_stop: Callable[[], bool]) -> None:
        self.folder, self.identity, self.should_stop = folder, identity, should_stop
        self.calls, self.seconds = 0, 0.0
        self.unsaved: list[tuple[Path, bytes]] = []  # contents to append to files
        self.last_save = time.monotonic()

    def add(self, path: Path, content: bytes) -> None:
        self.unsaved.append((path, content))
        if time.monotonic() - self.last_save >= SAVE_EVERY_SECONDS:
            self.save()

    def save(self) -> None:
        if self.unsaved:
            self.folder.mkdir(parents=True, exist_ok=True)
        while self.unsaved:
            path, content = self.unsaved.pop(0)  # before writing: an interruption loses a part, but never doubles it
            with path.open("ab") as file:
                file.write(len(content).to_bytes(8, "little") + content)
        self.last_save = time.monotonic()


_current: ContextVar[_Saver | None] = ContextVar("saver", default=None)


def identity_of(analysis: Any, *facts: object) -> str:
    """A text of all that decides what an analysis computes: its settings, code, libraries, and input (`facts`)."""
    code = source_digest([sys.modules[type(analysis).__module__]])
    return " ".join(map(str, (analysis, code, *map(version, LIBRARIES), *facts)))


@contextmanager
def keeping(folder: Path, identity: str, should_stop: Callable[[], bool]) -> Iterator[_Saver]:
    """Inside, `parts` saves its results to `folder`, and reads those that work of the same `identity` saved there.

    `identity` comes from `identity_of`. If `should_stop()` is true between two parts, StageInterruptedError is raised.
    """
    saver = _Saver(folder, identity, should_stop)
    token = _current.set(saver)
    try:
        yield saver
    except BaseException:  # stopped, interrupted or failed
        saver.save()
        raise
    finally:
        _current.reset(token)


def parts(
    step: str,
    unit: str,
    total: int,
    at_once: int,
    compute: Callable[[slice], Part],
    inputs: Sequence[np.ndarray] = (),
    generator: np.random.Generator | None = None,
) -> Iterator[tuple[slice, Part]]:
    """Yields `rows, compute(rows)` for `at_once` of `total` rows at a time, in order. Parts saved earlier are read.

    `step` and `unit` name the work and its units in the log, as in "matching heads" and "pairs". Saved parts are used
    only if `inputs` (arrays), `total` and `at_once` are equal. `generator` is the one from which `compute` draws, if
    any: when a saved part is read, it gets the state that it had after that part was computed. Raises
    StageInterruptedError if the run asks to stop.
    """
    saver, progress = _current.get(), Progress(step, unit, total)
    slices = [slice(begin, min(begin + at_once, total)) for begin in range(0, total, at_once)]
    earlier: list[_SavedPart] = []
    if saver is not None:
        path = saver.folder / f"{saver.calls:04d}.parts"
        saver.calls += 1
        digest = _digest(saver.identity, [np.array([total, at_once]), _state(generator), *inputs])
        earlier, end = _read(path, digest)
        if path.exists():
            os.truncate(path, end)  # removes a half-written part, or all parts of another computation
        if not end:
            saver.unsaved.append((path, digest))
        if earlier:
            log.info("%s: %d of %d parts were done before", step, len(earlier), len(slices))
    for rows, (seconds, state, saved) in zip(slices, earlier, strict=False):
        progress.skip(rows.stop - rows.start)
        if saver is not None:
            saver.seconds += seconds
        if generator is not None:
            generator.bit_generator.state = json.loads(state)
        yield rows, saved
    for number, rows in enumerate(slices[len(earlier) :], start=len(earlier)):
        if saver is not None and saver.should_stop():
            raise StageInterruptedError(f"asked to stop while {step}; the parts that are done are saved")
        started = time.monotonic()
        # In C order, the order in which saved parts are read: the rounding of later sums depends on it.
        part: dict[str, Any] = {name: np.asarray(value, order="C") for name, value in compute(rows).items()}
        progress.add(rows.stop - rows.start)
        if saver is not None:
            content = io.BytesIO()
            np.savez(content, allow_pickle=False, **part, **{_STATE: _state(generator)})
            body = _HEAD.pack(number, time.monotonic() - started) + content.getvalue()
            saver.add(path, _CHECK.pack(zlib.crc32(body)) + body)
        yield rows, part


def _state(generator: np.random.Generator | None) -> np.ndarray:
    return np.array("" if generator is None else json.dumps(generator.bit_generator.state))


def _digest(identity: str, arrays: Sequence[np.ndarray]) -> bytes:
    digest = hashlib.sha256(identity.encode())
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.digest()


def _read(path: Path, digest: bytes) -> tuple[list[_SavedPart], int]:
    """The undamaged parts at the beginning of the file, and the byte at which the last of them ends.

    Nothing is read if the file's first piece is not `digest`, because its parts are then of another computation.
    """
    content = path.read_bytes() if path.exists() else b""
    whole: list[_SavedPart] = []
    end = 0
    while len(content) >= end + 8:
        begin = end + 8
        size = int.from_bytes(content[end:begin], "little")
        piece = content[begin : begin + size]
        if len(piece) < size or (end == 0 and piece != digest):
            break
        if end:
            check, body = piece[: _CHECK.size], piece[_CHECK.size :]
            if check != _CHECK.pack(zlib.crc32(body)):
                break  # damaged: this part and those behind it are computed again
            number, seconds = _HEAD.unpack_from(body)
            if number != len(whole):
                break  # an earlier part is missing or doubled
            part = dict(np.load(io.BytesIO(body[_HEAD.size :])))
            whole.append((seconds, str(part.pop(_STATE)), part))
        end = begin + size
    return whole, end
