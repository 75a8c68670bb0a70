"""How curves over the checkpoints of a series are drawn: looks, a log axis, where something emerged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from headdyn.core.figures import PALETTE
from headdyn.report.charts import Band, Line, Style, figure, legend, line_chart
from headdyn.report.series.record import Points

GREY = "#7a8491"
_STEP = "training step (log scale)"

# Dashes and mark of the first lines of a chart, so that colour is never the only difference.
LOOKS = (("", "circle"), ("7 3", "square"), ("2 3", "up"), ("9 3 2 3", "circle"), ("4 2", "square"))


def measured_line(label: str, points: Points, colour: int, dash: str = "", mark: str = "circle") -> Line:
    """A metric with its intervals, where it has any."""
    low, high = (points.low, points.high) if points.has_interval else (None, None)
    style = Style(PALETTE[colour], dash, mark)
    return Line(label=label, x=points.steps, y=points.value, low=low, high=high, style=style)


def plain_line(label: str, points: Sequence[tuple[float, float]], colour: str, dash: str, mark: str) -> Line:
    """(step, value) pairs without intervals."""
    return Line(label=label, x=[x for x, _ in points], y=[y for _, y in points], style=Style(colour, dash, mark))


def chart_over_steps(
    lines: Sequence[Line],
    title: str,
    y_label: str,
    references: Mapping[str, float],
    bands: Sequence[Band] = (),
    said: Mapping[str, int | None] | None = None,
    *,
    scale: float = 1.0,
    y_values: Sequence[float] = (),
    log_x: bool = True,
    width: int = 535,
) -> Markup | None:
    """A chart over its legend, with the emergence interval shaded; None where there is nothing to draw."""
    if not lines:
        return None
    said = said or {}
    span, first = None, min(x for line in lines for x in line.x)
    if said.get("emerges_at_step") is not None:
        span = (float(max(said["emerges_after_step"] or first, first)), float(said["emerges_at_step"] or 0))
    chart = line_chart(
        lines,
        title=title,
        x_label=_STEP if log_x else "training step",
        y_label=y_label,
        references=references,
        log_x=log_x,
        bands=bands,
        span=span,
        scale_y=scale,
        y_values=y_values,
        width=width,
        height=320,
    )
    return figure(chart, legend(lines, bands, "where it emerged" if span else ""), width)
