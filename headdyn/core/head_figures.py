"""Pictures of heads in groups: values against their null's range, strips of labels, heads as points in a plane.

As in figures.py: matplotlib's object interface, and colour never the only difference (a head's number, a hollow mark).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from headdyn.core.figures import PALETTE, wrapped

_GREY = "0.35"
_NULL = "0.82"
_ALPHA = 0.75


@dataclass(frozen=True, kw_only=True)
class NullRanges:
    """One panel: at each place a value, its interval if it has one, and what chance gives (5th to 95th percentile).

    Arrays run over `labels`; a value that is NaN is said to be none. `null_X3` holds the 5th percentile, the mean and
    the 95th percentile.
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
    """One panel of heads as points: numbered, coloured by label; a label of −1 (in no cluster) is a hollow mark."""

    title: str
    points_H2: np.ndarray
    labels_H: np.ndarray
    xlabel: str = ""
    ylabel: str = ""


def null_ranges(panels: Sequence[NullRanges], *, columns: int, title: str = "", mark: str = "q < 0.05") -> Figure:
    """Values as dots before the range that chance gives them, in a grid of panels; an asterisk means `mark`."""
    rows = -(-len(panels) // columns)
    width = max(2.6, 0.28 * max(len(panel.labels) for panel in panels) + 1.1)
    figure = _figure(width * columns, 2.3 * rows + 0.7)
    grid = figure.subplots(rows, columns, squeeze=False)
    for panel, axes in zip(panels, grid.flat, strict=False):
        _ranges(axes, panel)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    handles = [
        Line2D([], [], marker="o", ls="", color=PALETTE[0], label="measured"),
        Rectangle((0, 0), 1, 1, color=_NULL, label="chance, 5 to 95 %"),
        Line2D([], [], color=_GREY, label="chance, mean"),
    ]
    if any(panel.marked_X is not None for panel in panels):
        handles.append(Line2D([], [], marker="$*$", ls="", color="black", label=mark))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    if title:
        figure.suptitle(wrapped(title, figure), fontsize=10)
    return figure


def _ranges(axes: Axes, panel: NullRanges) -> None:
    place_X = np.arange(len(panel.labels))
    null_X3 = np.asarray(panel.null_X3, dtype=float)
    there_X = np.isfinite(null_X3).all(-1)
    low_X, mean_X, high_X = null_X3[there_X].T if there_X.any() else np.empty((3, 0))
    axes.use_sticky_edges = False  # or the lowest bar's foot would be the panel's
    axes.bar(place_X[there_X], high_X - low_X, 0.62, bottom=low_X, color=_NULL)
    axes.hlines(mean_X, place_X[there_X] - 0.31, place_X[there_X] + 0.31, color=_GREY, lw=1.2)
    if panel.low_X is not None and panel.high_X is not None:
        axes.vlines(place_X, panel.low_X, panel.high_X, color=PALETTE[0], lw=1.6)
    axes.plot(place_X, panel.value_X, "o", color=PALETTE[0], ms=4.5)
    for absent in np.flatnonzero(np.isnan(panel.value_X)).tolist():
        axes.text(absent, 0.02, "none", transform=axes.get_xaxis_transform(), ha="center", fontsize=6.5, color=_GREY)
    if panel.marked_X is not None:
        tops = panel.value_X if panel.high_X is None else panel.high_X
        for place in np.flatnonzero(panel.marked_X & np.isfinite(panel.value_X)):
            axes.annotate("*", (place, tops[place]), textcoords="offset points", xytext=(0, 1), ha="center", fontsize=9)
    axes.margins(y=0.16)
    long = max(map(len, panel.labels), default=0) > 3
    axes.set_xticks(place_X, panel.labels, fontsize=7, rotation=90 if long else 0)
    axes.set_xlim(-0.6, len(panel.labels) - 0.4)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title(panel.title, fontsize=8)
    axes.set_ylabel(panel.ylabel, fontsize=8)
    axes.set_xlabel(panel.xlabel, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def label_strips(columns: Sequence[Sequence[tuple[str, np.ndarray]]], *, title: str = "") -> Figure:
    """One strip a clustering, one cell a head: the cluster's number and colour; a hollow cell is a head in none.

    `columns` stand side by side, each a list of names and labels.
    """
    heads = max(len(labels_H) for rows in columns for _, labels_H in rows)
    figure = _figure((0.26 * heads + 2.1) * len(columns), 0.21 * max(map(len, columns)) + 0.9)
    for rows, axes in zip(columns, figure.subplots(1, len(columns), squeeze=False)[0], strict=True):
        for place, (_, labels_H) in enumerate(rows):
            for head, label in enumerate(labels_H.tolist()):
                colour = PALETTE[label % len(PALETTE)] if label >= 0 else "white"
                cell = Rectangle((head - 0.45, place - 0.42), 0.9, 0.84, fc=colour, ec=_GREY, lw=0.4, alpha=_ALPHA)
                axes.add_patch(cell)
                if label >= 0:
                    axes.text(head, place, str(label), ha="center", va="center", fontsize=6.5, color=_ink(label))
        axes.set_xlim(-0.6, heads - 0.4)
        axes.set_ylim(max(map(len, columns)) - 0.4, -0.6)
        axes.set_xticks(range(heads))
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.tick_params(labelsize=7, length=0)
        axes.xaxis.tick_top()
        axes.spines[:].set_visible(False)
    if title:
        figure.suptitle(wrapped(title, figure), fontsize=10)
    return figure


def _ink(label: int) -> str:
    """Black, or white on the palette's own black."""
    return "white" if PALETTE[label % len(PALETTE)] == "#000000" else "black"


def scatter_panels(panels: Sequence[Scatter], *, columns: int, title: str = "") -> Figure:
    """Heads as numbered points, panel by panel."""
    rows = -(-len(panels) // columns)
    figure = _figure(2.7 * columns, 2.5 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    for panel, axes in zip(panels, grid.flat, strict=False):
        for head, ((x, y), label) in enumerate(zip(panel.points_H2.tolist(), panel.labels_H.tolist(), strict=True)):
            colour = PALETTE[label % len(PALETTE)] if label >= 0 else "white"
            axes.plot(x, y, "o", ms=11, mfc=colour, mec=_GREY, alpha=_ALPHA)
            axes.text(x, y, str(head), ha="center", va="center_baseline", fontsize=6.5, color=_ink(max(label, 0)))
        axes.margins(0.15)
        axes.tick_params(labelsize=6)
        axes.set_title(panel.title, fontsize=8)
        axes.set_xlabel(panel.xlabel, fontsize=7.5)
        axes.set_ylabel(panel.ylabel, fontsize=7.5)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    if title:
        figure.suptitle(wrapped(title, figure), fontsize=10)
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
