"""The parts of a long analysis: how far it is, and what is done of it, kept so that a stopped one goes on where it was.

A run says where with `keeping`; an analysis does its long work through `parts`. It gives the same bits as one that was
never stopped, since a part is computed or read, never changed. A part that draws random numbers from a generator which
others draw from is kept with the generator's state behind it.
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
SAVE_EVERY_SECONDS = 10.0  # so that what takes no longer leaves no file

Part = Mapping[str, np.ndarray]
_Kept = tuple[float, str, Part]  # the seconds it took, the generator's state behind it, the part
_HEAD = struct.Struct("<qd")  # before a part on the disk: its number and its seconds
_CHECK = struct.Struct("<I")  # and before those a checksum of all that follows
_STATE = "generator's state"


class _Keeping:
    """Where the parts of one analysis are, how many computations it has begun, and what is not yet on the disk.

    `seconds` is how long the parts took that an earlier try computed and this one reads.
    """

    def __init__(self, folder: Path, identity: str, should_stop: Callable[[], bool]) -> None:
        self.folder, self.identity, self.should_stop = folder, identity, should_stop
        self.begun, self.seconds = 0, 0.0
        self.unsaved: list[tuple[Path, bytes]] = []
        self.saved = time.monotonic()

    def keep(self, path: Path, content: bytes) -> None:
        self.unsaved.append((path, content))
        if time.monotonic() - self.saved >= SAVE_EVERY_SECONDS:
            self.save()

    def save(self) -> None:
        if self.unsaved:
            self.folder.mkdir(parents=True, exist_ok=True)
        while self.unsaved:
            path, content = self.unsaved.pop(0)  # first, so that an interruption loses it and does not write it twice
            with path.open("ab") as file:
                file.write(len(content).to_bytes(8, "little") + content)
        self.saved = time.monotonic()


_current: ContextVar[_Keeping | None] = ContextVar("keeping", default=None)


def identity_of(analysis: Any, *facts: object) -> str:
    """All that decides what an analysis computes: its settings, its code, the libraries, its input (`facts`)."""
    code = source_digest([sys.modules[type(analysis).__module__]])
    return " ".join(map(str, (analysis, code, *map(version, LIBRARIES), *facts)))


@contextmanager
def keeping(folder: Path, identity: str, should_stop: Callable[[], bool]) -> Iterator[_Keeping]:
    """Inside, `parts` keeps in `folder` what it computes, for work of the same `identity` (see `identity_of`).

    Where `should_stop` says so it stops after a part, with StageInterruptedError.
    """
    place = _Keeping(folder, identity, should_stop)
    token = _current.set(place)
    try:
        yield place
    except BaseException:  # stopped, interrupted or failed
        place.save()
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
    """`compute(rows)` for every `at_once` of `total` rows, in order; what an earlier try kept is read.

    `step` and `unit` are the words of its progress in the log. `inputs` are arrays that tell this computation from
    others: parts of other inputs, or of another number of rows, are computed anew. `generator` is what `compute` draws
    from, if it does; behind a part that is read it stands as it stood when the part was computed.
    """
    place, progress = _current.get(), Progress(step, unit, total)
    every = [slice(begin, min(begin + at_once, total)) for begin in range(0, total, at_once)]
    earlier: list[_Kept] = []
    if place is not None:
        path = place.folder / f"{place.begun:04d}.parts"
        place.begun += 1
        digest = _digest(place.identity, [np.array([total, at_once]), _state(generator), *inputs])
        earlier, end = _read(path, digest)
        if path.exists():
            os.truncate(path, end)  # what a kill left half-written, or what is of another computation
        if not end:
            place.unsaved.append((path, digest))
        if earlier:
            log.info("%s: %d of %d parts were done before", step, len(earlier), len(every))
    for rows, (seconds, state, kept) in zip(every, earlier, strict=False):
        progress.skip(rows.stop - rows.start)
        if place is not None:
            place.seconds += seconds
        if generator is not None:
            generator.bit_generator.state = json.loads(state)
        yield rows, kept
    for number, rows in enumerate(every[len(earlier) :], start=len(earlier)):
        if place is not None and place.should_stop():
            raise StageInterruptedError(f"asked to stop while {step}; what is done of it is kept")
        begun = time.monotonic()
        # As it is read again: in the order of its axes, on which the rounding of later sums depends.
        part: dict[str, Any] = {name: np.asarray(value, order="C") for name, value in compute(rows).items()}
        progress.add(rows.stop - rows.start)
        if place is not None:
            content = io.BytesIO()
            np.savez(content, allow_pickle=False, **part, **{_STATE: _state(generator)})
            kept_part = _HEAD.pack(number, time.monotonic() - begun) + content.getvalue()
            place.keep(path, _CHECK.pack(zlib.crc32(kept_part)) + kept_part)
        yield rows, part


def _state(generator: np.random.Generator | None) -> np.ndarray:
    return np.array("" if generator is None else json.dumps(generator.bit_generator.state))


def _digest(identity: str, arrays: Sequence[np.ndarray]) -> bytes:
    digest = hashlib.sha256(identity.encode())
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.digest()


def _read(path: Path, digest: bytes) -> tuple[list[_Kept], int]:
    """The parts in the file and where the last whole one ends; none where the file is of another computation."""
    content = path.read_bytes() if path.exists() else b""
    whole: list[_Kept] = []
    end = 0
    while len(content) >= end + 8:
        begin = end + 8
        size = int.from_bytes(content[end:begin], "little")
        piece = content[begin : begin + size]
        if len(piece) < size or (end == 0 and piece != digest):
            break
        if end:
            check, kept_part = piece[: _CHECK.size], piece[_CHECK.size :]
            if check != _CHECK.pack(zlib.crc32(kept_part)):
                break  # damaged: what stands behind it is computed again, too
            number, seconds = _HEAD.unpack_from(kept_part)
            if number != len(whole):
                break  # one before it was lost, or stands there twice
            part = dict(np.load(io.BytesIO(kept_part[_HEAD.size :])))
            whole.append((seconds, str(part.pop(_STATE)), part))
        end = begin + size
    return whole, end
