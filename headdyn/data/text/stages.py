"""The steps of a long build: each done once whatever interrupts it, on all cores, with its progress in the log."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from headdyn.core.records import write_json

log = logging.getLogger(__name__)

LOG_EVERY_SECONDS = 15.0
In = TypeVar("In")
Out = TypeVar("Out")


class Stages:
    """The steps done in a folder. A step's marker `NAME.done.json` holds its facts and is written last, whole."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder

    def once(self, name: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The facts of step `name`: what `work()` returns, now or when an earlier build in this folder finished it.

        Work that is interrupted is called again, and finds the files it left.
        """
        marker = self.folder / f"{name}.done.json"
        if marker.exists():
            log.info("%s: finished before", name)
            return json.loads(marker.read_text(encoding="utf-8"))
        log.info("%s ...", name)
        begun = time.monotonic()
        facts = dict(work())
        write_json(marker, facts)
        log.info("%s: done in %.1f s", name, time.monotonic() - begun)
        return facts


class Progress:
    """Log lines now and then on how much of a step is done, at what rate, and how long the rest may take."""

    def __init__(self, step: str, unit: str, total: int | None = None) -> None:
        self.step, self.unit, self.total = step, unit, total
        self.done = 0
        self._begun = self._logged = time.monotonic()

    def add(self, count: int) -> None:
        """`count` more units are done."""
        self.done += count
        now = time.monotonic()
        if now - self._logged < LOG_EVERY_SECONDS:
            return
        self._logged = now
        rate = self.done / (now - self._begun)
        left = "" if self.total is None else f" of {self.total}, {(self.total - self.done) / rate:.0f} s left"
        log.info("%s: %d %s%s, %.3g a second", self.step, self.done, self.unit, left, rate)


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def in_threads(function: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """`function(item)` of every item, in order, on all cores; only one item a core is taken ahead of the reader.

    An executor's own `map` would read all items at once. Pays for work that releases the interpreter lock (numpy's).
    """
    with ThreadPoolExecutor(cores()) as pool:
        ahead: deque[Future[Out]] = deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > cores():
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
