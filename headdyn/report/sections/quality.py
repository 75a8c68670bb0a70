"""Quality control: what must hold in any sweep, and whether it does."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from headdyn.report import extension
from headdyn.report.markup import table
from headdyn.report.quality import Check, checks, in_order, run_checks
from headdyn.report.section import Section
from headdyn.report.series.quality import series_checks
from headdyn.report.series.record import read_series
from headdyn.sweep.record import SweepRecord

_WORDS = {"ok": "✓ ok", "note": "• note", "fails": "✗ fails"}


def section(sweep: SweepRecord) -> Section:
    """The checks of any sweep and of the packages that its runs name."""
    return _section([*checks(sweep), *series_checks(read_series(sweep)), *extension.checks(sweep)])


def of_run(sweep: SweepRecord) -> Section:
    """The checks that make sense of one run."""
    return _section([*run_checks(sweep.jobs[0]), *extension.checks(sweep)])


def _section(made: Sequence[Check]) -> Section:
    made = in_order(made)
    mark = Markup('<span class="check-{}">{}</span>')
    rows = [[mark.format(check.verdict, _WORDS[check.verdict]), check.question, check.facts] for check in made]
    words = {"fails": "fail", "note": "to note", "ok": "ok"}
    counts = {word: sum(check.verdict == verdict for check in made) for verdict, word in words.items()}
    headline = ", ".join(f"{number} {word}" for word, number in counts.items() if number)
    return Section("quality", "Quality control", table(["", "question", "facts"], rows), headline)
