"""Matrices as pictures in a figure: attention patterns, similarities of heads, and trees above them."""

from __future__ import annotations

import base64
import functools
import json
import math
import struct
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headdyn.core.chart_parts import CIVIDIS, GREY, PALETTE, PUOR, Tables, alt, ramp_scale, titled
from headdyn.core.figures import Figure

_TOKENS = ("key position (tokens)", "query position (tokens)")
_HEADS = ("head, numbered through the layers",) * 2


@dataclass(frozen=True, kw_only=True)
class Tree:
    """One panel: a tree over items, and below it their matrix of cosines in the order of the tree's leaves.

    `place_J4` and `height_J4` are the four corners of each of J joins: their positions along the items (0 is the first)
    and their heights, 1 − cosine. `chance` is the height of the first join in data without structure.
    """

    title: str
    labels: Sequence[str]
    cosine_NN: np.ndarray
    place_J4: np.ndarray
    height_J4: np.ndarray
    chance: float


def pattern_grid(
    pattern_RCQK: np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    boundaries: Sequence[Sequence[float]] = (),
    title: str = "",
) -> Figure:
    """Attention patterns in R × C panels with one colour scale (0 to 1, square root). Keys after the query are empty.

    `boundaries` are, for each row of panels, the positions of the first tokens of topic segments; lines mark them.
    """
    causal = np.tri(pattern_RCQK.shape[-1], dtype=bool)
    root_RCQK = np.where(causal, np.sqrt(np.clip(pattern_RCQK, 0, 1)), np.nan)
    scale = _Ramp(CIVIDIS, (0, 1), "attention weight (square-root scale)", roots=True)
    return _pictures(root_RCQK, rows, columns, boundaries or [()] * len(rows), scale, _TOKENS, title)


def lift_grid(
    lift_CQK: np.ndarray, *, columns: Sequence[str], boundaries: Sequence[float] = (), caption: str = ""
) -> Figure:
    """Attention relative to uniform causal attention, A_qk (q + 1), in panels side by side with one logarithmic scale.

    A weight of 0 is drawn empty. `boundaries` are the positions of the first tokens of topic segments.
    """
    log_CQK = np.where(lift_CQK > 0, np.log2(np.maximum(lift_CQK, 1e-300)), np.nan)
    scale = _Ramp(PUOR, (-3, 3), "log2 of weight over uniform attention's")
    return _pictures(log_CQK[None], [""], columns, [boundaries], scale, _TOKENS, caption=caption)


def similarity_grid(
    matrices_CNN: np.ndarray,
    *,
    columns: Sequence[str],
    reach: float,
    boundaries: Sequence[float] = (),
    caption: str = "",
) -> Figure:
    """Matrices of cosines between heads, side by side. Heads are numbered through all layers; `boundaries` are the
    first head of each layer. Colours cover −reach to reach. A head's cosine with itself, always 1, is left out.
    """
    others_CNN = np.where(np.eye(matrices_CNN.shape[-1], dtype=bool), np.nan, matrices_CNN)
    scale = _Ramp(PUOR, (-reach, reach), f"cosine (colours reach ±{reach:.2g})")
    return _pictures(others_CNN[None], [""], columns, [boundaries], scale, _HEADS, caption=caption)


def tree_grid(panels: Sequence[Tree], *, reach: float, title: str = "", caption: str = "") -> Figure:
    """Trees above their matrices of cosines, side by side; colours cover −reach to reach.

    A dashed line is at the height of the first join in data without structure.
    """
    count = len(panels[0].labels)
    scale = _Ramp(PUOR, (-reach, reach), f"cosine (colours reach ±{reach:.2g})")
    tables, parts, side = Tables(), [], min(480, max(220, 15 * count))
    for panel in panels:
        low, high = min([*panel.height_J4[:, 1], panel.chance]), max([*panel.height_J4[:, 1], panel.chance])
        room = 0.1 * (high - low + 0.01)
        x = alt.X("place:Q", axis=None).scale(domain=[-0.5, count - 0.5], nice=False)
        y = alt.Y("height:Q", title="1 − cosine").scale(domain=[max(0, low - room), high + room], nice=False)
        corners = [
            {"join": join, "corner": corner, "place": float(place), "height": float(panel.height_J4[join, corner])}
            for (join, corner), place in np.ndenumerate(panel.place_J4)
        ]
        joins = tables.chart(corners).mark_line(color=GREY, strokeWidth=1.2, clip=True)
        chance = tables.chart([{"height": float(panel.chance)}]).mark_rule(color=PALETTE[1], strokeDash=[5, 3])
        tree = alt.layer(joins.encode(x, y, alt.Detail("join:N"), alt.Order("corner:O")), chance.encode(y))
        heading = titled(panel.title, side, "dashed: where chance joins first")
        tree = tree.properties(width=side, height=110, title=heading)
        others_NN = np.where(np.eye(count, dtype=bool), np.nan, panel.cosine_NN)
        rows = [_picture_row(others_NN, scale)]
        parts.append(alt.vconcat(tree, _picture(tables, rows, count, side, scale, ("", ""), panel.labels), spacing=4))
    chart = alt.hconcat(*parts, title=titled(title, 2 * side)).resolve_scale(color="shared")
    return Figure(chart, caption, tables)


