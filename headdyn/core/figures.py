"""Drawing primitives on matplotlib's object interface: no pyplot, so no global state, no window and no leaked figure.

Colours are told apart by colour-blind readers (Okabe & Ito 2008; cividis; PuOr), and never the only difference:
curves also differ in their dashes or marks, significance is an asterisk, a null is a hollow diamond.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from headdyn.core.settings import vector_figures

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
_DASHES = ("-", "--", "-.", ":")
_MARKS = ("o", "s", "^", "v", "P", "X", "*", "p")  # no diamond, which is a null
_GREY = "0.35"
_DPI = 120
_MOST_LABELLED_CELLS = 192  # numbers in a head map's cells: more than this and they no longer fit


@dataclass(frozen=True, kw_only=True)
class HeadMap:
    """One panel of a head map; `unit` and `note` (say, the null) stand in its title.

    With `centre`, colours diverge from that value; without, they run over `limits` (default: the data's range).
    Marked cells get an asterisk. NaN is drawn empty.
    """

    title: str
    value_LH: np.ndarray
    unit: str
    note: str = ""
    centre: float | None = None
    limits: tuple[float, float] | None = None
    marked_LH: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One labelled curve with an optional band."""

    label: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    low: Sequence[float] | np.ndarray | None = None
    high: Sequence[float] | np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One row of an interval plot; what is None is not drawn. Rows of one `group` share a colour."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    null: float | None = None
    group: str = ""


def head_map(panels: Sequence[HeadMap], *, mark: str = "q < 0.05") -> Figure:
    """Heat maps over layer × head, with the values in their cells; `mark` says what an asterisk means."""
    layers, heads = panels[0].value_LH.shape
    width, height = max(3.3, 0.42 * heads + 1.2), max(1.9, 0.33 * layers + 1.1)
    columns = min(len(panels), max(1, int(13 / width)))
    rows = -(-len(panels) // columns)
    figure = _figure(width * columns, height * rows)
    for i, panel in enumerate(panels):
        x, y = width * (i % columns), height * (rows - 1 - i // columns)
        axes = _axes(figure, x + 0.45, y + 0.45, width - 1.05, height - 0.95)
        image = axes.imshow(panel.value_LH, aspect="auto", interpolation="nearest", **_colours(panel))
        bar = _axes(figure, x + width - 0.52, y + 0.45, 0.1, height - 0.95)
        figure.colorbar(image, cax=bar)
        bar.tick_params(labelsize=7)
        _label_cells(axes, panel, image)
        marked = panel.marked_LH is not None
        note = "    ".join(part for part in (panel.note, f"* {mark}" if marked else "") if part)
        title = f"{panel.title} ({panel.unit})" if panel.unit else panel.title
        axes.set_title(title + (f"\n{note}" if note else ""), fontsize=8.5)
        axes.set_xlabel("head", fontsize=8)
        axes.set_ylabel("layer", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    return figure


def curves(
    lines: Sequence[Curve],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    references: Mapping[str, float] | None = None,
    log_x: bool = False,
    whole_x: bool = False,
) -> Figure:
    """Curves with bands over x, and labelled horizontal reference lines. `log_x` shows x = 0 too, at the left end."""
    figure = _figure(6.6, 3.6, "constrained")
    axes = figure.subplots()
    for i, line in enumerate(lines):
        colour, (dash, mark) = PALETTE[i % len(PALETTE)], _look(i)
        # Dashes alone tell the first curves apart; where there are more, a long one has a mark now and then.
        every = 1 if len(line.x) <= 16 else len(line.x) // 8
        mark = mark if every == 1 or len(lines) > len(_DASHES) else ""
        axes.plot(line.x, line.y, dash, color=colour, label=line.label, lw=1.6, marker=mark, ms=3.5, markevery=every)
        if line.low is not None and line.high is not None:
            low, high = np.asarray(line.low, dtype=float), np.asarray(line.high, dtype=float)
            axes.fill_between(line.x, low, high, color=colour, alpha=0.18, lw=0)
    for i, (name, level) in enumerate((references or {}).items()):
        axes.axhline(level, color=_GREY, lw=1.1, ls=(0, (1 + 3 * i, 2)), label=f"{name} ({level:.3g})", zorder=1)
    if log_x:
        axes.set_xscale("symlog", linthresh=1, linscale=0.3)
        axes.set_xlim(0, 1.15 * max(1, *(np.max(line.x) for line in lines)))
        axes.xaxis.set_major_formatter("{x:g}")
    if whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if title:
        axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _look(number: int) -> tuple[str, str]:
    """Dashes and mark of a figure's curve of this number: the first differ in both, no two of 32 agree in both."""
    return _DASHES[number % len(_DASHES)], _MARKS[(number + number // len(_DASHES)) % len(_MARKS)]


def pattern_grid(
    pattern_RCQK: np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    boundaries: Sequence[Sequence[float]] = (),
    title: str = "",
) -> Figure:
    """Attention patterns in R × C panels on one colour scale (0..1, square root), each row's topic boundaries as lines.

    A boundary is the position of the first token of a segment.
    """
    return _squares(
        pattern_RCQK,
        (rows, columns),
        ("query position (tokens)", "key position (tokens)"),
        boundaries or [()] * len(rows),
        {"cmap": "cividis", "norm": PowerNorm(0.5, vmin=0, vmax=1)},
        "attention weight (square-root scale)",
        title,
    )


def lift_grid(
    lift_RCQK: np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    boundaries: Sequence[float] = (),
    title: str = "",
) -> Figure:
    """Maps over causal-uniform attention, A_qk (q + 1), in R × C panels on one logarithmic scale; 0 is drawn empty.

    Boundaries as in `pattern_grid`, the same in every row.
    """
    return _squares(
        np.where(lift_RCQK > 0, np.log2(np.maximum(lift_RCQK, 1e-300)), np.nan),
        (rows, columns),
        ("query position (tokens)", "key position (tokens)"),
        [boundaries] * len(rows),
        {"cmap": "PuOr_r", "norm": Normalize(-3, 3)},
        "log2 of weight over uniform attention's",
        title,
    )


def similarity_grid(
    matrices_CNN: np.ndarray, *, columns: Sequence[str], reach: float, boundaries: Sequence[float] = (), title: str = ""
) -> Figure:
    """Matrices of cosines between heads side by side; heads are numbered through the layers, boundaries split those.

    Colours run from −reach to reach. A head's cosine with itself says nothing and is left out.
    """
    own_NN = np.eye(matrices_CNN.shape[-1], dtype=bool)
    return _squares(
        np.where(own_NN, np.nan, matrices_CNN)[None],
        ([""], columns),
        ("head, numbered through the layers", "head, numbered through the layers"),
        [boundaries],
        {"cmap": "PuOr_r", "norm": Normalize(-reach, reach)},
        f"cosine (colours reach ±{reach:.2g})",
        title,
    )


def interval_plot(rows: Sequence[Interval], *, xlabel: str, title: str = "", zero_line: bool = False) -> Figure:
    """Marks with intervals, one row each from the top, a null as a hollow diamond; rows without a value say so."""
    figure = _figure(6.4, 1.2 + 0.26 * len(rows), "constrained")
    axes = figure.subplots()
    groups = list(dict.fromkeys(row.group for row in rows))
    for place, row in enumerate(rows):
        number = groups.index(row.group)
        colour, mark = PALETTE[number % len(PALETTE)], _MARKS[number % len(_MARKS)]
        if row.value is None:
            axes.text(0.5, place, "absent", transform=axes.get_yaxis_transform(), color=_GREY, fontsize=7, va="center")
            continue
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [place, place], color=colour, lw=2, solid_capstyle="butt")
        axes.plot(row.value, place, mark, color=colour, ms=5)
        if row.null is not None:
            axes.plot(row.null, place, "D", mfc="white", mec=_GREY, ms=5, zorder=1.5)
    for i, group in enumerate(groups):
        if group:
            axes.plot([], [], f"{_MARKS[i % len(_MARKS)]}-", color=PALETTE[i % len(PALETTE)], label=group)
    if any(row.null is not None for row in rows):
        axes.plot([], [], "D", mfc="white", mec=_GREY, label="null")
    if zero_line:
        axes.axvline(0, color=_GREY, lw=1, zorder=0)
    axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(xlabel)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))  # long labels of rows may leave half of the width
    axes.tick_params(axis="x", labelsize=8)
    if title:
        figure.suptitle(wrapped(title, figure), fontsize=10)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if named := axes.get_legend_handles_labels()[1]:
        # Below, where groups with long names leave the axes their width.
        figure.legend(loc="outside lower center", ncols=len(named), fontsize=8, frameon=False)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file's content."""
    if engine := figure.get_layout_engine():  # once; savefig would draw everything a second time to lay it out
        figure.set_dpi(_DPI)
        engine.execute(figure)
        figure.set_layout_engine("none")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, making its folder, and beside it in the vector format that is asked for, if any."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_bytes(figure))
    if kind := vector_figures():
        figure.savefig(path.with_suffix(f".{kind}"))


def wrapped(title: str, figure: Figure) -> str:
    """A title in ten points, on as many lines as the figure's width asks for (12 letters an inch at most)."""
    return textwrap.fill(title, int(12 * figure.get_figwidth()))


def _figure(width: float, height: float, layout: Literal["constrained"] | None = None) -> Figure:
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes placed in inches from the lower left corner: grids drawn so take half the time of a constrained layout."""
    across, up = figure.get_size_inches()
    return figure.add_axes((x / across, y / up, width / across, height / up))


def _colours(panel: HeadMap) -> dict[str, Any]:
    finite = panel.value_LH[np.isfinite(panel.value_LH)]
    if panel.centre is not None:
        reach = max(np.abs(finite - panel.centre).max(initial=0), 1e-12)
        return {"cmap": "PuOr_r", "vmin": panel.centre - reach, "vmax": panel.centre + reach}
    low, high = panel.limits or (finite.min(initial=np.inf), finite.max(initial=-np.inf))
    return {"cmap": "cividis", "vmin": low, "vmax": high} if low <= high else {"cmap": "cividis"}


def _label_cells(axes: Axes, panel: HeadMap, image: AxesImage) -> None:
    """Write every cell's value, dark on light and light on dark; beyond the most that fit, the asterisk alone."""
    numbers = panel.value_LH.size <= _MOST_LABELLED_CELLS
    largest = np.abs(panel.value_LH[np.isfinite(panel.value_LH)]).max(initial=0)
    decimals = 2 if largest >= 0.095 else 3 if largest >= 0.0095 else 4
    zero = f"-{0:.{decimals}f}"
    for (layer, head), value in np.ndenumerate(panel.value_LH):
        if not np.isfinite(value):
            continue
        star = "*" if panel.marked_LH is not None and panel.marked_LH[layer, head] else ""
        red, green, blue, _ = image.cmap(image.norm(value))
        ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
        number = f"{value:.{decimals}f}"
        text = (zero[1:] if number == zero else number) + star if numbers else star
        axes.text(head, layer, text, ha="center", va="center", fontsize=6.5, color=ink)


def _squares(
    panels_RCNN: np.ndarray,
    names: tuple[Sequence[str], Sequence[str]],
    axis_labels: tuple[str, str],
    boundaries: Sequence[Sequence[float]],
    scale: Mapping[str, Any],
    unit: str,
    title: str,
) -> Figure:
    """R × C square panels on one colour scale, with a line in front of every boundary of their row on both axes."""
    rows, columns, size, _ = panels_RCNN.shape
    side = min(2.8, max(0.9, 9.0 / columns))
    left, right, top, bottom, gap = 0.75, 0.95, 0.65 if title else 0.35, 0.55, 0.1
    width, height = left + columns * (side + gap) + right, top + rows * (side + gap) + bottom
    figure = _figure(width, height)
    line = "white" if scale["cmap"] == "cividis" else "0.3"
    for r, c in np.ndindex(rows, columns):
        edges = [place - 0.5 for place in boundaries[r] if 0 < place < size]
        axes = _axes(figure, left + c * (side + gap), bottom + (rows - 1 - r) * (side + gap), side, side)
        image = axes.imshow(panels_RCNN[r, c], interpolation="nearest", aspect="auto", **scale)
        axes.hlines(edges, -0.5, size - 0.5, color=line, lw=0.5)
        axes.vlines(edges, -0.5, size - 0.5, color=line, lw=0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        axes.tick_params(labelsize=6, labelbottom=r == rows - 1, labelleft=c == 0)
        if r == 0:
            axes.set_title(names[1][c], fontsize=8)
        if c == 0 and names[0][r]:
            axes.set_ylabel(names[0][r], fontsize=8, labelpad=2)
    bar_height = min(3.0, height - top - bottom)
    bar = _axes(figure, width - right + 0.1, (bottom + height - top - bar_height) / 2, 0.12, bar_height)
    figure.colorbar(image, cax=bar).set_label(unit, fontsize=8)
    bar.tick_params(labelsize=7)
    figure.text(0.1 / width, 0.5, axis_labels[0], rotation=90, va="center", fontsize=8)
    figure.text((left + width - right) / 2 / width, 0.12 / height, axis_labels[1], ha="center", fontsize=8)
    if title:
        figure.text(0.5, 1 - 0.3 / height, title, ha="center", fontsize=10)
    return figure
