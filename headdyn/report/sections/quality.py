"""Quality control: what must hold in any sweep, and whether it does."""

from collections.abc import Sequence

from headdyn.report import extension
from headdyn.report.blocks import Section, Table, marked
from headdyn.report.quality import Check, checks, in_order, run_checks
from headdyn.report.series.quality import series_checks
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_record import read_series

_WORDS = {"ok": ("✓ ok", "ok"), "note": ("• note", "to note"), "fails": ("✗ fails", "fail")}


def section(sweep: SweepRecord) -> Section:
    """The checks of any sweep and of the packages that its runs name."""
    return _section([*checks(sweep), *series_checks(read_series(sweep)), *extension.checks(sweep)])


def of_run(sweep: SweepRecord) -> Section:
    """The checks that make sense of one run."""
    return _section([*run_checks(sweep.jobs[0]), *extension.checks(sweep)])


def _section(made: Sequence[Check]) -> Section:
    made = in_order(made)
    rows = [[marked(_WORDS[c.verdict][0], f"check-{c.verdict}"), c.question, c.facts] for c in made]
    counts = {_WORDS[verdict][1]: sum(c.verdict == verdict for c in made) for verdict in ("fails", "note", "ok")}
    headline = ", ".join(f"{number} {word}" for word, number in counts.items() if number)
    return Section("quality", "Quality control", [Table(columns=["", "question", "facts"], rows=rows)], headline)
