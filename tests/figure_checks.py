"""What a figure must keep: no text cut off, none over another, no two lines told apart by colour alone, its data."""

from __future__ import annotations

import base64
import functools
import itertools
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import vl_convert

from headdyn.core.figures import Figure

# Widths of letters over the size of the font, about Helvetica's.
_NARROW, _WIDE = frozenset("ijl.,:;'|! ftr[]()*"), frozenset("mwMW%")


@dataclass(frozen=True)
class Text:
    """One drawn line of text with its box in pixels of the whole figure."""

    text: str
    x0: float
    y0: float
    x1: float
    y1: float
    role: str
    limit: float  # pixels from which on Vega cuts it; 0 is no limit

    @property
    def width(self) -> float:
        return max(self.x1 - self.x0, self.y1 - self.y0)


def texts(figure: Figure) -> list[Text]:
    """Every text that is drawn, by Vega's own layout; widths of letters are estimated."""
    scene = _scene(json.dumps(figure.spec()))
    left, top = scene["origin"]
    return list(_texts(scene["scenegraph"], left, top))


@functools.lru_cache(maxsize=1)
def _scene(spec: str) -> dict[str, Any]:
    """What Vega draws; kept for the next check of the same figure, since drawing takes a tenth of a second."""
    return vl_convert.vegalite_to_scenegraph(spec)  # type: ignore[no-any-return]


def _texts(mark: dict[str, Any], left: float, top: float) -> Iterator[Text]:
    for item in mark["items"]:
        x, y = left + item.get("x", 0), top + item.get("y", 0)
        for inner in item.get("items", ()):
            yield from _texts(inner, x, y)
        text = item.get("text")
        if mark["marktype"] != "text" or text in (None, "") or item.get("opacity") == 0:
            continue
        size = item.get("fontSize", 11)
        lines = [str(line) for line in text] if isinstance(text, list) else [str(text)]
        for row, line in enumerate(lines):
            if not line.strip():
                continue
            width = size * sum(map(_width, line))
            width = min(width, item.get("limit") or math.inf)
            across = {"right": -width, "center": -width / 2}.get(item.get("align", "left"), 0.0) + item.get("dx", 0)
            high = {"top": 0.0, "middle": -size / 2, "bottom": -size}.get(item.get("baseline", ""), -0.8 * size)
            high += item.get("dy", 0) + row * (size + 2)
            if item.get("angle", 0) % 180 == 0:
                box = (x + across, y + high, x + across + width, y + high + size)
            else:  # upright, read from below
                box = (x + high, y - across - width, x + high + size, y - across)
            yield Text(line, *box, mark.get("role", ""), item.get("limit") or 0)


def _width(letter: str) -> float:
    return 0.28 if letter in _NARROW else 0.78 if letter in _WIDE else 0.66 if letter.isupper() else 0.53


def clipped(figure: Figure) -> list[str]:
    """The texts that reach over the figure's edge, or that Vega cuts at their limit (cells of tables may be)."""
    scene = _scene(json.dumps(figure.spec()))
    width, height = scene["width"], scene["height"]
    return [
        t.text
        for t in texts(figure)
        if t.x0 < -3
        or t.y0 < -3
        or t.x1 > width + 3
        or t.y1 > height + 3
        or (t.role != "mark" and 0 < t.limit <= t.width)
    ]


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes share more than two pixels both ways.

    Marks are left out where both are data: the numbers of points in a plane lie where the data says.
    """
    pairs = itertools.combinations(texts(figure), 2)
    return [
        (a.text, b.text)
        for a, b in pairs
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 2
        and min(a.y1, b.y1) - max(a.y0, b.y0) > 2
        and not a.role == b.role == "mark"
    ]


def charts(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every unit of a specification: what has a mark of its own."""
    if "mark" in spec:
        yield spec
    for part in ("layer", "hconcat", "vconcat", "concat", "spec"):
        for inner in [spec["spec"]] if part == "spec" and part in spec else spec.get(part, ()):
            yield from charts({"data": spec["data"], **inner} if "data" in spec else inner)


def rows(figure: Figure, field: str) -> list[dict[str, Any]]:
    """The rows of the figure's data that have this field, each once, in order."""
    spec = figure.spec()
    tables = list(spec.get("datasets", {}).values())
    tables += [unit["data"]["values"] for unit in charts(spec) if "values" in unit.get("data", {})]
    unique = {id(row): row for table in tables for row in table if field in row}
    found: list[dict[str, Any]] = []
    for row in unique.values():
        if row not in found:
            found.append(row)
    return found


def alike(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of named lines or groups that one unit of the figure draws with the same dashes and the same mark."""
    found = []
    looks: dict[str, dict[str, Any]] = {}
    for unit in charts(figure.spec()):
        for channel in ("strokeDash", "shape"):
            scale = unit["encoding"].get(channel, {}).get("scale", {})
            for name, look in zip(scale.get("domain", ()), scale.get("range", ()), strict=False):
                looks.setdefault(name, {})[channel] = look
        colours = unit["encoding"].get("color", {}).get("scale") or {}
        if unit["encoding"].get("color", {}).get("type") == "nominal":
            for name in colours.get("domain", ()):
                looks.setdefault(name, {})
    for one, other in itertools.combinations(looks, 2):
        if looks[one] == looks[other]:
            found.append((one, other))
    return found


def decoded(uri: str) -> np.ndarray:
    """The indices of a picture of at most 256 colours, [Y, X]."""
    content = base64.b64decode(uri.partition(",")[2])
    chunks, place = {}, 8
    while place < len(content):
        length = int.from_bytes(content[place : place + 4])
        kind, body = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        assert zlib.crc32(kind + body) == int.from_bytes(content[place + 8 + length : place + 12 + length])
        chunks[kind], place = body, place + 12 + length
    width, height = (int.from_bytes(chunks[b"IHDR"][i : i + 4]) for i in (0, 4))
    return np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)[:, 1:]
