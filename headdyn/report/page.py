"""Pages that open from disk with no network: one HTML file with its style and pictures inside."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from headdyn.core.figures import png_bytes


def write_page(path: Path, template: str, **content: Any) -> None:
    """Render a template of headdyn/report/templates into one file, whole or not at all."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "measured": measured, "duration": duration}
    text = environment.get_template(template).render(**content)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def picture(source: Figure | Path, alt: str) -> Markup:
    """A figure, or a PNG file, as an inline image."""
    data = source.read_bytes() if isinstance(source, Path) else png_bytes(source)
    encoded = base64.b64encode(data).decode()
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(alt, encoded)


def number(value: float | None, digits: int = 3) -> str:
    """Four significant digits at most; an em dash where there is no value."""
    if value is None:
        return "—"
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e6):
        return f"{value:.0f}" if abs(value) >= 10 or value == 0 else f"{value:g}"
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    if magnitude < -3:
        return f"{value:.1e}"
    return f"{value:.{max(0, min(digits, digits - 1 - magnitude)) if magnitude > 0 else digits}f}"


def measured(scalar: Mapping[str, Any] | float | None) -> Markup:
    """`0.412 [0.405, 0.419] · null 0.398`, or the reason why there is no value."""
    if not isinstance(scalar, Mapping):
        return Markup("{}").format(number(scalar))
    if scalar.get("value") is None:
        return Markup('<span class="absent" title="{}">absent</span>').format(scalar.get("reason", "not computed"))
    text = Markup("{}").format(number(scalar["value"]))
    if scalar.get("ci_low") is not None:
        text += Markup(' <span class="ci">[{}, {}]</span>').format(number(scalar["ci_low"]), number(scalar["ci_high"]))
    if scalar.get("null") is not None:
        text += Markup(' <span class="null">null {}</span>').format(number(scalar["null"]))
    return text


def duration(seconds: float | None) -> str:
    """`8.3 s`, `2 min 05 s`, `1 h 20 min`."""
    if seconds is None:
        return "—"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
