"""Stopping at a safe point: SIGINT and SIGTERM set a flag, which long work checks between its steps.

In a job of submitit, SIGUSR2 sets the flag too: SLURM sends it shortly before a job's time limit. When the work has
stopped, `queue_again` calls submitit's own handler, which submits the job again.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def under_submitit() -> bool:
    """Whether this process is a job of submitit's, which handles SIGUSR2."""
    return "SUBMITIT_EXECUTOR" in os.environ


def queue_again() -> None:
    """Have submitit queue this job again and end the process; elsewhere nothing happens."""
    if under_submitit():
        signal.raise_signal(signal.SIGUSR2)


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Inside, SIGINT and SIGTERM only set a flag, which the yielded function returns. So a training can save first.

    A second signal stops at once, except under submitit, because SLURM itself may send several.
    """
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping.is_set  # signals reach the main thread alone
        return

    def note(number: int, frame: Any) -> None:
        if stopping.is_set():
            if under_submitit():
                return
            raise KeyboardInterrupt
        stopping.set()
        log.warning("%s: stopping at the next safe point (again to stop at once)", signal.Signals(number).name)

    caught = (*SIGNALS, signal.SIGUSR2) if under_submitit() else SIGNALS
    before = {number: signal.signal(number, note) for number in caught}
    try:
        yield stopping.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
