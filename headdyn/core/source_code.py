"""Which code a result is of: the commit it ran from, and a digest of the files as they are."""

import functools
import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parent.parent
_KINDS = (".py", ".js", ".css", ".html", ".json")


def git_revision() -> str | None:
    """The commit this package runs from, with '+' behind it for uncommitted changes; None outside a checkout.

    An installed package that lies in somebody's repository, in their .venv say, is no checkout: git does not track it.
    """
    here = Path(__file__)
    tracked = ["git", "-C", str(here.parent), "ls-files", "--error-unmatch", here.name]
    describe = ["git", "-C", str(here.parent), "describe", "--always", "--abbrev=12", "--dirty=+"]
    run = functools.partial(subprocess.run, capture_output=True, text=True, timeout=10, check=True)
    try:
        run(tracked)
        return run(describe).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def source_digest(others: Iterable[ModuleType] = ()) -> str:
    """SHA-256 of this package's code and texts as they are on the disk, committed or not, and of modules outside it."""
    places = [Path(place) for module in others for place in getattr(module, "__path__", None) or [module.__file__]]
    digest = hashlib.sha256()
    for place in (PACKAGE, *(place for place in places if not place.is_relative_to(PACKAGE))):
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.suffix in _KINDS:
                digest.update(f"\0{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()
