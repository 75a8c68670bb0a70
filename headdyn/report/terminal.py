"""What a terminal shows: one live line while a run works (a log line now and then elsewhere), a sweep's table after."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from rich import box
from rich.console import Console
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from headdyn.core.numbers import ABSENT, MINUS, Quantity, decimals, fixed, p_value, quantity
from headdyn.report.cells import of_prompts
from headdyn.report.prompt_run import in_words
from headdyn.report.series.record import read_series
from headdyn.report.series.words import series_statements
from headdyn.sweep.effect_words import ONE_SEED
from headdyn.sweep.record import SweepRecord, single_job
from headdyn.sweep.words import statements

log = logging.getLogger(__name__)

LOG_EVERY_SECONDS = 15.0


class Progress(Protocol):
    """What a training reports of itself."""

    @property
    def step(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def loss_nats(self) -> float: ...

    @property
    def tokens_per_second(self) -> float: ...

    @property
    def eta_seconds(self) -> float: ...

    @property
    def gap_closed(self) -> float | None: ...


class ProgressLine:
    """A context manager that is called with every Progress."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.live = (
            Live(console=Console(stderr=True), transient=True, auto_refresh=False) if sys.stderr.isatty() else None
        )
        self._logged = time.monotonic()

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, progress: Progress) -> None:
        """Show where the training stands."""
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
    speed = f"{p.tokens_per_second / 1e3:.1f} K tokens/s"
    return f"step {p.step}/{p.steps}  loss {p.loss_nats:.3f} nats{gap}  {speed}  {left} left"


# The seed's summary columns with what they need beside them, and gap closed: scalar, title.
_COLUMNS = (
    ("loss_nats", "val loss\n(nats)"),
    ("gap_closed", "gap\nclosed\n(%)"),
    ("within_ratio", "within\n(%)"),
    ("selectivity", "selec-\ntivity\n(points)"),
    ("entropy_nats", "entropy\n(nats)"),
    ("probe_accuracy_middle", "probe,\nmiddle\n(%)"),
)
# The same of runs on comparison prompts; those that no run recorded are left out.
_PROMPT_COLUMNS = (
    ("plain_success", "plain\n(%)"),
    ("even_success", "even\n(%)"),
    ("odd_success", "odd\n(%)"),
    ("all_success", "all\nheads\n(%)"),
    ("strength", "strength"),
    ("strength_nats", "of Δ\n(nats)"),
    ("control_strength_nats", "of Δ,\ncontrols\n(nats)"),
)
_SEED_COLUMNS = (
    ("seed_plain_success", "plain\n(%)"),
    ("seed_even_success", "even\n(%)"),
    ("seed_odd_success", "odd\n(%)"),
    ("seed_strength", "strength"),
)
_CLUSTER_COLUMNS = (
    ("qk_best_silhouette", "silhouette,\nQK circuits"),
    ("ov_best_silhouette", "silhouette,\nOV circuits"),
    ("behaviour_best_silhouette", "silhouette,\neffects"),
)
# What intervals, p and null of a table are.
_SEQUENCES = "{} over held-out sequences; vs: what chance gives (null)"
_PAIRS = "{} over bug pairs; p: even/odd's exact rank among all balanced splits of one checkpoint's layer"
_STUDY = "as the study judged its one prompt (protocol=seed): no units to give an interval of"
_HEADS = "best of all clusterings; p against random heads; vs: their mean (null)"
_NARROW, _WIDE = 112, 176  # columns of the terminal from which intervals are spelled out, and stand on the value's line


