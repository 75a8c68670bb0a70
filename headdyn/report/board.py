"""The display of jobs that run side by side: a live line for each job, and a permanent line when it has ended."""

import time

from rich.text import Text

from headdyn.core.live_lines import LiveLines


class Board(LiveLines):
    """The running jobs and their progress, on standard error. Use as a context manager around the work.

    A notebook shows the live lines alone, and permanent lines only for jobs that failed or were stopped.
    """

    def __init__(self, total: int) -> None:
        super().__init__(self.print)
        self.total, self.ended = total, 0
        self.running: dict[str, str] = {}
        self.begun: dict[str, float] = {}

    def begin(self, name: str) -> None:
        self.running[name], self.begun[name] = "starting", time.monotonic()

    def progress(self, name: str, text: str) -> None:
        """Replace a running job's live line."""
        self.running[name] = text

    def log(self, name: str, text: str) -> None:
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
        self.console.print(Text(text))

    def refresh(self) -> None:
        ended = {f"{self.ended} of {self.total} done": ""} if self.in_notebook else {}
        self.show(ended | self.running)
