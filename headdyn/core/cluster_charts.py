"""Charts of heads and their clusters: strips with one cell for each head, and heads as points in a plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headdyn.core.chart_parts import GREY, PALETTE, Tables, alt, ink, place_names, titled, tooltips
from headdyn.core.figures import Figure


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """One panel of heads as numbered points, coloured by cluster; a label of −1 (no cluster) is drawn hollow."""

    title: str
    points_H2: np.ndarray
    labels_H: np.ndarray
    xlabel: str = ""
    ylabel: str = ""


def label_strips(columns: Sequence[Sequence[tuple[str, np.ndarray]]], *, title: str = "", caption: str = "") -> Figure:
    """A strip for each clustering, with a cell for each head: its cluster's number and colour, hollow without one.

    `columns` are drawn side by side; each is a list of clusterings, a name and the heads' labels.
    """
    heads = max(len(labels_H) for strips in columns for _, labels_H in strips)
    tables, parts = Tables(), []
    for strips in columns:
        rows = [
            {"strip": place, "name": name, "head": head, **_look(label)}
            for place, (name, labels_H) in enumerate(strips)
            for head, label in enumerate(labels_H.tolist())
        ]
        x = place_names(alt.X("head:O"), range(heads), orient="top")
        base = tables.chart(rows).encode(x, place_names(alt.Y("strip:O"), [name for name, _ in strips], title=None))
        tips = tooltips("head:O", "cluster:N", **{"name:N": "clustering"})
        cells = base.mark_rect(stroke=GREY, strokeWidth=0.5, opacity=0.75).encode(
            alt.Fill("colour:N", scale=None), tooltip=tips
        )
        numbers = base.mark_text(fontSize=9).encode(*ink())
        parts.append(alt.layer(cells, numbers).properties(width=22 * heads, height=18 * len(strips)))
    return Figure(alt.hconcat(*parts, title=titled(title, 22 * heads * len(columns) + 160)), caption, tables)


def scatter_panels(panels: Sequence[Scatter], *, columns: int, title: str = "", caption: str = "") -> Figure:
    """Heads as numbered points, panel by panel."""
    tables, parts = Tables(), []
    for panel in panels:
        labelled = zip(panel.points_H2.tolist(), panel.labels_H.tolist(), strict=True)
        rows = [{"x": x, "y": y, "head": head, **_look(label)} for head, ((x, y), label) in enumerate(labelled)]
        x = alt.X("x:Q", title=panel.xlabel or None).scale(zero=False, padding=14).axis(tickCount=4)
        y = alt.Y("y:Q", title=panel.ylabel or None).scale(zero=False, padding=14).axis(tickCount=4)
        base = tables.chart(rows).encode(x, y)
        points = base.mark_circle(size=190, stroke=GREY, opacity=0.75)
        points = points.encode(alt.Fill("colour:N", scale=None), tooltip=tooltips("head:O", "cluster:N"))
        numbers = base.mark_text(fontSize=9).encode(*ink("head:O"))
        parts.append(alt.layer(points, numbers).properties(width=190, height=190, title=titled(panel.title, 210)))
    return Figure(alt.concat(*parts, columns=columns, title=titled(title, 240 * columns)), caption, tables)


def _look(label: int) -> dict[str, Any]:
    """The colour, text and name with which a cluster is drawn; −1 (no cluster) is white and without text."""
    colour = PALETTE[label % len(PALETTE)] if label >= 0 else "white"
    text, name = (str(label), str(label)) if label >= 0 else ("", "none")
    return {"colour": colour, "text": text, "cluster": name, "ink": "white" if colour == "#000000" else "black"}
