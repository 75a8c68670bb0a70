"""What a terminal shows while a sweep's jobs run side by side: a live line a job, elsewhere lines now and then."""

import time
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

LOG_EVERY_SECONDS = 15.0


class Board:
    """The jobs that are running and what each is at, on standard error. Use as a context manager around the work."""

    def __init__(self, total: int) -> None:
        self.total, self.ended = total, 0
        self.running: dict[str, str] = {}
        self.begun: dict[str, float] = {}
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.live = Live(console=self.console, transient=True, auto_refresh=False) if self.console.is_terminal else None
        self._printed = time.monotonic()

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.stop()

    def begin(self, name: str) -> None:
        """A job begins."""
        self.running[name], self.begun[name] = "starting", time.monotonic()

    def progress(self, name: str, text: str) -> None:
        """What a running job is at, in one line."""
        self.running[name] = text

    def end(self, name: str, outcome: str, text: str) -> None:
        """A job has ended: `outcome` is done, stopped or failed, `text` says more."""
        self.ended += 1
        del self.running[name]
        seconds = time.monotonic() - self.begun[name]
        more = f": {text}" if text else ""
        self.print(f"{self.ended}/{self.total} {name} {outcome} after {seconds:.0f} s{more}")

    def print(self, text: str) -> None:
        """A line that stays."""
        self.console.print(Text(text))

    def refresh(self) -> None:
        """Draw the live lines anew; where there is no terminal, print them every quarter of a minute."""
        if self.live:
            table = Table.grid(padding=(0, 2))
            for name, text in self.running.items():
                table.add_row(Text(name, style="bold"), Text(text))
            self.live.update(table, refresh=True)
        elif time.monotonic() - self._printed >= LOG_EVERY_SECONDS:
            self._printed = time.monotonic()
            for name, text in self.running.items():
                self.print(f"{name} {text}")
