"""Parts that figures of several analyses share: panels of heads, and texts that every font can draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headdyn.core.figures import HeadMap
from headdyn.core.records import HeadTable, Metric

_SIGNS = {"\n": "\u21b5", " ": "\u2423"}  # a return arrow, an open box


def head_panel(
    metrics: Mapping[str, Metric], table: HeadTable, name: str, *, tested: str = "", **options: Any
) -> HeadMap:
    """One metric's head map with its label and in its unit; a star marks heads with q < 0.05 in the metric `tested`."""
    metric = metrics[name]
    return HeadMap(
        title=metric.label,
        unit=metric.unit,
        value_LH=metric.scale * table.matrix(name),
        marked_LH=table.matrix(tested, "q") < 0.05 if tested else None,
        **options,
    )


def drawable(text: str) -> str:
    """A token's text, with signs for spaces and line breaks, and with code points for scripts that most fonts lack."""
    text = "".join(_SIGNS.get(c, c) for c in text) or "\u2205"
    drawn = (
        c if c in "\u21b5\u2423\u2205" or (" " < c < "\u0530" and c.isprintable()) else f"U+{ord(c):04X}" for c in text
    )
    return "".join(drawn)
