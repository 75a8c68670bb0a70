"""Which weights every checkpoint of a series has, and whether it counts."""

from __future__ import annotations

from markupsafe import Markup

from headdyn.report.markup import heading, soft, table
from headdyn.report.section import Section
from headdyn.report.series.record import read_series
from headdyn.report.series.tables import CHECKPOINT_COLUMNS, checkpoint_rows
from headdyn.report.series.words import counted
from headdyn.sweep.record import SweepRecord

_HASHED = (
    "A revision's name is not trusted: the loaded weights are hashed. Revisions with equal weights are kept out of "
    "every verdict, but for the end of training."
)


def section(sweep: SweepRecord) -> Section | None:
    """None for a sweep without series."""
    series = read_series(sweep)
    if not series:
        return None
    parts = [soft(_HASHED)]
    for each in series:
        numbers = [each.jobs[row["revision"]].number if row["revision"] in each.jobs else "" for row in each.rows]
        parts.append(heading(each.title) + table(CHECKPOINT_COLUMNS, checkpoint_rows(each), numbers=numbers))
    return Section("checkpoints", "Checkpoints", Markup("").join(parts), counted(series[0])[0])
