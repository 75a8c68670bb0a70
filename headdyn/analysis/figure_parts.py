"""Parts that figures of several analyses share: panels, curves and intervals from tables, and tokens as text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headdyn.analysis.estimates import Estimate
from headdyn.core.figures import Curve, Figure, HeadMap, Interval, interval_plot
from headdyn.core.records import HeadTable, Metric

_SIGNS = {"\n": "\u21b5", " ": "\u2423"}  # a return arrow, an open box


def head_panel(
    metrics: Mapping[str, Metric], table: HeadTable, name: str, *, tested: str = "", **options: Any
) -> HeadMap:
    """The head map of metric `name`, with its label and unit; a star marks heads with q < 0.05 in the metric `tested`.

    `options` are further fields of HeadMap.
    """
    metric = metrics[name]
    return HeadMap(
        title=metric.label,
        unit=metric.unit,
        value_LH=metric.scale * table.matrix(name),
        marked_LH=table.matrix(tested, "q") < 0.05 if tested else None,
        **options,
    )


def layer_curve(table: HeadTable, metric: str, label: str) -> Curve:
    """One metric over the layers that have a value, with its interval as a band."""
    value_L, low_L, high_L = (table.layer_series(metric, column) for column in ("value", "ci_low", "ci_high"))
    at = np.flatnonzero(np.isfinite(value_L))
    return Curve(label=label, x=at, y=value_L[at], low=low_L[at], high=high_L[at])


def interval(label: str, row: Mapping[str, Any], group: str = "") -> Interval:
    """A row of an interval plot from a row of a table or of its summary."""
    value, low, high, null = (row.get(column) for column in ("value", "ci_low", "ci_high", "null"))
    return Interval(label=label, value=value, low=low, high=high, null=null, group=group)


def topic_intervals(
    names: Sequence[str], by_topic: Estimate, xlabel: str, *, scale: float, caption: str, null: np.ndarray | None = None
) -> Figure:
    """An interval plot of one of the model's statistics for each topic, [S], with `null` as chance; a line marks 0.

    `scale` is the factor to the unit in `xlabel`, such as 100 for percent.
    """
    rows = []
    for at, name in enumerate(names):
        value, low, high = (scale * float(column[at]) for column in (by_topic.value, by_topic.low, by_topic.high))
        if np.isnan(value):
            rows.append(Interval(label=name, value=None))
            continue
        chance = None if null is None else scale * float(null[at])
        rows.append(Interval(label=name, value=value, low=low, high=high, null=chance))
    return interval_plot(rows, xlabel=xlabel, zero_line=True, caption=caption)


def drawable(text: str) -> str:
    """A token's text, with signs for spaces and line breaks, and with code points for scripts that most fonts lack."""
    text = "".join(_SIGNS.get(c, c) for c in text) or "\u2205"
    signs = (
        c if c in "\u21b5\u2423\u2205" or (" " < c < "\u0530" and c.isprintable()) else f"U+{ord(c):04X}" for c in text
    )
    return "".join(signs)