def print_summary(console: Console, sweep: SweepRecord, page: Path | None = None) -> None:
    """A sweep's table, its answers in a sentence each, the jobs that did not finish, and where the report is."""
    if sweep.complete:
        recorded = {name for job in sweep.complete for name in job.run.scalars}
        about_prompts = ((_PROMPT_COLUMNS, _PAIRS), (_SEED_COLUMNS, _STUDY), (_CLUSTER_COLUMNS, _HEADS))
        for columns, over in about_prompts if of_prompts(sweep.complete) else ((_COLUMNS, _SEQUENCES),):
            if there := [(name, title) for name, title in columns if name in recorded]:
                console.print(summary_table(sweep, console, there, over))
    said = False  # once is enough on a terminal
    for statement in (*series_statements(read_series(sweep)), *statements(sweep)):
        lead = statement.sentences[0].removeprefix(f"{ONE_SEED} " if said else "")
        said |= statement.sentences[0].startswith(ONE_SEED)
        where = f" ({statement.group})" if statement.group else ""
        console.print(Text(f"{statement.question}{where}", style="bold"))
        details = statement.sentences[1:] if lead.endswith(":") else ()
        for text in (lead, *(f"- {sentence}" for sentence in details)):
            console.print(Padding(Text(_encodable(text, console)), (0, 0, 0, 2)))
    if len(sweep.jobs) == 1:
        for sentence in in_words(sweep.jobs[0]):
            console.print(Padding(Text(_encodable(sentence, console)), (0, 0, 0, 2)))
    for job in sweep.failed:
        error = job.run.manifest.get("error", "it left no error")
        console.print(Text(f"{job.run.name}: {job.run.status}. {error}", style="red"))
    if page is not None:
        console.print(f"report: {page}", highlight=False, soft_wrap=True)


def print_run(folder: Path) -> None:
    """A single finished run's numbers, and where its report is."""
    alone = SweepRecord(folder=folder, name=folder.name, jobs=[single_job(folder)], effects=[], pairs=[], pooled=[])
    print_summary(Console(), alone, folder / "report.html")


def summary_table(sweep: SweepRecord, console: Console, columns: Sequence[tuple[str, str]], over: str) -> Table:
    """One row a complete run: each number with its interval, and the null where chance is not zero.

    Below 112 columns the interval is given as ± half its width; from 176 on it stands beside the value.
    """
    width = console.width
    how = "± half the 95 % interval" if width < _NARROW else "[95 % interval]"
    table = Table(
        box=box.SIMPLE_HEAD,
        caption=_encodable(over.format(how), console),
        pad_edge=False,
        show_edge=False,
        caption_justify="left",
    )
    table.add_column("run", overflow="fold", min_width=12)
    for _, title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for job in sweep.complete:
        cells = (_cell(job.scalar(name), quantity(name), width, with_p=over is not _SEQUENCES) for name, _ in columns)
        table.add_row(job.label, *(Text(_encodable(cell, console)) for cell in cells))
    return table


def _cell(scalar: Mapping[str, Any], q: Quantity, width: int, *, with_p: bool = False) -> str:
    if scalar.get("value") is None:
        return "absent"
    low, high = scalar.get("ci_low"), scalar.get("ci_high")
    text = q.spelled(scalar)
    if low is not None and high is not None:
        value, _, interval = text.partition(" ")
        places = decimals(q.scale * scalar["value"], q.scale * low, q.scale * high)
        half = f"±{q.scale * (high - low) / 2:.{places}f}"
        text = f"{value}\n{half}" if width < _NARROW else f"{value}{' ' if width >= _WIDE else chr(10)}{interval}"
    if with_p and scalar.get("p") is not None:
        text += f"\np {p_value(scalar['p'])}"
    return f"{text}\nvs {fixed(q.scale * scalar['null'], max(1, q.places - 1))}" if scalar.get("null") else text


def _encodable(text: str, console: Console) -> str:
    """The text in what the terminal can show: signs that an old encoding lacks become ASCII."""
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        for sign, plain in (("±", "+-"), (MINUS, "-"), (ABSENT, "-"), ("×", "x"), ("…", "...")):
            text = text.replace(sign, plain)
        return text.encode(console.encoding, "replace").decode(console.encoding)
    return text
