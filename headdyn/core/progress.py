"""Log lines that tell how much of long work is done and how long the rest takes."""

import logging
import time

log = logging.getLogger(__name__)

LOG_EVERY_SECONDS = 15.0


class Progress:
    """Logs every 15 seconds how many units of a step are done, at what rate, and how long the rest takes."""

    def __init__(self, step: str, unit: str, total: int | None) -> None:
        self.step, self.unit, self.total = step, unit, total
        self.done = self._skipped = 0
        self._begun = self._logged = time.monotonic()

    def skip(self, count: int) -> None:
        """Count units that an earlier try has done; they do not enter the rate."""
        self.done += count
        self._skipped += count

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self._logged < LOG_EVERY_SECONDS:
            return
        self._logged = now
        rate = (self.done - self._skipped) / (now - self._begun)
        rest = "" if self.total is None else f" of {self.total}, {(self.total - self.done) / rate:.0f} s left"
        log.info("%s: %d %s%s, %.3g a second", self.step, self.done, self.unit, rest, rate)
