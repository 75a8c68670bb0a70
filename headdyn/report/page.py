"""Pages that open from disk with no network: one HTML file with its style, script and pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from headdyn.core.figures import CIVIDIS, PALETTE, Figure, mixed, rendered
from headdyn.core.numbers import decimals, duration, fixed, number, p_value, spelled
from headdyn.core.records import read_json

TEMPLATES = Path(__file__).parent / "templates"


def write_page(path: Path, template: str, **content: Any) -> None:
    """Render a template of headdyn/report/templates into one file, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(render(template, **content), encoding="utf-8")
    temporary.replace(path)


def render(template: str, **content: Any) -> Markup:
    """A template of headdyn/report/templates with this content: a whole page, or the inside of a section."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.filters |= {"number": number, "measured": measured, "duration": duration, "p": p_value, "fixed": fixed}
    environment.globals |= {
        "style": _file("report.css"),
        "script": _file("report.js"),
        "shades": shades(),
        "palette": PALETTE,
    }
    return Markup(environment.get_template(template).render(**content))


def drawn(figure: Figure) -> Markup:
    """A figure in a page, with its caption."""
    svg = base64.b64encode(rendered(figure.spec(), "svg")).decode()
    caption = Markup("<figcaption>{}</figcaption>").format(figure.caption) if figure.caption else ""
    return Markup('<figure><img alt="{}" src="data:image/svg+xml;base64,{}">{}</figure>').format(
        figure.caption, svg, caption
    )


def picture(path: Path, alt: str) -> Markup:
    """A stored figure as an inline image; older runs left PNG files."""
    old = path.suffix == ".png"
    encoded = base64.b64encode(path.read_bytes() if old else rendered(read_json(path), "svg")).decode()
    return Markup('<img alt="{}" src="data:image/{};base64,{}">').format(alt, "png" if old else "svg+xml", encoded)


def measured(scalar: Mapping[str, Any]) -> Markup:
    """A value with interval and null beside it, or the reason why there is none; words as they are."""
    value, null = scalar.get("value"), scalar.get("null")
    if value is None:
        return Markup('<span class="absent">absent: {}</span>').format(scalar.get("reason", "not computed"))
    if isinstance(value, str):
        return Markup("{}").format(value)
    low, high = scalar.get("ci_low"), scalar.get("ci_high")
    if low is None or high is None:
        text = Markup("{}").format(number(value))
    else:
        shown, _, interval = spelled(scalar).partition(" ")
        text = Markup('{} <span class="ci">{}</span>').format(shown, interval)
    if null is not None:
        places = max(3, decimals(value, low, high))
        text += Markup(' <span class="null">null {}</span>').format("0" if null == 0 else fixed(null, places))
    return text


def shades() -> str:
    """cividis as 256 RGB bytes in base64: what a pattern's byte is drawn in."""
    return base64.b64encode(bytes.fromhex("".join(mixed(CIVIDIS, i / 255)[1:] for i in range(256)))).decode()


def _file(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))
