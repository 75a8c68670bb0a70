"""What a run shows while it works: one live line on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

log = logging.getLogger(__name__)

LOG_EVERY_SECONDS = 15.0


class Progress(Protocol):
    """What a training reports of itself."""

    step: int
    steps: int
    loss_nats: float
    tokens_per_second: float
    eta_seconds: float
    gap_closed: float | None


class ProgressLine:
    """A context manager that is called with every Progress."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.live = Live(console=Console(stderr=True), transient=True, auto_refresh=False) if sys.stderr.isatty() else None
        self._logged = time.monotonic()

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, progress: Progress) -> None:
        line = f"{self.title}: {describe(progress)}"
        if self.live:
            self.live.update(Text(line), refresh=True)
        elif time.monotonic() - self._logged >= LOG_EVERY_SECONDS:
            self._logged = time.monotonic()
            log.info(line)


def describe(p: Progress) -> str:
    """`step 400/800  loss 2.61 nats  gap closed 81 %  34.2 K tokens/s  12 s left`."""
    gap = "" if p.gap_closed is None else f"  gap closed {100 * p.gap_closed:.0f} %"
    left = f"{p.eta_seconds / 60:.0f} min" if p.eta_seconds >= 120 else f"{p.eta_seconds:.0f} s"
    return (
        f"step {p.step}/{p.steps}  loss {p.loss_nats:.3f} nats{gap}  {p.tokens_per_second / 1e3:.1f} K tokens/s  {left} left"
    )
