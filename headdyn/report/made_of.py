"""A digest of everything that a sweep's page shows, so that the page is drawn again only if something has changed."""

import hashlib
from importlib.metadata import version
from pathlib import Path

from headdyn.core.run_folder import KEPT_PARTS
from headdyn.core.source_code import source_digest
from headdyn.report import extension
from headdyn.sweep.record import SERIES_SECONDS, SweepRecord

PAGE = "report.html"
_LIBRARIES = ("altair", "vl-convert-python", "jinja2")
_MOST_READ = 2**24  # bytes; a larger file enters the digest by its size and time of change
# Files and folders in a sweep's folder that no page shows.
_NO_RECORDS = {".lock", "log.txt", "wandb", KEPT_PARTS, SERIES_SECONDS}


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
    own = (folder / PAGE, folder / f"{PAGE}.tmp")
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path not in own)
    return [path for path in files if not _NO_RECORDS.intersection(path.relative_to(folder).parts)]


def sealed(page: str, digest: str) -> str:
    """The page's text with a last line that seals it: a hash of the text and of `digest` (`made_of`)."""
    return f"{page}<!-- {_seal(page, digest)} -->\n"


def is_current(page: Path, digest: str) -> bool:
    """Whether the page exists, is undamaged, and was made of what `digest` (`made_of`) stands for."""
    text = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
    start = text.rfind("<!-- ")
    return start > 0 and text[start:] == f"<!-- {_seal(text[:start], digest)} -->\n"


def _seal(page: str, digest: str) -> str:
    return hashlib.sha256(f"{digest}\0{page}".encode()).hexdigest()
