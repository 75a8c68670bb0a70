"""Pages that open from disk with no network: one HTML file with its style, its figures and what draws them inside."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from headdyn.core.figures import CONFIG, Figure
from headdyn.core.numbers import decimals, duration, fixed, number, p_value, spelled
from headdyn.core.records import read_json
from headdyn.core.store import Store, cache_root
from headdyn.report.section import Section

TEMPLATES = Path(__file__).parent / "templates"
_VEGA_LITE = "6.4"


def write_page(
    path: Path,
    *,
    title: str,
    lead: Markup,
    sections: Sequence[Section],
    runs: Mapping[int, Mapping[str, str]] | None = None,
    varied: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """A page of sections in one file, whole or not at all.

    `runs` are the levels of each run by its number, `varied` the levels of each key and how a reader meets them: what
    the page lets a reader filter.
    """
    content = {"title": title, "lead": lead, "sections": sections, "runs": runs or {}, "varied": varied or {}}
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(render("page.html", vega=vega(), config=CONFIG, **content), encoding="utf-8")
    temporary.replace(path)


def render(template: str, **content: Any) -> Markup:
    """A template of headdyn/report/templates with this content: a whole page, or the inside of a section."""
    return Markup(_templates().get_template(template).render(**content))


@functools.cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.filters |= {"number": number, "measured": measured, "duration": duration, "p": p_value, "fixed": fixed}
    environment.globals |= {"file": lambda name: Markup((TEMPLATES / name).read_text(encoding="utf-8"))}
    return environment


@functools.cache
def vega() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script. Putting it together takes 2 s, so that the store keeps it."""
    import vl_convert

    def build(folder: Path) -> None:
        script = vl_convert.javascript_bundle(vl_version=_VEGA_LITE)  # type: ignore[call-arg]
        (folder / "vega.js").write_text(script, encoding="utf-8")

    recipe = {"vl_convert": version("vl-convert-python"), "vega_lite": _VEGA_LITE}
    return Markup((Store(cache_root()).get("vega", recipe, build).path / "vega.js").read_text(encoding="utf-8"))


# -- the inside of sections -------------------------------------------------------------------------------------------


def drawn(figure: Figure | Mapping[str, Any], runs: Sequence[int] = ()) -> Markup:
    """A figure, or its stored specification, with its caption; Vega draws it when it is first seen.

    With `runs` it is hidden where the filter shows none of them.
    """
    spec = dict(figure.spec() if isinstance(figure, Figure) else figure)
    spec.pop("config", None)  # the page has it once
    caption = Markup("<figcaption>{}</figcaption>").format(spec["description"]) if spec.get("description") else ""
    text = Markup(json.dumps(spec, ensure_ascii=False, allow_nan=False).replace("</", r"<\/"))
    return Markup('<figure{}><div class="chart"></div><script type="application/json">{}</script>{}</figure>').format(
        _of_runs(runs), text, caption
    )


def picture(path: Path, alt: str) -> Markup:
    """A figure that a run stored; the PNG files of older runs as they are."""
    if path.suffix == ".json":
        return drawn(read_json(path))
    encoded = base64.b64encode(path.read_bytes()).decode()
    return Markup('<figure><img alt="{}" src="data:image/png;base64,{}"></figure>').format(alt, encoded)


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


def _of_runs(runs: Sequence[int]) -> Markup:
    return Markup(' data-run="{}"').format(" ".join(map(str, runs))) if runs else Markup("")
