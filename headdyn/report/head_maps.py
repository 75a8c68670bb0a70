"""Head maps as inline SVG: a cell a head, in colours that one scale gives to every run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from headdyn.core.figures import CIVIDIS, PUOR, mixed
from headdyn.core.numbers import fixed
from headdyn.report.charts import svg

_GREY = "#5b6675"


@dataclass(frozen=True, kw_only=True)
class Colours:
    """A colour scale over low..high; `centre` makes it diverge from that value."""

    low: float
    high: float
    centre: float | None = None
    places: int = 2

    def __call__(self, value: float) -> tuple[str, str]:
        """Fill and ink of a value."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        fill = mixed(CIVIDIS if self.centre is None else PUOR, min(1.0, max(0.0, share)))
        red, green, blue = bytes.fromhex(fill[1:])
        return fill, "#000" if 0.299 * red + 0.587 * green + 0.114 * blue > 127 else "#fff"

    def bar(self, label: str, null: float | None = None) -> Markup:
        """A labelled colour bar, with a hollow diamond at the null."""
        width, left = 220, 12
        steps = 44
        cells = []
        for i in range(steps):
            fill, _ = self(self.low + (self.high - self.low) * (i + 0.5) / steps)
            x = left + i * width / steps
            cells.append(
                Markup('<rect x="{:.2f}" y="4" width="{:.2f}" height="10" fill="{}"/>').format(
                    x, width / steps + 0.4, fill
                )
            )
        ticks = [self.low, (self.low + self.high) / 2, self.high]
        for tick in ticks:
            x = left + width * (tick - self.low) / ((self.high - self.low) or 1)
            cells.append(Markup('<text class="tick x" x="{:.1f}" y="27">{}</text>').format(x, fixed(tick, self.places)))
        if null is not None and self.low <= null <= self.high:
            x = left + width * (null - self.low) / ((self.high - self.low) or 1)
            cells.append(Markup('<path class="diamond" d="M{:.1f},4l5,5l-5,5l-5,-5z"/>').format(x))
        cells.append(Markup('<text class="tick" x="{}" y="13">{}</text>').format(left + width + 14, label))
        return svg(cells, left + width + 30 + 7 * len(label), 32, label)


def head_map(
    value_LH: np.ndarray,
    *,
    run: int,
    label: str,
    metric: str,
    colours: Colours,
    marked_LH: np.ndarray | None = None,
    notes: Mapping[tuple[int, int], str] | None = None,
) -> Markup:
    """One run's heads as cells, layers from the top; a click on a cell opens the head."""
    layers, heads = value_LH.shape
    large = heads <= 6
    wide, high = (45, 24) if large else (max(11, 150 // heads), 13)
    left, top = 30, 6
    parts = []
    for (layer, head), value in np.ndenumerate(value_LH):
        x, y = left + wide * head, top + high * layer
        note = (notes or {}).get((layer, head), "")
        tip = f"{label} · layer {layer} head {head} · {metric}: {note}"
        there = math.isfinite(value)
        fill, ink = colours(value) if there else ("#fff", _GREY)
        star = "*" if marked_LH is not None and marked_LH[layer, head] else ""
        text = f"{fixed(value, colours.places)}{star}" if large and there else star
        parts.append(
            Markup(
                '<g class="cell" tabindex="0" role="button" data-head="{} {} {}"><rect x="{}" y="{}" width="{}" '
                'height="{}" fill="{}"/><text x="{}" y="{}" fill="{}">{}</text><title>{}</title></g>'
            ).format(run, layer, head, x, y, wide, high, fill, x + wide / 2, y + high / 2 + 3.4, ink, text, tip)
        )
    every = 1 if layers <= 12 else 4
    for layer in range(0, layers, every):
        parts.append(
            Markup('<text class="tick y" x="{}" y="{}">{}</text>').format(
                left - 5, top + high * (layer + 0.5) + 3.5, layer
            )
        )
    every = 1 if heads <= 12 else 4
    for head in range(0, heads, every):
        parts.append(
            Markup('<text class="tick x" x="{}" y="{}">{}</text>').format(
                left + wide * (head + 0.5), top + high * layers + 12, head
            )
        )
    parts.append(
        Markup('<text class="label" x="{}" y="{}">head</text>').format(
            left + wide * heads / 2, top + high * layers + 24
        )
    )
    middle = top + high * layers / 2
    parts.append(Markup('<text class="label" transform="translate(9,{0}) rotate(-90)">layer</text>').format(middle))
    return svg(parts, left + wide * heads + 4, top + high * layers + 28, f"{metric} of {label}")


def grid_map(
    value_RC: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    axes: tuple[str, str],
    colours: Colours,
    notes: Mapping[tuple[int, int], str] | None = None,
) -> Markup:
    """A matrix as cells with numbers, as of checkpoints by heads; `axes` are what rows and columns are."""
    count, across = value_RC.shape
    wide, high = 47, 22
    left, top = 14 + 7.2 * max((len(name) for name in rows), default=1), 26
    parts = [Markup('<text class="title" x="4" y="15">{}</text>').format(title)]
    for (row, column), value in np.ndenumerate(value_RC):
        x, y = left + wide * column, top + high * row
        there = math.isfinite(value)
        fill, ink = colours(value) if there else ("#fff", _GREY)
        text = fixed(value, colours.places) if there else "–"
        tip = f"{rows[row]}, {axes[1]} {columns[column]}: {(notes or {}).get((row, column), text)}"
        cell = '<g class="cell still"><rect x="{:.1f}" y="{}" width="{}" height="{}" fill="{}"/>'
        cell += '<text x="{:.1f}" y="{}" fill="{}">{}</text><title>{}</title></g>'
        parts.append(Markup(cell).format(x, y, wide, high, fill, x + wide / 2, y + high / 2 + 3.4, ink, text, tip))
    for row, name in enumerate(rows):
        tick = Markup('<text class="tick y" x="{:.1f}" y="{}">{}</text>')
        parts.append(tick.format(left - 5, top + high * (row + 0.5) + 3.5, name))
    for column, name in enumerate(columns):
        tick = Markup('<text class="tick x" x="{:.1f}" y="{}">{}</text>')
        parts.append(tick.format(left + wide * (column + 0.5), top + high * count + 13, name))
    label = Markup('<text class="label" x="{:.1f}" y="{}">{}</text>')
    parts.append(label.format(left + wide * across / 2, top + high * count + 28, axes[1]))
    return svg(parts, left + wide * across + 6, top + high * count + 34, title)
