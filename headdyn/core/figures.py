"""Figures: each is a table and a Vega-Lite specification, made with Altair; pictures.py draws matrices.

Reports embed the specification, which Vega draws with tooltips and legends that filter; vl-convert makes it an SVG, PDF
or PNG file without a browser. Colour-blind readers can tell the colours apart (Okabe & Ito 2008; cividis; PuOr), and
colour is never the only difference: curves also differ in dashes and marks, a null is a hollow diamond.
"""

from __future__ import annotations

import functools
import json
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from headdyn.core.chart_parts import (
    CIVIDIS,
    DASHES,
    GREY,
    MARKS,
    PALETTE,
    PUOR,
    Tables,
    alt,
    categories,
    faded,
    ink,
    json_number,
    legend_columns,
    place_names,
    ramp_scale,
    titled,
    tooltips,
)
from headdyn.core.numbers import fixed
from headdyn.core.whole_files import whole_file

FORMATS = ("pdf", "svg", "png")
CONFIG: Mapping[str, Any] = {
    "font": "system-ui, Helvetica, Arial, Liberation Sans, sans-serif",
    "view": {"stroke": None},
    "padding": {"left": 16, "right": 28, "top": 5, "bottom": 5},  # a reader's font may be wider than the measured one
    "axis": {"labelColor": "#333", "titleColor": "#333", "titleFontWeight": "normal", "gridColor": "#e8e8e8"}
    | {"labelFontSize": 11, "titleFontSize": 12, "labelLimit": 360, "domainColor": "#999", "tickColor": "#999"},
    "legend": {"labelLimit": 420, "titleFontWeight": "normal", "symbolLimit": 0, "labelFontSize": 11},
    "title": {"anchor": "start", "fontSize": 13, "subtitleFontSize": 11, "subtitleColor": GREY, "offset": 8},
}
_TICK_LABEL = "format(datum.value, '~s')"  # an axis's `format` would give all ticks one SI prefix: 0k, 0.1k, 1k
_MOST_LABELLED_CELLS = 192  # a head map with more cells than this has no room for their numbers
_MOST_MARKED_POINTS = 16  # a curve with more points than this has marks at about eight of them


@dataclass(frozen=True)
class Figure:
    """An Altair chart and its caption: what the picture shows and what chance would look like."""

    chart: alt.TopLevelMixin
    caption: str = ""
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # the data, by name

    def spec(self) -> dict[str, Any]:
        """The Vega-Lite specification with its data as plain JSON; the caption is its description."""
        described = {"description": self.caption} if self.caption else {}
        return self.chart.to_dict(validate=False) | described | {"datasets": dict(self.tables), "config": CONFIG}

    def save(self, path: Path) -> None:
        """Write the figure as .json (its specification), .svg, .pdf or .png, making its folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            content = (json.dumps(self.spec(), ensure_ascii=False, allow_nan=False) + "\n").encode()
        else:
            content = rendered(self.spec(), path.suffix[1:])
        with whole_file(path) as file:
            file.write_bytes(content)


def rendered(spec: Mapping[str, Any], kind: str) -> bytes:
    """The specification drawn without a browser: the bytes of a file of this kind (one of FORMATS)."""
    import vl_convert

    if kind == "png":
        return vl_convert.vegalite_to_png(dict(spec), scale=2)
    return vl_convert.vegalite_to_pdf(dict(spec)) if kind == "pdf" else vl_convert.vegalite_to_svg(dict(spec)).encode()


@dataclass(frozen=True, kw_only=True)
class HeadMap:
    """One panel of a head map, with a value for every layer and head.

    Its title shows `unit` and `note`, for example the null. With `centre`, colours diverge from that value; otherwise
    they cover `limits`, or the data's range. Marked cells have an asterisk; a cell with NaN is empty.
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
    """One labelled curve with an optional band.

    `look` maps up to three properties of the curve to their levels ({"order": "topic", "attention": "GQA"}), which are
    shown by colour, dashes and mark, in this order; without `look` all three show the label. `runs` are the numbers of
    the curve's runs, by which the filter of a page hides it.
    """

    label: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    low: Sequence[float] | np.ndarray | None = None
    high: Sequence[float] | np.ndarray | None = None
    look: Mapping[str, str] | None = None
    runs: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One row of an interval plot; a None is not drawn. Rows of the same `group` share a colour and a mark."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    null: float | None = None
    group: str = ""


