"""What a sweep's page was made of, so that it is drawn again only where it would come out another."""

import hashlib
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

from headdyn.report import extension
from headdyn.sweep.record import SERIES_SECONDS, SweepRecord

PAGE = "report.html"
_HEADDYN = Path(__file__).parent.parent
_LIBRARIES = ("altair", "vl-convert-python", "jinja2")
_SOURCES = (".py", ".js", ".css", ".html", ".json")
_MOST_READ = 2**24  # bytes; of a larger record its size and time of change stand for it
# What stands in a sweep's folder and on no page.
_NO_RECORDS = (".lock", "log.txt", "wandb", SERIES_SECONDS)


def made_of(sweep: SweepRecord) -> str:
    """SHA-256 of all that the sweep's page is made of: its records, and the code and libraries that show them."""
    digest = hashlib.sha256(" ".join(map(version, _LIBRARIES)).encode())
    packages = [_HEADDYN, *(Path(path) for module in extension.packages(sweep) for path in module.__path__)]
    sources = (path for path in _files(dict.fromkeys(packages)) if path.suffix in _SOURCES)
    for path in (*_records(sweep.folder), *sources):
        facts = path.stat()
        content = path.read_bytes() if facts.st_size <= _MOST_READ else str(facts.st_mtime_ns).encode()
        digest.update(f"\0{path.name}\0{facts.st_size}\0".encode() + content)
    return digest.hexdigest()


def _records(folder: Path) -> Iterator[Path]:
    """The files that a sweep and its runs left."""
    parts = (path for path in folder.iterdir() if path.name not in (*_NO_RECORDS, PAGE, f"{PAGE}.tmp"))
    return (path for path in _files(parts) if path.name not in _NO_RECORDS)


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files among `paths` and in folders below them, in a fixed order."""
    for path in sorted(paths):
        if path.is_dir():
            yield from _files(path.iterdir())
        else:
            yield path


def sealed(page: str, digest: str) -> str:
    """The page's text with a last line that tells whether it is still what was made of that."""
    return f"{page}<!-- {_seal(page, digest)} -->\n"


def is_current(page: Path, digest: str) -> bool:
    """Whether the page is there, undamaged, and was made of that."""
    text = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
    start = text.rfind("<!-- ")
    return start > 0 and text[start:] == f"<!-- {_seal(text[:start], digest)} -->\n"


def _seal(page: str, digest: str) -> str:
    return hashlib.sha256(f"{digest}\0{page}".encode()).hexdigest()
