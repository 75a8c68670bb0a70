"""What is shown of a sweep's jobs while they run side by side: a live line a job, and one that stays when it ends."""

import time

from rich.text import Text

from headdyn.core.live_lines import LiveLines


class Board(LiveLines):
    """The jobs that are running and what each is at, on standard error. Use as a context manager around the work.

    In a notebook the lines of the jobs are all that is shown, but for jobs that fail or are stopped.
    """

    def __init__(self, total: int) -> None:
        super().__init__(self.print)
        self.total, self.ended = total, 0
        self.running: dict[str, str] = {}
        self.begun: dict[str, float] = {}

    def begin(self, name: str) -> None:
        """A job begins."""
        self.running[name], self.begun[name] = "starting", time.monotonic()

    def progress(self, name: str, text: str) -> None:
        """What a running job is at, in one line."""
        self.running[name] = text

    def log(self, name: str, text: str) -> None:
        """A line of a running job's log."""
        if self.in_notebook:
            self.progress(name, text)
        else:
            self.print(f"{name}: {text}")

    def end(self, name: str, outcome: str, text: str) -> None:
        """A job has ended: `outcome` is done, stopped or failed, `text` says more."""
        self.ended += 1
        del self.running[name]
        seconds = time.monotonic() - self.begun[name]
        more = f": {text}" if text else ""
        if outcome != "done" or not self.in_notebook:
            self.print(f"{self.ended}/{self.total} {name} {outcome} after {seconds:.0f} s{more}")

    def print(self, text: str) -> None:
        """A line that stays."""
        self.console.print(Text(text))

    def refresh(self) -> None:
        """Draw the lines anew."""
        ended = {f"{self.ended} of {self.total} done": ""} if self.in_notebook else {}
        self.show(ended | self.running)