def head_map(panels: Sequence[HeadMap], *, mark: str = "q < 0.05", caption: str = "") -> Figure:
    """Heat maps over layer × head, with the values in their cells; `mark` says what an asterisk means."""
    layers, heads = panels[0].value_LH.shape
    side = 34 if layers * heads <= _MOST_LABELLED_CELLS else 15
    tables, parts = Tables(), []
    for panel in panels:
        low, high, colours = _colours(panel)
        texts_LH, rows = _cell_texts(panel), []
        for (layer, head), value in np.ndenumerate(panel.value_LH):
            share = (value - low) / (high - low)
            dark = abs(share - 0.5) > 0.33 if colours is PUOR else share < 0.55
            cell = {"layer": layer, "head": head, "value": float(value), "text": texts_LH[layer, head]}
            rows += [cell | {"ink": "white" if dark else "black"}] if math.isfinite(value) else []
        places = place_names(alt.X("head:O"), range(heads)), place_names(alt.Y("layer:O"), range(layers))
        legend = alt.Legend(title=None, gradientLength=min(120, max(60, side * layers)), tickCount=4)
        colour = alt.Fill("value:Q", scale=ramp_scale((low, high), colours), legend=legend)
        tips = tooltips("layer:O", "head:O", **{"value:Q": panel.title})
        notes = "    ".join(note for note in (panel.note, f"* {mark}" if panel.marked_LH is not None else "") if note)
        name = f"{panel.title} ({panel.unit})" if panel.unit else panel.title
        base = tables.chart(rows).encode(*places)
        cells = base.mark_rect(stroke="white").encode(colour, tooltip=tips)
        numbers = base.mark_text(fontSize=10).encode(*ink())
        size = {"width": side * heads, "height": side * layers}
        parts.append(alt.layer(cells, numbers, **size, title=titled(name, side * heads + 80, notes)))
    columns = min(len(panels), max(1, int(1060 / (side * heads + 110))))
    resolve = alt.Resolve(scale=alt.ScaleResolveMap(fill="independent"))
    return Figure(alt.concat(*parts, columns=columns, resolve=resolve), caption, tables)


