"""What a figure for print must keep: no text cut off, none over another, no two curves told apart by colour alone."""

from __future__ import annotations

import itertools

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def visible_texts(figure: Figure) -> list[Text]:
    """Every text that is drawn; ticks beyond the limits of an axis exist but are not."""
    figure.canvas.draw()
    outside = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = [tick for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
        outside |= {label for tick in ticks for label in (tick.label1, tick.label2)}
    hidden = {text for axes in figure.axes if not axes.axison for text in axes.findobj(Text)} - {
        text for axes in figure.axes for text in (*axes.texts, axes.title)
    }
    texts = [text for text in figure.findobj(Text) if text not in outside | hidden and text.get_visible()]
    return [text for text in texts if text.get_text().strip()]


def clipped(figure: Figure) -> list[str]:
    """The texts that reach over the figure's edge by more than a pixel."""
    frame = Bbox.from_extents(-1, -1, figure.bbox.width + 1, figure.bbox.height + 1)
    out = []
    for text in visible_texts(figure):
        box = text.get_window_extent()
        if box.width and not (frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1)):
            out.append(text.get_text())
    return out


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes share more than two pixels both ways.

    Left out are the numbers of points in a plane (centred on their digits), which lie where the data says.
    """
    texts = [text for text in visible_texts(figure) if text.get_va() != "center_baseline"]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    found = []
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 2 and min(a.y1, b.y1) - max(a.y0, b.y0) > 2:
            found.append((one, other))
    return found


def alike(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of a legend's curves of one axes that have the same dashes and the same marker."""
    found = []
    for axes in figure.axes:
        drawn = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
        for one, other in itertools.combinations(drawn, 2):
            looks = [(str(line._dash_pattern), str(line.get_marker()), line.get_linestyle()) for line in (one, other)]  # type: ignore[attr-defined]
            if looks[0] == looks[1]:
                found.append((str(one.get_label()), str(other.get_label())))
    return found
