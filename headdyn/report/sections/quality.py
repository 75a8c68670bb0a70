"""Quality control: every check with its verdict and its facts."""

from collections.abc import Sequence

from headdyn.report.blocks import Section, Table, marked
from headdyn.report.extension import added
from headdyn.report.quality import Check, checks, in_order, run_checks
from headdyn.report.series.quality import series_checks
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_record import read_series

_WORDS = {"ok": ("✓ ok", "ok"), "note": ("• note", "to note"), "fails": ("✗ fails", "fail")}


def section(sweep: SweepRecord) -> Section:
    """The checks of any sweep and of the packages that its runs name."""
    return _section([*checks(sweep), *series_checks(read_series(sweep)), *added("checks", sweep)])


def of_run(sweep: SweepRecord) -> Section:
    """The checks that apply to a single run, and those of the packages that it names."""
    return _section([*run_checks(sweep.jobs[0]), *added("checks", sweep)])


def _section(results: Sequence[Check]) -> Section:
    rows = [[marked(_WORDS[c.verdict][0], f"check-{c.verdict}"), c.question, c.facts] for c in in_order(results)]
    counts = {_WORDS[verdict][1]: sum(c.verdict == verdict for c in results) for verdict in ("fails", "note", "ok")}
    headline = ", ".join(f"{number} {word}" for word, number in counts.items() if number)
    return Section("quality", "Quality control", [Table(columns=["", "question", "facts"], rows=rows)], headline)
