"""The line that shows a training's progress."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from headdyn.core.live_lines import LiveLines
from headdyn.training.loop import Observer, TrainingProgress

log = logging.getLogger(__name__)

relay: Callable[[str], None] | None = None  # set in a sweep's worker: sends progress to the process that shows it


@contextmanager
def progress_line(title: str) -> Iterator[Observer]:
    """Yields an observer for a training, which shows every TrainingProgress in one line under this title."""
    if send := relay:
        yield lambda progress: send(describe(progress))
    else:
        with LiveLines(log.info) as lines:
            yield lambda progress: lines.show({title: describe(progress)})


def describe(p: TrainingProgress) -> str:
    """`step 400/800  loss 2.61 nats  gap closed 81 %  34.2 K tokens/s  12 s left`."""
    gap = "" if p.gap_closed is None else f"  gap closed {100 * p.gap_closed:.0f} %"
    left = f"{p.eta_seconds / 60:.0f} min" if p.eta_seconds >= 120 else f"{p.eta_seconds:.0f} s"
    speed = f"{p.tokens_per_second / 1e3:.1f} K tokens/s"
    return f"step {p.step}/{p.steps}  loss {p.loss_nats:.3f} nats{gap}  {speed}  {left} left"
