"""What a run shows while it works: one live line on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from headdyn.core.run_folder import RunRecord

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


# The seed's summary columns with what they need beside them, and gap closed.
_COLUMNS = (
    ("val loss (nats)", "loss_nats"),
    ("gap closed", "gap_closed"),
    ("within ratio", "within_ratio"),
    ("selectivity", "selectivity"),
    ("entropy (nats)", "entropy_nats"),
    ("probe, middle", "probe_accuracy_middle"),
)


def summary_table(runs: Sequence[RunRecord]) -> Table:
    """One row a run: the seed's columns, each with its interval, and the null where chance is not zero."""
    table = Table(box=box.SIMPLE_HEAD, caption="[95 % interval over sequences], null in italics")
    for name in ("run", *(title for title, _ in _COLUMNS)):
        table.add_column(name)
    for run in runs:
        if run.status != "complete":
            table.add_row(run.name, Text(run.status, style="red"))
            continue
        factors = ("attention", "data_ordering", "position_enc")
        label = " ".join(str(run.factors[name]) for name in factors) + f" s{run.factors['seed']}"
        table.add_row(label, *(_cell(run.scalars.get(scalar)) for _, scalar in _COLUMNS))
    return table


def _cell(scalar: Any) -> Text:
    if not isinstance(scalar, Mapping) or scalar.get("value") is None:
        return Text("—")
    text = Text(f"{scalar['value']:.3f}")
    if "ci_low" in scalar:
        text.append(f"\n[{scalar['ci_low']:.3f}, {scalar['ci_high']:.3f}]", style="dim")
    if scalar.get("null"):
        text.append(f"\nnull {scalar['null']:.3f}", style="dim italic")
    return text
