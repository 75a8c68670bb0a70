"""Parts that all charts share: palettes, named tables of data, axes of names, tooltips, titles."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import altair as alt
else:

    class _Altair:
        """Altair, imported when the first figure is drawn: it takes 0.3 s."""

        def __getattr__(self, name: str) -> Any:
            import altair

            return getattr(altair, name)

    alt = _Altair()

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
CIVIDIS = ("#00224e", "#1a386f", "#434e6c", "#61656f", "#7d7c78", "#9b9476", "#bcae6c", "#dec958", "#fee838")
PUOR = ("#2d004b", "#5f3a91", "#9990bf", "#cfcfe5", "#f7f7f6", "#fed59f", "#ee9b39", "#bd6109", "#7f3b08")
DASHES = ([1, 0], [6, 3], [6, 2, 1, 2], [1, 2])
MARKS = ("circle", "square", "triangle-up", "triangle-down", "cross", "triangle-right", "triangle-left", "stroke")
GREY = "#595959"


class Tables(dict[str, Sequence[Mapping[str, Any]]]):
    """The data of one figure. Charts refer to tables by name, because Altair copies data inside charts many times."""

    def named(self, rows: Sequence[Mapping[str, Any]]) -> alt.NamedData:
        name = f"table{len(self)}"
        self[name] = rows
        return alt.NamedData(name)

    def chart(self, rows: Sequence[Mapping[str, Any]]) -> alt.Chart:
        return alt.Chart(self.named(rows))


def place_names(channel: Any, names: Sequence[Any], **axis: Any) -> Any:
    """An ordinal channel whose values are indices into a list of names, which label its axis.

    Names that would overlap are left out; below an x axis long ones are written vertically. `axis` has further
    properties of the axis; its title is the channel's field by default.
    """
    vertical = isinstance(channel, alt.X) and max((len(str(name)) for name in names), default=0) > 3
    label = f"{json.dumps([str(name) for name in names])}[datum.value]"
    title = str(channel.shorthand).partition(":")[0]
    axis = {"grid": False, "ticks": False, "domain": False, "labelAngle": -90 if vertical else 0, "title": title} | axis
    return channel.scale(domain=list(range(len(names)))).axis(labelExpr=label, labelOverlap=True, **axis)


def tooltips(*fields: str, **titles: str) -> list[alt.Tooltip]:
    """Tooltips: `fields` are shown under their own names, `titles` maps further fields to the names to show."""
    named = {field: field.partition(":")[0].replace("_", " ") for field in fields} | titles
    return [
        alt.Tooltip(field, title=title, format=".4~g") if field.endswith(":Q") else alt.Tooltip(field, title=title)
        for field, title in named.items()
    ]


def faded(pick: Any, opacity: float) -> alt.OpacityValue:
    """This opacity for what a selection does not pick.

    Like all channels here it is an object: Altair takes 5 ms to make one of a string or a dict.
    """
    return alt.OpacityValue(**alt.condition(pick, alt.value(1), alt.value(opacity)))


def ink(text: str = "text:N") -> tuple[alt.Text, alt.Color]:
    """Encodings of a text and of its colour, which is the row's `ink`."""
    return alt.Text(text), alt.Color("ink:N", scale=None)


def categories(names: Sequence[str], looks: Sequence[Any]) -> alt.Scale:
    """A scale from names to looks (colours, dashes or marks), which repeat if there are more names."""
    return alt.Scale(domain=list(names), range=[looks[i % len(looks)] for i in range(len(names))])


def ramp_scale(limits: tuple[float, float], colours: Sequence[str]) -> alt.Scale:
    """A colour scale from the first colour to the last, clamped at the limits."""
    domain = np.linspace(*limits, len(colours)).tolist()
    return alt.Scale(domain=domain, range=list(colours), clamp=True, nice=False, interpolate="rgb")


def titled(text: str, width: float, note: str = "") -> alt.TitleParams:
    """A title and a note below it, wrapped to a width in pixels."""
    lines = [part for line in text.split("\n") for part in textwrap.wrap(line, max(12, int(width / 6.8)))]
    return alt.TitleParams(text=lines, subtitle=textwrap.wrap(note, max(12, int(width / 5.6))))


def legend_columns(names: Sequence[str]) -> int:
    """How many columns a legend of these names has."""
    return max(1, int(80 / (6 + max(map(len, names), default=1))))


def json_number(value: Any) -> float | None:
    """The number; None in place of NaN and infinity, which JSON lacks."""
    return float(value) if value is not None and math.isfinite(value) else None
