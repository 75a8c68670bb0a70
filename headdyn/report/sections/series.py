"""When did what was measured emerge? For every series: the answer, its primary measure over training, the verdict."""

from __future__ import annotations

from markupsafe import Markup

from headdyn.report.markup import gallery, heading, soft, table
from headdyn.report.page import drawn
from headdyn.report.section import Section
from headdyn.report.series.curves import primary_curve
from headdyn.report.series.record import Series, read_series
from headdyn.report.series.tables import compared, verdict_table
from headdyn.report.series.words import headline
from headdyn.sweep.record import SweepRecord

_WORDS = (
    "A measure with a threshold counts; one without does not jump because a score does. Probabilities are shares of "
    "bootstrap draws of the pairs. Early is up to 25 % of training, late from 75 % on; sudden is where one interval "
    "between checkpoints holds half of the rise or more."
)


def section(sweep: SweepRecord) -> Section | None:
    """None for a sweep without series."""
    series = read_series(sweep)
    if not series:
        return None
    parts = [part(each) for each in series]
    if len(series) > 1:
        columns, rows = compared(series)
        which = "Where each measure emerged, (last step below, first step above], and its class."
        rows_of_text = [[label, *cells] for label, cells in rows]
        parts.insert(0, heading("Series side by side") + soft(which) + table(["series", *columns], rows_of_text))
    return Section("verdict", "When does it emerge?", Markup("").join(parts), headline(series[0]), folded=False)


def part(series: Series) -> Markup:
    """One series: its answer, its primary curve and its verdict."""
    figure = primary_curve(series)
    parts = [heading(series.title), Markup('<p class="headline">{}</p>\n').format(headline(series))]
    parts += [gallery([drawn(figure)])] if figure is not None else []
    columns, rows = verdict_table(series)
    if columns:
        parts += [table(["", *columns], [[label, *cells] for label, cells in rows]), soft(_WORDS)]
    return Markup("").join(parts)
