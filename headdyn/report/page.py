"""Pages that open from disk with no network: one HTML file that holds style, figures and the script that draws them."""

import functools
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from headdyn.core.figures import CONFIG
from headdyn.core.store import Store, cache_root
from headdyn.core.whole_files import whole_file
from headdyn.report.blocks import Section
from headdyn.report.made_of import sealed

TEMPLATES = Path(__file__).parent / "templates"
_VEGA_LITE = "6.4"


def write_page(
    path: Path,
    *,
    title: str,
    lead: Markup,
    sections: Sequence[Section],
    runs: Mapping[int, Mapping[str, str]] | None = None,
    varied: Mapping[str, Sequence[str]] | None = None,
    made_of: str = "",
) -> Path:
    """Write a page of sections into one file, whole or not at all.

    The page's filter offers the levels of each key, `varied`, and knows each run's levels by its number, `runs`.
    `made_of` is the digest of what the page shows (made_of.py); a page that is always written anew needs none.
    """
    content = {"title": title, "lead": lead, "sections": sections, "runs": runs or {}, "varied": varied or {}}
    page = _templates().get_template("page.html").render(vega=vega(), config=CONFIG, **content)
    with whole_file(path) as file:
        file.write_text(sealed(page, made_of), encoding="utf-8")
    return path


@functools.cache
def _templates() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.loader = FileSystemLoader(TEMPLATES)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.globals |= {"file": lambda name: Markup((TEMPLATES / name).read_text(encoding="utf-8"))}
    return environment


@functools.cache
def vega() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script. Bundling takes 2 s, so the store keeps the script."""
    import vl_convert

    def build(folder: Path) -> None:
        script = vl_convert.javascript_bundle(vl_version=_VEGA_LITE)  # type: ignore[call-arg]
        (folder / "vega.js").write_text(script, encoding="utf-8")

    recipe = {"vl_convert": version("vl-convert-python"), "vega_lite": _VEGA_LITE}
    return Markup((Store(cache_root()).get("vega", recipe, build).path / "vega.js").read_text(encoding="utf-8"))
