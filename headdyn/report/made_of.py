"""What a sweep's page was made of, so that it is drawn again only where it would come out another."""

import hashlib
from importlib.metadata import version
from pathlib import Path

from headdyn.core.run_folder import KEPT_PARTS
from headdyn.core.source_code import source_digest
from headdyn.report import extension
from headdyn.sweep.record import SERIES_SECONDS, SweepRecord

PAGE = "report.html"
_LIBRARIES = ("altair", "vl-convert-python", "jinja2")
_MOST_READ = 2**24  # bytes; of a larger record its size and time of change stand for it
# What stands in folders of sweeps and runs, and on no page.
_NO_RECORDS = {".lock", "log.txt", "wandb", KEPT_PARTS, SERIES_SECONDS}


def made_of(sweep: SweepRecord) -> str:
    """SHA-256 of all that the sweep's page is made of: its records, and the code and libraries that show them."""
    shown_by = (*map(version, _LIBRARIES), source_digest(extension.packages(sweep)))
    digest = hashlib.sha256(" ".join(shown_by).encode())
    for path in _records(sweep.folder):
        facts = path.stat()
        content = path.read_bytes() if facts.st_size <= _MOST_READ else str(facts.st_mtime_ns).encode()
        digest.update(f"\0{path.relative_to(sweep.folder)}\0{facts.st_size}\0".encode() + content)
    return digest.hexdigest()


def _records(folder: Path) -> list[Path]:
    """The files that a sweep and its runs left."""
    own = (folder / PAGE, folder / f"{PAGE}.tmp")
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path not in own)
    return [path for path in files if not _NO_RECORDS.intersection(path.relative_to(folder).parts)]


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
