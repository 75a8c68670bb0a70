"""Pages that open from disk with no network: one HTML file that holds style, figures and the script that draws them.

A page ends with a digest of everything that it shows, so that it is drawn again only if something has changed.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup

from headdyn.core.figures import CONFIG
from headdyn.core.run_folder import KEPT_PARTS
from headdyn.core.source_code import source_digest
from headdyn.core.store import Store, cache_root
from headdyn.core.whole_files import whole_file
from headdyn.report import extension
from headdyn.report.blocks import Section
from headdyn.sweep.record import SERIES_SECONDS, SweepRecord

PAGE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
_VEGA_LITE = "6.4"
_LIBRARIES = ("altair", "vl-convert-python", "jinja2")
_MOST_READ = 2**24  # bytes; a larger file enters the digest by its size and time of change
# Files and folders in a sweep's folder that no page shows.
_NO_RECORDS = {".lock", "log.txt", "wandb", KEPT_PARTS, SERIES_SECONDS}
RunLevels = Mapping[int, Mapping[str, str]]  # each run's levels of the varied keys, by its number


def write_page(
    path: Path, title: str, lead: Markup, sections: Sequence[Section], runs: RunLevels, digest: str = ""
) -> Path:
    """Write a page of sections into one file, whole or not at all.

    The page's filter offers the levels in which `runs` differ. `digest` is the digest of what the page shows
    (`made_of`); a page that is always written anew needs none.
    """
    names = next(iter(runs.values()), {})
    varied = {name: list(dict.fromkeys(levels[name] for levels in runs.values())) for name in names}
    content = {"title": title, "lead": lead, "sections": sections, "runs": runs, "varied": varied}
    page = _template().render(vega=vega(), config=CONFIG, **content)
    with whole_file(path) as file:
        file.write_text(sealed(page, digest), encoding="utf-8")
    return path


@functools.cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.loader = FileSystemLoader(TEMPLATES)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.globals |= {"file": lambda name: Markup((TEMPLATES / name).read_text(encoding="utf-8"))}
    return environment.get_template("page.html")


@functools.cache
def vega() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script. Bundling takes 2 s, so the store keeps the script."""
    import vl_convert

    def build(folder: Path) -> None:
        script = vl_convert.javascript_bundle(vl_version=_VEGA_LITE)  # type: ignore[call-arg]
        (folder / "vega.js").write_text(script, encoding="utf-8")

    recipe = {"vl_convert": version("vl-convert-python"), "vega_lite": _VEGA_LITE}
    return Markup((Store(cache_root()).get("vega", recipe, build).path / "vega.js").read_text(encoding="utf-8"))


def made_of(sweep: SweepRecord) -> str:
    """SHA-256 of everything that the sweep's page is made of: records, code, and the libraries that draw."""
    shown_by = (*map(version, _LIBRARIES), source_digest(extension.packages(sweep)))
    digest = hashlib.sha256(" ".join(shown_by).encode())
    for path in _records(sweep.folder):
        facts = path.stat()
        content = path.read_bytes() if facts.st_size <= _MOST_READ else str(facts.st_mtime_ns).encode()
        digest.update(f"\0{path.relative_to(sweep.folder)}\0{facts.st_size}\0".encode() + content)
    return digest.hexdigest()


def _records(folder: Path) -> list[Path]:
    """The files of a sweep and its runs that a page may show."""
    pages = (folder / PAGE, folder / f"{PAGE}.tmp")
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path not in pages)
    return [path for path in files if not _NO_RECORDS.intersection(path.relative_to(folder).parts)]


def sealed(page: str, digest: str) -> str:
    """The page's text with a last line that seals it: a hash of the text and of `digest` (`made_of`)."""
    return f"{page}<!-- {_seal(page, digest)} -->\n"


def is_current(page: Path, digest: str) -> bool:
    """Whether the page exists, is undamaged, and shows what `digest` (`made_of`) was computed from."""
    text = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
    start = text.rfind("<!-- ")
    return start > 0 and text[start:] == f"<!-- {_seal(text[:start], digest)} -->\n"


def _seal(page: str, digest: str) -> str:
    return hashlib.sha256(f"{digest}\0{page}".encode()).hexdigest()
