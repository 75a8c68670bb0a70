"""Progress lines redrawn in place, in a terminal, Jupyter or marimo; elsewhere they are printed now and then."""

import html
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

PRINT_EVERY_SECONDS = 15.0


class LiveLines:
    """A context manager. `show` draws lines in place of those before; leaving it removes them.

    In a notebook they are drawn in the cell's output. Where nothing can be redrawn, lines that have changed go to
    `write` every 15 seconds.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, force_jupyter=False)
        self.draw_html = notebook_output()
        self.live = None
        if self.draw_html is None and self.console.is_terminal:
            self.live = Live(console=self.console, transient=True, auto_refresh=False)
        self._written = time.monotonic()
        self._last: dict[str, str] = {}  # the lines last written, by name

    @property
    def in_notebook(self) -> bool:
        return self.draw_html is not None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.stop()
        if self.draw_html:
            self.draw_html("")

    def show(self, lines: Mapping[str, str]) -> None:
        """Show one line for each name: the name, and what is being done under it."""
        if self.draw_html:
            cells = (f"<tr><td><b>{html.escape(k)}</b></td><td>{html.escape(v)}</td></tr>" for k, v in lines.items())
            self.draw_html(f"<table>{''.join(cells)}</table>")
        elif self.live:
            table = Table.grid(padding=(0, 2))
            for name, text in lines.items():
                table.add_row(Text(name, style="bold"), Text(text))
            self.live.update(table, refresh=True)
        elif time.monotonic() - self._written >= PRINT_EVERY_SECONDS:
            self._written = time.monotonic()
            for name, text in lines.items():
                if self._last.get(name) != text:
                    self.write(f"{name}: {text}")
            self._last = dict(lines)


def notebook_output() -> Callable[[str], None] | None:
    """A function that draws HTML in the output of the running notebook cell, in place of the HTML before; else None.

    A notebook has its own package imported already, so none is imported here.
    """
    marimo = sys.modules.get("marimo")
    if marimo is not None and marimo.running_in_notebook():
        return lambda text: marimo.output.replace(marimo.Html(text) if text else None)
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if getattr(shell, "kernel", None) is None:  # IPython in a terminal has none
        return None
    display: Callable[..., Any] = sys.modules["IPython"].display.display
    output_id = uuid.uuid4().hex
    display({"text/html": "", "text/plain": ""}, raw=True, display_id=output_id)
    return lambda text: display({"text/html": text, "text/plain": ""}, raw=True, display_id=output_id, update=True)
