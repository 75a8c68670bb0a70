"""Everything else that a series measured, over training, and the figures that the analysis of the series drew."""

from __future__ import annotations

from markupsafe import Markup

from headdyn.report.markup import gallery, heading
from headdyn.report.page import drawn, picture
from headdyn.report.section import Section
from headdyn.report.series.curves import other_curves
from headdyn.report.series.record import read_series
from headdyn.sweep.record import SweepRecord


def section(sweep: SweepRecord) -> Section | None:
    """None where nothing else was measured at two checkpoints that count."""
    parts = []
    for each in read_series(sweep):
        figures = [drawn(figure) for figure in other_curves(each).values()]
        figures += [picture(path, title.replace("_", " ")) for title, path in each.figures.items() if path.exists()]
        parts += [heading(each.title) + gallery(figures)] if figures else []
    return Section("timeline", "Over training", Markup("").join(parts)) if parts else None
