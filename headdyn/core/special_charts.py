"""Charts that only some analyses draw: values beside what chance gives, clusters of heads, and tables of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headdyn.core.chart_parts import GREY, PALETTE, Tables, alt, ink, json_number, place_names, titled, tooltips
from headdyn.core.figures import Figure


@dataclass(frozen=True, kw_only=True)
class NullRanges:
    """One panel with a value for each label, its interval if it has one, and the range that chance gives.

    Arrays are over `labels`. A value that is NaN is drawn as the word "none". `null_X3` has the 5th percentile, the
    mean and the 95th percentile of chance. Labels that are true in `marked_X` get an asterisk.
    """

    title: str
    labels: Sequence[str]
    value_X: np.ndarray
    null_X3: np.ndarray
    ylabel: str
    xlabel: str = ""
    low_X: np.ndarray | None = None
    high_X: np.ndarray | None = None
    marked_X: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """One panel of heads as numbered points, coloured by cluster; a label of −1 (no cluster) is drawn hollow."""

    title: str
    points_H2: np.ndarray
    labels_H: np.ndarray
    xlabel: str = ""
    ylabel: str = ""


def null_ranges(
    panels: Sequence[NullRanges], *, columns: int, title: str = "", mark: str = "q < 0.05", caption: str = ""
) -> Figure:
    """Values as dots over grey bars, the ranges that chance gives, in a grid of panels; an asterisk means `mark`."""
    tables, parts = Tables(), []
    for panel in panels:
        columns_by_name = {"value": panel.value_X, "low": panel.low_X, "high": panel.high_X}
        columns_by_name |= dict(zip(("null_low", "null_mean", "null_high"), np.asarray(panel.null_X3).T, strict=True))
        rows = []
        for place, label in enumerate(panel.labels):
            row: dict[str, Any] = {n: None if X is None else json_number(X[place]) for n, X in columns_by_name.items()}
            marked = panel.marked_X is not None and panel.marked_X[place] and row["value"] is not None
            top = row["value"] if row["high"] is None else row["high"]
            rows.append(row | {"place": place, "label": label, "star": "*" if marked else "", "top": top})
        base = tables.chart(rows).encode(place_names(alt.X("place:O"), panel.labels, title=panel.xlabel or None))
        tips = tooltips("label:N", *(f"{name}:Q" for name in columns_by_name))
        y = {n: alt.Y(f"{n}:Q", title=panel.ylabel).scale(zero=False) for n in (*columns_by_name, "top")}
        layers = [
            base.mark_bar(color="#d1d1d1").encode(y["null_low"], alt.Y2("null_high:Q"), tooltip=tips),
            base.mark_tick(color=GREY, thickness=1.5).encode(y["null_mean"]),
            base.mark_rule(color=PALETTE[0], strokeWidth=1.8).encode(y["low"], alt.Y2("high:Q")),
            base.mark_point(color=PALETTE[0], filled=True, size=44, opacity=1).encode(y["value"], tooltip=tips),
            base.mark_text(dy=-9, fontSize=13).encode(y["top"], alt.Text("star:N")),
            base.mark_text(text="none", color=GREY).encode(alt.YValue(172)).transform_filter("!isValid(datum.value)"),
        ]
        width = max(180, 26 * len(rows))
        parts.append(alt.layer(*layers, width=width, height=180, title=titled(panel.title, width)))
    starred = f"; * {mark}" if any(panel.marked_X is not None for panel in panels) else ""
    heading = titled(title, 250 * columns, f"dot: measured; grey bar: chance, 5 to 95 %; line in it: its mean{starred}")
    return Figure(alt.concat(*parts, columns=columns, title=heading), caption, tables)


def label_strips(columns: Sequence[Sequence[tuple[str, np.ndarray]]], *, title: str = "", caption: str = "") -> Figure:
    """A strip for each clustering, with a cell for each head: its cluster's number and colour, empty without a cluster.

    `columns` are drawn side by side; each is a list of clusterings, which are a name and the heads' labels.
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


def text_tables(texts: Mapping[str, Sequence[Sequence[str]]], *, widths: Sequence[int], caption: str = "") -> Figure:
    """Tables of texts side by side, by title; `widths` are those of the columns, in pixels.

    The first row of a table has its headings. Texts wider than their column are cut.
    """
    lefts, height = [0, *np.cumsum(widths).tolist()], 18 * max(len(rows) for rows in texts.values())
    x = alt.X("x:Q", axis=None).scale(domain=[0, lefts[-1]], nice=False)
    y = alt.Y("y:Q", axis=None).scale(domain=[height, 0], nice=False)
    tables, parts = Tables(), []
    for title, rows in texts.items():
        cells = [
            {"x": lefts[column], "y": 9 + 18 * row, "text": text, "width": widths[column] - 8, "heading": row == 0}
            for row, line in enumerate(rows)
            for column, text in enumerate(line)
        ]
        colour = alt.ColorValue(**alt.condition("datum.heading", alt.value(GREY), alt.value("black")))
        words = tables.chart(cells).mark_text(align="left", fontSize=11, limit=alt.expr("datum.width"))
        words = words.encode(x, y, alt.Text("text:N"), colour, alt.Tooltip("text:N"))
        parts.append(words.properties(width=lefts[-1], height=height, title=titled(title, lefts[-1])))
    return Figure(alt.hconcat(*parts, spacing=30), caption, tables)


def _look(label: int) -> dict[str, Any]:
    """The colour, text and name with which a cluster is drawn; −1 (no cluster) is white and without text."""
    colour = PALETTE[label % len(PALETTE)] if label >= 0 else "white"
    text, name = (str(label), str(label)) if label >= 0 else ("", "none")
    return {"colour": colour, "text": text, "cluster": name, "ink": "white" if colour == "#000000" else "black"}