def curves(
    lines: Sequence[Curve],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    references: Mapping[str, float] | None = None,
    log_x: bool = False,
    whole_x: bool = False,
    span: tuple[float, float] | None = None,
    y_values: Sequence[float] = (),
    caption: str = "",
) -> Figure:
    """Curves with bands over x, and labelled horizontal reference lines; `span` is a range of x to shade.

    With `log_x` the axis begins at the first x, which may be 0; with `whole_x` its ticks are whole numbers. The y axis
    also covers `y_values`, for example those of other charts that are to have the same axis.
    """
    tables, width, height = Tables(), 520, 270
    rows: list[dict[str, Any]] = []
    for line in lines:
        points_per_mark = 1 if len(line.x) <= _MOST_MARKED_POINTS else -(-len(line.x) // 8)
        look = {f"look{i}": level for i, level in enumerate((line.look or {"": line.label}).values())}
        constant = {"series": line.label, **look, "runs": " ".join(map(str, line.runs))}
        for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
            rows.append({**constant, "x": json_number(x), "y": json_number(y), "marked": i % points_per_mark == 0})
            if line.low is not None and line.high is not None:
                rows[-1] |= {"low": json_number(line.low[i]), "high": json_number(line.high[i])}
    first, last = (extreme((row["x"] for row in rows), default=0) for extreme in (min, max))
    x = alt.X("x:Q", title=xlabel).scale(nice=False, zero=False).axis(grid=False, tickMinStep=1 if whole_x else 0)
    if log_x:
        first = first / 1.2
        x = x.scale(type="log" if first else "symlog", domain=[first, max(1.15 * last, 1)], nice=False)
        x = x.axis(grid=False, values=_log_ticks(first, last), labelExpr=_TICK_LABEL, labelOverlap=True)
    y_scale = alt.Scale(zero=False, domain=alt.DomainUnionWith(unionWith=list(y_values)) if y_values else alt.Undefined)
    y = alt.Y("y:Q", title=ylabel, scale=y_scale)
    colour, dash, shape, picks = _looks(lines)
    opacity = faded(functools.reduce(operator.and_, picks), 0.08)
    base = tables.chart(rows).encode(x, alt.Detail("series:N"))
    if any(line.runs for line in lines):
        base = base.add_params(alt.param(name="shown", value=".")).transform_filter("test(regexp(shown), datum.runs)")
    layers: list[Any] = []
    if span is not None:
        shade = tables.chart([{"from": max(span[0], first), "to": span[1]}]).mark_rect(color="#f2c14e", opacity=0.3)
        layers.append(shade.encode(alt.X("from:Q"), alt.X2("to:Q")))
    banded = any("low" in row for row in rows)
    if banded:
        band = base.mark_area(opacity=0.18).encode(alt.Y("low:Q", title=ylabel), alt.Y2("high:Q"))
        band = band.encode(alt.Fill(colour["shorthand"], scale=colour["scale"], legend=None))
        layers.append(functools.reduce(lambda chart, pick: chart.transform_filter(pick), picks, band))
    layers += _reference_lines(tables, references or {}, rows, width, height)
    layers.append(base.mark_line(strokeWidth=1.8).encode(y, colour, dash, opacity))
    ends = {"low:Q": "from", "high:Q": "to"} if banded else {}
    tips = tooltips(**{"series:N": "line", "x:Q": xlabel, "y:Q": ylabel} | ends)
    points = base.mark_point(filled=True, size=34).transform_filter("datum.marked")
    layers.append(points.encode(alt.Y("y:Q"), colour, shape, opacity, tooltip=tips).add_params(*picks))
    separate_legends = ["shape"] if rows and "look1" in rows[0] else ["fill", "strokeDash"]
    independent: dict[str, Any] = dict.fromkeys(separate_legends, "independent")
    resolve = alt.Resolve(legend=alt.LegendResolveMap(**independent))
    chart = alt.layer(*layers, resolve=resolve, width=width, height=height, title=titled(title, width))
    return Figure(chart, caption, tables)


def _looks(lines: Sequence[Curve]) -> tuple[alt.Color, alt.StrokeDash, alt.Shape, list[Any]]:
    """Encodings of the curves' colour, dashes and marks, and the selections that clicks in the legends make."""
    properties = list((lines[0].look if lines else None) or {"": ""})
    looks = [line.look or {"": line.label} for line in lines]
    levels = [list(dict.fromkeys(look.get(name, "") for look in looks)) for name in properties]
    picks = [alt.selection_point(name=f"pick{i}", fields=[f"look{i}"], bind="legend") for i in range(len(levels))]
    legends = [
        alt.Legend(title=name or None, orient="top", columns=legend_columns(names), symbolSize=60 if i != 1 else 400)
        for i, (name, names) in enumerate(zip(properties, levels, strict=True))
    ]
    if len(properties) < 2:  # the first four curves differ in both dashes and marks; no two of 32 agree in both
        marks = [MARKS[(i + i // len(DASHES)) % len(MARKS)] for i in range(len(levels[0]))]
        dash = alt.StrokeDash("look0:N", scale=categories(levels[0], DASHES), legend=None)
        shape = alt.Shape("look0:N", scale=categories(levels[0], marks), legend=legends[0])
    else:
        dash = alt.StrokeDash("look1:N", scale=categories(levels[1], DASHES), legend=legends[1])
        third = 2 if len(properties) > 2 else 1
        shape = alt.Shape(
            f"look{third}:N", scale=categories(levels[third], MARKS), legend=legends[2] if third == 2 else None
        )
    return alt.Color("look0:N", scale=categories(levels[0], PALETTE), legend=legends[0]), dash, shape, picks


def interval_plot(
    rows: Sequence[Interval], *, xlabel: str, title: str = "", zero_line: bool = False, caption: str = ""
) -> Figure:
    """Values with intervals, one row each from the top; nulls are hollow diamonds, missing values the word "absent"."""
    tables, groups = Tables(), list(dict.fromkeys(row.group for row in rows))
    values = [vars(row) | {"row": place, "absent": row.value is None} for place, row in enumerate(rows)]
    base = tables.chart(values).encode(place_names(alt.Y("row:O"), [row.label for row in rows], title=None))
    named = [group for group in groups if group]
    legend = alt.Legend(title=None, orient="bottom", columns=legend_columns(named), values=named) if named else None
    pick = alt.selection_point(name="pick", fields=["group"], bind="legend")
    colour = alt.Color("group:N", scale=categories(groups, PALETTE), legend=legend)
    shape = alt.Shape("group:N", scale=categories(groups, MARKS), legend=legend)
    opacity = faded(pick, 0.1)
    tips = tooltips("label:N", *(["group:N"] if named else []), "value:Q", "low:Q", "high:Q", "null:Q")
    low, x = (alt.X(f"{end}:Q", title=xlabel).scale(zero=zero_line).axis(tickCount=6) for end in ("low", "value"))
    layers: list[Any] = [tables.chart([{"zero": 0}]).mark_rule(color=GREY).encode(alt.X("zero:Q"))] if zero_line else []
    bars = base.mark_rule(strokeWidth=2.4).transform_filter("isValid(datum.low) && isValid(datum.high)")
    layers.append(bars.encode(low, alt.X2("high:Q"), colour, opacity))
    with_null = any(row.null is not None and row.value is not None for row in rows)
    if with_null:
        diamonds = base.mark_point(shape="diamond", color=GREY, fill="white", size=60, opacity=1)
        diamonds = diamonds.transform_filter("isValid(datum.null) && !datum.absent")
        layers.append(diamonds.encode(alt.X("null:Q"), tooltip=tips))
    marks = base.mark_point(filled=True, size=58).transform_filter("!datum.absent")
    layers.append(marks.encode(x, colour, shape, opacity, tooltip=tips).add_params(pick))
    if any(row.value is None for row in rows):
        words = base.mark_text(text="absent", color=GREY, align="left").transform_filter("datum.absent")
        layers.append(words.encode(alt.XValue(4)))
    heading = titled(title, 560, "hollow diamond: null, what chance gives" if with_null else "")
    chart = alt.layer(*layers, width=380, height=max(40, 20 * len(rows)), title=heading)
    return Figure(chart, caption, tables)


def _colours(panel: HeadMap) -> tuple[float, float, Sequence[str]]:
    """The values of a panel's first and last colour, and its colours."""
    finite = panel.value_LH[np.isfinite(panel.value_LH)]
    if panel.centre is not None:
        reach = float(max(np.abs(finite - panel.centre).max(initial=0), 1e-12))
        return panel.centre - reach, panel.centre + reach, PUOR
    low, high = panel.limits or (finite.min(initial=np.inf), finite.max(initial=-np.inf))
    return (float(low), float(high), CIVIDIS) if low < high else (low - 0.5, low + 0.5, CIVIDIS)


def _cell_texts(panel: HeadMap) -> np.ndarray:
    """Every cell's text: its value, and an asterisk if marked. In maps too large for numbers, the asterisk alone."""
    largest = np.abs(panel.value_LH[np.isfinite(panel.value_LH)]).max(initial=0)
    decimals = 2 if largest >= 0.095 else 3 if largest >= 0.0095 else 4
    texts_LH = np.full(panel.value_LH.shape, "", object)
    for cell, value in np.ndenumerate(panel.value_LH):
        number = fixed(value, decimals) if panel.value_LH.size <= _MOST_LABELLED_CELLS else ""
        texts_LH[cell] = number + ("*" if panel.marked_LH is not None and panel.marked_LH[cell] else "")
    return texts_LH


def _reference_lines(
    tables: Tables, levels: Mapping[str, float], rows: Sequence[Mapping[str, Any]], width: int, height: int
) -> list[alt.Chart]:
    """Dashed horizontal lines, named at their right end; names that would overlap are moved apart."""
    if not levels:
        return []
    values = [v for row in rows for v in (row["y"], row.get("low"), row.get("high")) if v is not None]
    low, high = min([*values, *levels.values()], default=0), max([*values, *levels.values()], default=0)
    line_height = 13 * ((high - low) or 1) / height
    lines, place = [], -math.inf
    for name, level in sorted(levels.items(), key=lambda item: item[1]):
        place = max(level, place + line_height)
        text = f"{name.replace('_', ' ')} {level:.3g}".replace("-", "−")
        lines.append({"level": level, "place": place, "text": text})
    rules = tables.chart(lines).mark_rule(color=GREY, strokeDash=[3, 3]).encode(alt.Y("level:Q"))
    names = tables.chart(lines).mark_text(align="left", dx=5, color=GREY)
    return [rules, names.encode(alt.XValue(width), alt.Y("place:Q"), alt.Text("text:N"))]


def _log_ticks(first: float, last: float) -> list[float]:
    """Powers of ten from the first to the last value; if there are fewer than three, also 2 and 5 times these."""
    powers = [10.0**k for k in range(math.ceil(math.log10(max(last, 1))) + 1)]
    ticks = [p for p in powers if first <= p <= last]
    if len(ticks) < 3:
        ticks = [m * p for p in powers for m in (1, 2, 5) if first <= m * p <= last]
    return [0.0, *ticks] if first == 0 else ticks
