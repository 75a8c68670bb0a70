"""Panels of head maps from an analysis's table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headdyn.core.figures import HeadMap
from headdyn.core.records import HeadTable, Metric


def head_panel(
    metrics: Mapping[str, Metric], table: HeadTable, name: str, *, tested: str = "", **shown: Any
) -> HeadMap:
    """One metric's heads under its label and in its unit; marked are heads whose q in the metric `tested` is < 0.05."""
    metric = metrics[name]
    return HeadMap(
        title=metric.label,
        unit=metric.unit,
        value_LH=metric.scale * table.matrix(name),
        marked_LH=table.matrix(tested, "q") < 0.05 if tested else None,
        **shown,
    )