@dataclass(frozen=True)
class _Ramp:
    """A colour scale with its legend; with `roots` the legend shows the squares of the values."""

    colours: Sequence[str]
    limits: tuple[float, float]
    unit: str
    roots: bool = False

    def colour(self, length: int) -> alt.Color:
        legend = alt.Legend(title=textwrap.wrap(self.unit, 22), gradientLength=min(180, length))
        if self.roots:
            legend["values"] = [0, 0.5, math.sqrt(0.5), 1]
            legend["labelExpr"] = "format(datum.value * datum.value, '.2~g')"
        return alt.Color("value:Q", scale=ramp_scale(self.limits, self.colours), legend=legend)


def _pictures(
    value_RCNN: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    boundaries: Sequence[Sequence[float]],
    scale: _Ramp,
    axes: tuple[str, str],
    title: str = "",
    caption: str = "",
) -> Figure:
    """R × C matrices as pictures. Lines across and down a picture stand before the boundaries of its row of panels."""
    side = int(min(300, max(110, 980 / len(columns)), max(150, 1000 / len(rows))))
    size, tables, parts = value_RCNN.shape[-1], Tables(), []
    for row, column in np.ndindex(value_RCNN.shape[:2]):
        place = {"row": rows[row], "column": columns[column]}
        parts.append(place | _picture_row(value_RCNN[row, column], scale))
        parts += [place | {"edge": edge - 0.5} for edge in boundaries[row] if 0 < edge < size]
    column_header = alt.Header(title=None, labelExpr="split(datum.label, '\\n')", labelFontSize=12, labelAnchor="start")
    row_header = alt.Header(title=None, labelFontSize=12, labels=any(rows))
    chart = _picture(tables, parts, size, side, scale, axes).facet(
        column=alt.Column("column:N", sort=list(columns), header=column_header),
        row=alt.Row("row:N", sort=list(rows), header=row_header),
        spacing=12,
    )
    return Figure(chart.properties(title=titled(title, max(330, len(columns) * side))), caption, tables)


def _picture_row(value_NN: np.ndarray, scale: _Ramp) -> dict[str, Any]:
    """The row of a chart's table that holds the matrix as a picture, placed by its middle."""
    middle = (len(value_NN) - 1) / 2
    return {"x": middle, "y": middle, "value": 0, "url": data_uri(value_NN, scale.colours, scale.limits)}


def _picture(
    tables: Tables,
    rows: Sequence[Mapping[str, Any]],
    size: int,
    side: int,
    scale: _Ramp,
    axes: tuple[str, str],
    labels: Sequence[str] | None = None,
) -> Any:
    """The chart of pictures and boundary lines; `labels` name rows and columns of the matrix if they fit."""
    axis: dict[str, Any] = {"grid": False, "tickCount": 4, "tickMinStep": 1, "labels": labels is None or size <= 64}
    if labels is not None:
        axis |= {"values": list(range(size)), "labelExpr": f"{json.dumps(list(labels))}[datum.value]"}
    x_axis, y_axis = alt.Axis(**axis, labelAngle=0 if labels is None else -90), alt.Axis(**axis)
    x, y = alt.Scale(domain=[-0.5, size - 0.5], nice=False), alt.Scale(domain=[size - 0.5, -0.5], nice=False)
    base = alt.Chart().encode(alt.X("x:Q", title=axes[0] or None, scale=x, axis=x_axis))
    base = base.encode(alt.Y("y:Q", title=axes[1] or None, scale=y, axis=y_axis)).transform_filter("isValid(datum.url)")
    edge = alt.Chart().mark_rule(color="white" if scale.colours is CIVIDIS else GREY, strokeWidth=0.6)
    layers = [
        base.mark_image(width=side, height=side, aspect=False).encode(alt.Url("url:N")),
        base.mark_point(size=0, opacity=1).encode(scale.colour(side)),  # has the legend, which an image cannot have
        edge.encode(alt.X("edge:Q")).transform_filter("isValid(datum.edge)"),
        edge.encode(alt.Y("edge:Q")).transform_filter("isValid(datum.edge)"),
    ]
    return alt.layer(*layers[: 4 if any("edge" in row for row in rows) else 2], data=tables.named(rows)).properties(
        width=side, height=side
    )


def data_uri(value_YX: np.ndarray, colours: Sequence[str], limits: tuple[float, float]) -> str:
    """A matrix as a PNG in a data URI: row 0 on top, a square of pixels for each number, NaN transparent."""
    place_YX = np.clip((value_YX - limits[0]) / (limits[1] - limits[0]), 0, 1)
    index_YX = np.where(np.isnan(value_YX), 255, np.rint(254 * np.nan_to_num(place_YX))).astype(np.uint8)
    index_YX = np.kron(index_YX, np.ones((max(1, 512 // len(index_YX)),) * 2, np.uint8))  # or renderers would blur it
    height, width = index_YX.shape
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0),
        b"PLTE": _palette(tuple(colours)),
        b"tRNS": b"\xff" * 255 + b"\0",
        b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in index_YX), 9),
        b"IEND": b"",
    }
    parts = [kind + body for kind, body in chunks.items()]
    png = b"".join(struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + png).decode()


@functools.cache
def _palette(colours: tuple[str, ...]) -> bytes:
    """The PNG palette: 255 colours from the first to the last, and one for transparent pixels."""
    return b"".join(bytes.fromhex(mixed(colours, share)[1:]) for share in np.linspace(0, 1, 255)) + bytes(3)


def mixed(colours: Sequence[str], share: float) -> str:
    """The colour at a share (0 to 1) of the way from the first to the last, by linear interpolation."""
    anchors_A3 = np.array([list(bytes.fromhex(colour[1:])) for colour in colours])
    place = share * (len(colours) - 1)
    return "#" + "".join(f"{round(np.interp(place, range(len(colours)), channel)):02x}" for channel in anchors_A3.T)
