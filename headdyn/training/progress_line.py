"""The line that shows a training's progress."""

import logging
from collections.abc import Callable
from typing import Self

from headdyn.core.live_lines import LiveLines
from headdyn.training.loop import Progress

log = logging.getLogger(__name__)

relay: Callable[[str], None] | None = None  # set in a sweep's worker: sends progress to the process that shows it


class ProgressLine:
    """A context manager that is called with every Progress of a training."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.lines = LiveLines(log.info) if relay is None else None

    def __enter__(self) -> Self:
        if self.lines:
            self.lines.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.lines:
            self.lines.__exit__(*error)

    def __call__(self, progress: Progress) -> None:
        """Show how far the training is."""
        if relay:
            relay(describe(progress))
        elif self.lines:
            self.lines.show({self.title: describe(progress)})


def describe(p: Progress) -> str:
    """`step 400/800  loss 2.61 nats  gap closed 81 %  34.2 K tokens/s  12 s left`."""
    gap = "" if p.gap_closed is None else f"  gap closed {100 * p.gap_closed:.0f} %"
    left = f"{p.eta_seconds / 60:.0f} min" if p.eta_seconds >= 120 else f"{p.eta_seconds:.0f} s"
    speed = f"{p.tokens_per_second / 1e3:.1f} K tokens/s"
    return f"step {p.step}/{p.steps}  loss {p.loss_nats:.3f} nats{gap}  {speed}  {left} left"
