"""The parts of a long analysis, kept as they are done: an analysis that was stopped goes on where it was.

A run says where with `keeping`; a computation inside asks `parts` for its own. It gives the same bits as one that was
never stopped, since a part is computed or read, never changed.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np

from headdyn.core.store import StageInterruptedError

log = logging.getLogger(__name__)

SAVE_EVERY_SECONDS = 10.0  # so that what takes no longer leaves no file


class _Keeping:
    """Where the parts of one analysis are, and how many computations it has begun."""

    def __init__(self, folder: Path, identity: str, should_stop: Callable[[], bool]) -> None:
        self.folder, self.identity, self.should_stop = folder, identity, should_stop
        self.begun = 0


_current: ContextVar[_Keeping | None] = ContextVar("keeping", default=None)


@contextmanager
def keeping(folder: Path, identity: str, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Inside, `parts` keeps in `folder` what it computes, for work of the same `identity` (code and weights).

    Where `should_stop` says so it stops after a part, with StageInterruptedError.
    """
    token = _current.set(_Keeping(folder, identity, should_stop))
    try:
        yield
    finally:
        _current.reset(token)


def parts(compute: Sequence[Callable[[], np.ndarray]], inputs: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """What each of `compute` gives, in order; those that an earlier try kept are read.

    `inputs` are arrays that tell this computation from others: parts of other inputs are computed anew.
    """
    place = _current.get()
    if place is None:
        yield from (each() for each in compute)
        return
    digest = hashlib.sha256(place.identity.encode())
    for array in inputs:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    path = place.folder / f"{place.begun:04d}.npy"
    place.begun += 1
    earlier, end = _read(path, digest.digest())
    if earlier:
        log.info("%d of %d parts were done before", len(earlier), len(compute))
    yield from earlier[: len(compute)]
    unsaved: list[np.ndarray] = [] if end else [np.frombuffer(digest.digest(), dtype=np.uint8)]
    saved = time.monotonic()

    def save() -> None:
        nonlocal end, saved
        place.folder.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if end else "wb") as file:
            file.seek(end)
            file.truncate()  # what a kill left half-written
            for array in unsaved:
                np.save(file, array, allow_pickle=False)
            end = file.tell()
        unsaved.clear()
        saved = time.monotonic()

    try:
        for each in compute[len(earlier) :]:
            if place.should_stop():
                raise StageInterruptedError("asked to stop; what is done of this analysis is kept")
            unsaved.append(each())
            yield unsaved[-1]
            if time.monotonic() - saved >= SAVE_EVERY_SECONDS:
                save()
    except BaseException:  # stopped, interrupted or failed
        save()
        raise


def _read(path: Path, digest: bytes) -> tuple[list[np.ndarray], int]:
    """The parts in the file and where the last whole one ends; none where the file is of another computation."""
    arrays: list[np.ndarray] = []
    end = 0
    if not path.exists():
        return arrays, end
    with path.open("rb") as file:
        try:
            if np.load(file).tobytes() != digest:
                return [], 0
            end = file.tell()
            while True:
                arrays.append(np.load(file))
                end = file.tell()
        except (ValueError, EOFError, OSError):  # the end of the file, perhaps in the midst of a part
            return arrays, end
