"""Charts as inline SVG, so that a page can hide a run's marks, show a mark's numbers on hover, and be printed.

Every mark that belongs to runs carries their numbers in `data-run`; the page's filter hides it when all are hidden.
Colours are core.figures' (told apart by colour-blind readers) and never the only difference: lines also differ in their
dashes, heads that pass a test carry an asterisk, a null is a hollow diamond.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from headdyn.core.figures import PALETTE
from headdyn.core.numbers import fixed, number
from headdyn.sweep.jobs import Style as Style

_GREY = "#5b6675"
_MARK = {
    "circle": "M-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0",
    "square": "M-2.7,-2.7h5.4v5.4h-5.4z",
    "up": "M0,-3.4L3.2,2.6L-3.2,2.6z",
}
_REFERENCE_DASHES = ("7 3", "2 3", "10 3 2 3", "4 2", "1 2", "12 4")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve. `low` and `high` draw an interval at every point; `runs` are the run numbers it belongs to."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    style: Style = field(default_factory=Style)
    runs: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class Band:
    """A shaded region from `low` to `high`, as a null band."""

    label: str
    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One row of an interval chart; `value` None is written as absent, with the reason on hover."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    null: float | None = None
    note: str = ""
    reason: str = ""
    colour: str = PALETTE[0]
    runs: Sequence[int] = ()


@dataclass(frozen=True)
class Scale:
    """A map from data to pixels with its ticks. On a log scale 0 is shown at the left end, like 0.5."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    ticks: tuple[float, ...] = field(default=())

    def __call__(self, value: float) -> float:
        """Where a value stands, in pixels."""
        low, high, value = (self._linear(v) for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def _linear(self, value: float) -> float:
        return math.log10(max(value, 0.5)) if self.log else value


def nice_scale(values: Iterable[float], start: float, end: float, *, log: bool = False, ticks: int = 5) -> Scale:
    """A scale that holds the finite values with a little room, and round ticks on it."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if log:
        powers = range(math.ceil(math.log10(max(low, 1))), math.floor(math.log10(max(high, 1))) + 1)
        steps = (1.0, 2.0, 5.0) if len(powers) < 3 else (1.0,)
        at = [s * 10**p for p in powers for s in steps if low <= s * 10**p <= high * 1.001]
        high = max(high, 1)  # step 0 alone has some width too
        return Scale(low, high * 1.08, start, end, True, tuple(([0.0] if low <= 0 else []) + at))
    if high == low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    raw = (high - low) / ticks
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.85)
    room = 0.04 * (high - low)
    low, high = low - room, high + room
    at = [round(k * step, 12) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return Scale(low, high, start, end, False, tuple(at))


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    references: Mapping[str, float] | None = None,
    log_x: bool = False,
    whole_x: bool = False,
    y_values: Iterable[float] = (),
    bands: Sequence[Band] = (),
    span: tuple[float, float] | None = None,
    width: int = 560,
    height: int = 330,
    scale_y: float = 1.0,
    unit: str = "",
) -> Markup:
    """Curves with intervals and labelled horizontal references. `y_values` widens the y axis, as for a shared one.

    `span` shades the chart between two places on the x axis.
    """
    references = {name: scale_y * level for name, level in (references or {}).items()}
    left, right, top, bottom = 58, 128 if references else 16, 30, 46
    ys = [scale_y * v for line in lines for part in (line.y, line.low or (), line.high or ()) for v in part]
    x = nice_scale((v for line in lines for v in line.x), left, width - right, log=log_x)
    ys += [scale_y * v for band in bands for v in (*band.low, *band.high)]
    y = nice_scale([*ys, *references.values(), *(scale_y * v for v in y_values)], height - bottom, top)
    ticks = [t for t in x.ticks if not whole_x or float(t).is_integer()]
    parts = [_title(title)]
    if span is not None:
        rect = Markup('<rect class="span" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>')
        parts.append(rect.format(x(span[0]), y.end, x(span[1]) - x(span[0]), y.start - y.end))
    parts.append(_frame(x, y, ticks, x_label, y_label))
    for band in bands:
        there = [(x(a), y(scale_y * b)) for a, b in zip(band.x, band.high, strict=True)]
        there += [(x(a), y(scale_y * b)) for a, b in reversed([*zip(band.x, band.low, strict=True)])]
        path = "M" + "L".join(f"{a:.1f},{b:.1f}" for a, b in there) + "Z"
        parts.append(Markup('<path class="band" d="{}"><title>{}</title></path>').format(path, band.label))
    parts += _references(references, x, y)
    many = sum(len(line.x) for line in lines) > 900
    for line in lines:
        at = [(x(a), y(scale_y * b)) for a, b in zip(line.x, line.y, strict=True)]
        path = "M" + "L".join(f"{a:.1f},{b:.1f}" for a, b in at)
        body = [
            Markup('<path class="line" d="{}" stroke="{}" stroke-dasharray="{}"/>').format(
                path, line.style.colour, line.style.dash
            )
        ]
        for i, (a, b) in enumerate(at):
            low, high = (None if part is None else scale_y * part[i] for part in (line.low, line.high))
            if low is not None and high is not None and math.isfinite(low):
                body.append(
                    Markup('<path class="whisker" d="M{:.1f},{:.1f}V{:.1f}" stroke="{}"/>').format(
                        a, y(low), y(high), line.style.colour
                    )
                )
            if not many:
                shown = fixed(scale_y * line.y[i], 3 if scale_y == 1 else 1)
                tip = f"{line.label} · {number(line.x[i])}: {shown} {unit}".rstrip()
                body.append(_mark(a, b, line.style, tip))
        parts.append(_group(line.runs, body))
    return svg(parts, width, height, title)


def interval_chart(
    rows: Sequence[Dot], *, title: str, x_label: str, zero_line: bool = True, width: int = 520, label_width: int = 190
) -> Markup:
    """Dots with intervals, one row each from the top; hollow diamonds are nulls."""
    height = 64 + 22 * len(rows)
    x = nice_scale(
        [v for row in rows for v in (row.value, row.low, row.high, row.null) if v is not None]
        + ([0.0] if zero_line else []),
        label_width,
        width - 14,
    )
    top, bottom = 28, height - 38
    parts = [_title(title), _x_axis(x, x.ticks, top, bottom, x_label)]
    if zero_line:
        parts.append(Markup('<path class="zero" d="M{0:.1f},{1}V{2}"/>').format(x(0), top, bottom))
    for place, row in enumerate(rows):
        middle = top + 13 + 22 * place
        body = [Markup('<text class="row" x="{}" y="{}">{}</text>').format(label_width - 8, middle + 4, row.label)]
        if row.value is None:
            text = Markup('<text class="absent" x="{}" y="{}">absent<title>{}</title></text>')
            body.append(text.format(label_width + 4, middle + 4, row.reason))
        else:
            if row.low is not None and row.high is not None:
                whisker = Markup('<path class="interval" d="M{:.1f},{}H{:.1f}" stroke="{}"/>')
                body.append(whisker.format(x(row.low), middle, x(row.high), row.colour))
            if row.null is not None:
                body.append(
                    Markup('<path class="diamond" d="M{:.1f},{}l4.5,4.5l-4.5,4.5l-4.5,-4.5z"/>').format(
                        x(row.null), middle - 4.5
                    )
                )
            style = Style(colour=row.colour if row.low is not None else "#fff", mark="circle")
            body.append(_mark(x(row.value), middle, style, f"{row.label}: {row.note}", edge=row.colour, size=1.5))
        parts.append(_group(row.runs, body))
    return svg(parts, width, height, title)


def legend(lines: Sequence[Line], bands: Sequence[Band] = (), span: str = "") -> Markup:
    """What every line is: a swatch and its label, hidden with its runs; then bands, and what a span is."""
    entries = Markup("").join(
        Markup(
            '<span class="key"{}><svg width="34" height="10" viewBox="0 0 34 10"><path class="line" d="M1,5H33" '
            'stroke="{}" stroke-dasharray="{}"/>{}</svg>{}</span>'
        ).format(_runs(line.runs), line.style.colour, line.style.dash, _mark(17, 5, line.style, ""), line.label)
        for line in lines
    )
    for kind, label in (*(("band", band.label) for band in bands), *([("span", span)] if span else [])):
        swatch = (
            '<span class="key"><svg width="34" height="10"><rect class="{}" width="34" height="10"/></svg>{}</span>'
        )
        entries += Markup(swatch).format(kind, label)
    return Markup('<div class="legend">{}</div>').format(entries)


def figure(chart: Markup, key: Markup, width: int) -> Markup:
    """A chart over its legend, no wider than the chart."""
    return Markup('<figure style="width:{}px">{}{}</figure>').format(width, chart, key)


def svg(parts: Iterable[Markup], width: float, height: float, label: str) -> Markup:
    """An SVG element of the parts, in pixels; `label` is what a screen reader says of it."""
    return Markup(
        '<svg class="chart" role="img" aria-label="{}" width="{:.0f}" height="{:.0f}" viewBox="0 0 {:.0f} {:.0f}">'
        "{}</svg>"
    ).format(label, width, height, width, height, Markup("").join(parts))


def _title(text: str) -> Markup:
    return Markup('<text class="title" x="4" y="15">{}</text>').format(text)


def _group(runs: Sequence[int], body: Iterable[Markup]) -> Markup:
    return Markup("<g{}>{}</g>").format(_runs(runs), Markup("").join(body))


def _runs(runs: Sequence[int]) -> Markup:
    return Markup(' data-run="{}"').format(" ".join(map(str, runs))) if runs else Markup("")


def _mark(x: float, y: float, style: Style, tip: str, edge: str | None = None, size: float = 1.0) -> Markup:
    title = Markup("<title>{}</title>").format(tip) if tip else Markup("")
    scale = f" scale({size})" if size != 1 else ""
    return Markup(
        '<path class="mark" transform="translate({:.1f},{:.1f}){}" d="{}" fill="{}" stroke="{}">{}</path>'
    ).format(x, y, scale, _MARK[style.mark], style.colour, edge or style.colour, title)


def _x_axis(x: Scale, ticks: Sequence[float], top: float, bottom: float, label: str) -> Markup:
    parts = []
    for tick in ticks:
        parts.append(Markup('<path class="grid" d="M{0:.1f},{1}V{2}"/>').format(x(tick), top, bottom))
        parts.append(
            Markup('<text class="tick x" x="{:.1f}" y="{}">{}</text>').format(x(tick), bottom + 14, _tick(tick))
        )
    middle = (x.start + x.end) / 2
    parts.append(Markup('<text class="label" x="{:.1f}" y="{}">{}</text>').format(middle, bottom + 31, label))
    return Markup("").join(parts)


def _frame(x: Scale, y: Scale, ticks: Sequence[float], x_label: str, y_label: str) -> Markup:
    parts = [_x_axis(x, ticks, y.end, y.start, x_label)]
    for tick in y.ticks:
        parts.append(Markup('<path class="grid" d="M{},{:.1f}H{}"/>').format(x.start, y(tick), x.end))
        parts.append(
            Markup('<text class="tick y" x="{}" y="{:.1f}">{}</text>').format(x.start - 6, y(tick) + 4, _tick(tick))
        )
    label = Markup('<text class="label" transform="translate(14,{:.1f}) rotate(-90)">{}</text>')
    parts.append(label.format((y.start + y.end) / 2, y_label))
    return Markup("").join(parts)


def _references(references: Mapping[str, float], x: Scale, y: Scale) -> list[Markup]:
    """Dashed lines with their names at the right, moved apart where they would overlap."""
    parts, last = [], -math.inf
    for i, (name, level) in enumerate(sorted(references.items(), key=lambda item: -item[1])):
        place = max(y(level) + 4, last + 13)
        last = place
        dash = _REFERENCE_DASHES[i % len(_REFERENCE_DASHES)]
        parts.append(
            Markup('<path class="reference" d="M{},{:.1f}H{}" stroke-dasharray="{}"/>').format(
                x.start, y(level), x.end + 2, dash
            )
        )
        parts.append(Markup('<text class="tick" x="{}" y="{:.1f}">{}</text>').format(x.end + 6, place, escape(name)))
    return parts


def _tick(value: float) -> str:
    return number(value) if float(value).is_integer() else f"{value:g}".replace("-", "−")
