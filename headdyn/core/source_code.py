"""Which code made a result: its commit, a digest of its files, and the versions of the packages beside it."""

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = Path(__file__).parent.parent
PACKAGES = (
    *("headdyn", "torch", "numpy", "scipy", "scikit-learn"),
    *("transformers", "muon-optimizer", "hydra-core", "wandb"),
)
_KINDS = (".py", ".js", ".css", ".html", ".json")


def provenance() -> dict[str, Any]:
    """The part of a manifest that names the code: the time (ISO 8601, UTC), Python, packages (None: absent), commit."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "git": git_revision(),
    }


def git_revision() -> str | None:
    """The commit of this package, followed by '+' if there are uncommitted changes; None outside a checkout.

    A package installed inside somebody's repository, for example in its .venv, is no checkout: git does not track it.
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
    """SHA-256 of the files of this package as they are on disk, and of those of the modules `others` outside it."""
    places = [Path(place) for module in others for place in getattr(module, "__path__", None) or [module.__file__]]
    digest = hashlib.sha256()
    for place in (PACKAGE, *(place for place in places if not place.is_relative_to(PACKAGE))):
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.suffix in _KINDS:
                digest.update(f"\0{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
