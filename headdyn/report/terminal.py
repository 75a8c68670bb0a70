"""The summary of an ended sweep or run in a terminal: its table, its answers in a sentence each, its page's path."""

import itertools
import textwrap
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headdyn.core.numbers import ABSENT, MINUS
from headdyn.report.blocks import Cell
from headdyn.report.extension import added
from headdyn.report.sections import prompts
from headdyn.report.sections.runs import outcome_table
from headdyn.sweep.effect_words import without_warning
from headdyn.sweep.record import SweepRecord, is_run, single_job
from headdyn.sweep.series_record import read_series
from headdyn.sweep.series_words import headline
from headdyn.sweep.words import WORTH, question_about, statements

_NARROW, _WIDE = 112, 176  # terminal columns: below the first, ± half-widths; from the second, intervals beside values
_LABEL, _GAP = 12, 3  # least width of the column of run names, and the gap between two columns


def print_summary(console: Console, sweep: SweepRecord, page: Path) -> None:
    """Print a sweep's table, its main sentences, the jobs that did not finish, and the path of its report."""
    table = summary_table(sweep, console)
    if any(column.justify == "right" for column in table.columns):
        console.print(table)
    for sentence in headlines(sweep):
        console.print(_text(sentence, console))
    for job in sweep.failed:
        error = job.run.manifest.get("error", "it left no error")
        console.print(Text(f"{job.run.name}: {job.run.status}. {error}", style="red"))
    console.print(f"report: {page}", highlight=False, soft_wrap=True)


def headlines(sweep: SweepRecord) -> list[str]:
    """The sentences to read first.

    The verdicts of a study's package; then for series, when something emerged; for one run on prompts, all its answers;
    for factors, their effects on the primary outcome; for anything else, the first sentence of every answer.
    """
    verdicts = []
    for verdict in added("verdicts", sweep):
        question = verdict.question if verdict.question.endswith("?") else f"{verdict.question}."
        group = f"{verdict.group}: " if verdict.group else ""
        verdicts.append(f"{group}{question} {verdict.sentences[0]}")
    return [*verdicts, *_of_records(sweep)]


def _of_records(sweep: SweepRecord) -> list[str]:
    if all_series := read_series(sweep):
        return [f"{series.title}: {headline(series)}" if series.title else headline(series) for series in all_series]
    if len(sweep.jobs) == 1 and (answers := prompts.statements(sweep.jobs[0])):
        return [sentence for answer in answers for sentence in answer.sentences]
    every = statements(sweep)
    questions = {question_about(factor.name) for factor in sweep.factors}
    answers = [statement for statement in every if statement.question in questions]
    answers = [*answers, *(statement for statement in every if statement.question == WORTH)] if answers else every
    leads = dict.fromkeys((statement.group, statement.sentences[0].rstrip(":")) for statement in answers)
    sentences = [f"{group}: {lead}" if group else lead for group, lead in leads]
    return sentences[:1] + without_warning(sentences[1:])


def print_run(folder: Path) -> None:
    """Print a single finished run's numbers and the path of its report."""
    print_summary(Console(), SweepRecord.of(single_job(folder)), folder / "report.html")


def summary_table(sweep: SweepRecord, console: Console) -> Table:
    """One row per complete run: as many outcomes as fit, with their intervals, and their nulls where these are not 0.

    A single run has no column of names. An outcome that is absent for every run is left out. In a terminal of fewer
    than 112 columns intervals are given as ± half their width; from 176 on they stand beside the values.
    """
    outcomes, width = outcome_table(sweep, sweep.complete), console.width
    columns: list[list[str]] = []
    for heading, *cells in zip(outcomes.columns[1:], *(row[1:] for row in outcomes.rows), strict=True):
        if all(cell.reason for cell in cells):
            continue
        label, unit = heading.split("\n")
        title, texts = f"{label} ({unit})" if unit else label, [_lines(cell, width) for cell in cells]
        widest = max(len(line) for text in (*texts, title.replace(" ", "\n")) for line in text.splitlines())
        columns.append([textwrap.fill(title, widest, break_long_words=False), *texts])
    widths = (max(len(line) for text in column for line in text.splitlines()) + _GAP for column in columns)
    single = is_run(sweep.folder)
    fitting = sum(total <= width for total in itertools.accumulate(widths, initial=-_GAP if single else _LABEL)) - 1
    chosen = columns[: max(1, fitting)]
    intervals = "± half the 95 % interval" if width < _NARROW else "[95 % interval]"
    left_out = len(outcomes.columns) - 1 - len(chosen)
    more = f"; {left_out} more in summary.{'json' if single else 'csv'}" if left_out else ""
    caption = _text(f"{intervals} within the run; null: what chance gives{more}", console).plain
    table = Table(box=box.SIMPLE_HEAD, caption=caption, pad_edge=False, show_edge=False, caption_justify="left")
    if not single:
        table.add_column("run", overflow="fold", min_width=_LABEL)
    for title, *_ in chosen:
        table.add_column(_text(title, console), justify="right", no_wrap=True)
    for place, row in enumerate(outcomes.rows, 1):
        name = [] if single else [row[0]]
        table.add_row(*name, *(_text(column[place], console) for column in chosen))
    return table


def _lines(cell: Cell, width: int) -> str:
    """A number, its interval, its p-value and its null, one per line."""
    if cell.reason:
        return "absent"
    interval = cell.half_width if width < _NARROW else cell.interval
    value = f"{cell.value} {interval}".strip() if width >= _WIDE else f"{cell.value}\n{interval}".strip()
    test = cell.note if cell.note.startswith("p ") else ""
    return "\n".join(filter(None, (value, test, cell.null)))


def _text(text: str, console: Console) -> Text:
    """The text with ASCII in place of signs that the terminal's encoding lacks."""
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        for sign, plain in (("±", "+-"), (MINUS, "-"), (ABSENT, "-"), ("×", "x"), ("…", "...")):
            text = text.replace(sign, plain)
        text = text.encode(console.encoding, "replace").decode(console.encoding)
    return Text(text)
