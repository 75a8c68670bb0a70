"""What a terminal shows: one live line while a run works (a log line now and then elsewhere), a sweep's table after."""

from __future__ import annotations

import itertools
import logging
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from headdyn.core.numbers import ABSENT, MINUS, decimals, fixed, p_value
from headdyn.core.records import Metric
from headdyn.report.cells import columns_for
from headdyn.report.sections import prompts
from headdyn.report.series.record import read_series
from headdyn.report.series.words import headline
from headdyn.sweep.effect_words import ONE_SEED
from headdyn.sweep.record import SweepRecord, single_job
from headdyn.sweep.words import WORTH, question_about, statements

if TYPE_CHECKING:
    from headdyn.training.loop import Progress

log = logging.getLogger(__name__)

LOG_EVERY_SECONDS = 15.0


class ProgressLine:
    """A context manager that is called with every Progress of a training."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.live = None
        if sys.stderr.isatty():
            self.live = Live(console=Console(stderr=True), transient=True, auto_refresh=False)
        self._logged = time.monotonic()

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
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


_NARROW, _WIDE = 112, 176  # columns of the terminal from which intervals are spelled out, and stand on the value's line
_LABEL = 18  # columns for the name of a run


def print_summary(console: Console, sweep: SweepRecord, page: Path | None = None) -> None:
    """A sweep's table, what it says in a sentence or a few, the jobs that did not finish, and where the report is."""
    columns = columns_for(sweep.complete)
    if columns:
        console.print(summary_table(sweep, console, columns))
    for sentence in headlines(sweep):
        console.print(Text(_encodable(sentence, console)))
    for job in sweep.failed:
        error = job.run.manifest.get("error", "it left no error")
        console.print(Text(f"{job.run.name}: {job.run.status}. {error}", style="red"))
    if page is not None:
        console.print(f"report: {page}", highlight=False, soft_wrap=True)


def headlines(sweep: SweepRecord) -> list[str]:
    """What to read if little is read: of factors the effect on the primary outcome, of series when something emerged.

    Where there is neither, the first sentence of every answer.
    """
    series = read_series(sweep)
    if series:
        return [headline(each) for each in series]
    if len(sweep.jobs) == 1 and (answers := prompts.statements(sweep.jobs[0])):
        return [sentence for answer in answers for sentence in answer.sentences]
    every = statements(sweep)
    questions = {question_about(factor.name) for factor in sweep.factors}
    answers = [statement for statement in every if statement.question in questions]
    answers = [*answers, *(statement for statement in every if statement.question == WORTH)] if answers else every
    leads = dict.fromkeys((statement.group, statement.sentences[0].rstrip(":")) for statement in answers)
    sentences = [f"{group}: {lead}" if group else lead for group, lead in leads]
    return sentences[:1] + [sentence.replace(f"{ONE_SEED} ", "") for sentence in sentences[1:]]


def print_run(folder: Path) -> None:
    """A single finished run's numbers, and where its report is."""
    print_summary(Console(), SweepRecord.of(single_job(folder)), folder / "report.html")


def summary_table(sweep: SweepRecord, console: Console, columns: Sequence[str]) -> Table:
    """One row a complete run: as many outcomes as fit, each with its interval, and the null where chance is not zero.

    Below 112 columns the interval is given as ± half its width; from 176 on it stands beside the value.
    """
    width = console.width
    made: list[list[str]] = []
    for name in columns:
        metric = sweep.metric(name)
        cells = [_cell(job.scalar(name), job.metric(name), width) for job in sweep.complete]
        title = f"{metric.label} ({metric.unit})" if metric.unit else metric.label
        widest = max(len(line) for text in (*cells, title.replace(" ", "\n")) for line in text.splitlines())
        made.append([textwrap.fill(title, widest, break_long_words=False), *cells])
    widths = (max(len(line) for text in column for line in text.splitlines()) + 2 for column in made)
    fitting = sum(total <= width for total in itertools.accumulate(widths, initial=_LABEL)) - 1
    chosen = made[: max(1, fitting)]
    how = "± half the 95 % interval" if width < _NARROW else "[95 % interval]"
    left_out = len(made) - len(chosen)
    more = f"; {left_out} more in summary.csv" if left_out else ""
    table = Table(
        box=box.SIMPLE_HEAD,
        caption=_encodable(f"{how} within the run; vs: what chance gives (null){more}", console),
        pad_edge=False,
        show_edge=False,
        caption_justify="left",
    )
    table.add_column("run", overflow="fold", min_width=12)
    for title, *_ in chosen:
        table.add_column(Text(_encodable(title, console)), justify="right", no_wrap=True)
    for number, job in enumerate(sweep.complete, 1):
        table.add_row(job.label, *(Text(_encodable(column[number], console)) for column in chosen))
    return table


def _cell(scalar: Mapping[str, Any], metric: Metric, width: int) -> str:
    if scalar.get("value") is None:
        return "absent"
    low, high = scalar.get("ci_low"), scalar.get("ci_high")
    text = metric.spelled(scalar)
    if low is not None and high is not None:
        value, _, interval = text.partition(" ")
        places = decimals(metric.scale * scalar["value"], metric.scale * low, metric.scale * high)
        half = f"±{metric.scale * (high - low) / 2:.{places}f}"
        text = f"{value}\n{half}" if width < _NARROW else f"{value}{' ' if width >= _WIDE else chr(10)}{interval}"
    if scalar.get("p") is not None:
        text += f"\np {p_value(scalar['p'])}"
    if scalar.get("null"):
        text += f"\nvs {fixed(metric.scale * scalar['null'], max(1, metric.digits - 1))}"
    return text


def _encodable(text: str, console: Console) -> str:
    """The text in what the terminal can show: signs that an old encoding lacks become ASCII."""
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        for sign, plain in (("±", "+-"), (MINUS, "-"), (ABSENT, "-"), ("×", "x"), ("…", "...")):
            text = text.replace(sign, plain)
        return text.encode(console.encoding, "replace").decode(console.encoding)
    return text
