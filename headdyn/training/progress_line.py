"""One live line on the terminal while a training works; elsewhere a log line now and then."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from headdyn.training.loop import Progress

log = logging.getLogger(__name__)

LOG_EVERY_SECONDS = 15.0
relay: Callable[[str], None] | None = None  # set in a sweep's worker: takes progress to the process that shows it


class ProgressLine:
    """A context manager that is called with every Progress of a training."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.live = None
        if sys.stderr.isatty() and relay is None:
            self.live = Live(console=Console(stderr=True), transient=True, auto_refresh=False)
        self._logged = time.monotonic()

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, progress: Progress) -> None:
        """Show where the training stands."""
        line = f"{self.title}: {describe(progress)}"
        if relay:
            relay(describe(progress))
        elif self.live:
            self.live.update(Text(line), refresh=True)
        elif time.monotonic() - self._logged >= LOG_EVERY_SECONDS:
            self._logged = time.monotonic()
            log.info(line)


def describe(p: Progress) -> str:
    """`step 400/800  loss 2.61 nats  gap closed 81 %  34.2 K tokens/s  12 s left`."""
    gap = "" if p.gap_closed is None else f"  gap closed {100 * p.gap_closed:.0f} %"
    left = f"{p.eta_seconds / 60:.0f} min" if p.eta_seconds >= 120 else f"{p.eta_seconds:.0f} s"
    speed = f"{p.tokens_per_second / 1e3:.1f} K tokens/s"
    return f"step {p.step}/{p.steps}  loss {p.loss_nats:.3f} nats{gap}  {speed}  {left} left"
