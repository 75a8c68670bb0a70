"""The steps of a long build: each is done once, whatever interrupts it, with its progress in the log."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headdyn.core.json_files import read_json, write_json

log = logging.getLogger(__name__)

LOG_EVERY_SECONDS = 15.0


class Stages:
    """The steps done in a folder. The marker `NAME.done.json` of a step holds its facts and is written last."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder

    def once(self, name: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The facts of step `name`: what `work()` returns, now or when an earlier build in this folder finished it.

        Work that was interrupted is called again, and sees the files that it left.
        """
        marker = self.folder / f"{name}.done.json"
        if marker.exists():
            log.info("%s: finished before", name)
            return read_json(marker)
        log.info("%s ...", name)
        begun = time.monotonic()
        facts = dict(work())
        write_json(marker, facts)
        log.info("%s: done in %.1f s", name, time.monotonic() - begun)
        return facts


class Progress:
    """Log lines every quarter of a minute on how much of a step is done, at what rate, and how long the rest takes."""

    def __init__(self, step: str, unit: str, total: int | None = None) -> None:
        self.step, self.unit, self.total = step, unit, total
        self.done = self._skipped = 0
        self._begun = self._logged = time.monotonic()

    def skip(self, count: int) -> None:
        """`count` more units were done before: they are no part of the rate."""
        self.done += count
        self._skipped += count

    def add(self, count: int) -> None:
        """`count` more units are done."""
        self.done += count
        now = time.monotonic()
        if now - self._logged < LOG_EVERY_SECONDS:
            return
        self._logged = now
        rate = (self.done - self._skipped) / (now - self._begun)
        left = "" if self.total is None else f" of {self.total}, {(self.total - self.done) / rate:.0f} s left"
        log.info("%s: %d %s%s, %.3g a second", self.step, self.done, self.unit, left, rate)
