"""Nothing is computed twice: a folder of finished stages, each keyed by a hash of exactly what it depends on.

A stage is built under a file lock in `KEY.partial`, its files are checksummed into a manifest, synced and renamed to
`KEY`. Parallel jobs wait for one another and reuse. What a reader opens is therefore whole, or is found damaged by its
checksums, set aside and built again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from headdyn.core.records import write_json

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


class StageFailedError(RuntimeError):
    """A stage this job waited for failed in the job that was building it."""


class StageInterruptedError(Exception):
    """Raised by a build that was asked to stop: no failure, and a resumable stage goes on from where it was."""


@dataclass(frozen=True)
class Entry:
    """A finished stage. `built` tells whether this call built it or found it."""

    path: Path
    key: str
    built: bool
    build_seconds: float


def recipe_key(kind: str, recipe: Mapping[str, Any]) -> str:
    """16 hex digits that name a stage: a hash of its kind and of everything it depends on, as canonical JSON."""
    text = json.dumps({"kind": kind, "recipe": recipe}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Store:
    """Finished stages under one root folder, shared by every run and every process on the machine.

    Raises ValueError where the root cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._verified: set[Path] = set()
        require_writable(self.root, "cache folder", "HEADDYN_CACHE")

    def find(self, kind: str, recipe: Mapping[str, Any]) -> Entry | None:
        """The finished stage, or None; a damaged one counts as absent and stays where it is."""
        key = recipe_key(kind, recipe)
        path = self.root / kind / key
        return self._finished(path, key) if path.is_dir() and self.damage(path) is None else None

    def get(
        self, kind: str, recipe: Mapping[str, Any], build: Callable[[Path], None], *, resumable: bool = False
    ) -> Entry:
        """The finished stage, built now by `build(folder)` if it is not there.

        A `resumable` build finds in its folder what an interrupted one left. A build that fails leaves a mark, so that
        jobs which were waiting for it raise StageFailedError in place of failing again; a later call tries anew.
        """
        key = recipe_key(kind, recipe)
        path = self.root / kind / key
        path.parent.mkdir(parents=True, exist_ok=True)
        asked = time.time()
        if path.is_dir() and path in self._verified:
            return self._finished(path, key)
        with self._locked(path):
            if path.is_dir():
                damage = self.damage(path)
                if damage is None:
                    return self._finished(path, key)
                self._set_aside(path, damage)
            failed = path.with_suffix(".failed.json")
            if failed.exists() and failed.stat().st_mtime > asked:
                raise StageFailedError(f"{kind} {key} failed in another job: {json.loads(failed.read_text())['error']}")
            self._build(kind, recipe, path, build, resumable, failed)
        return Entry(path, key, True, json.loads((path / MANIFEST).read_text())["build_seconds"])

    def _build(
        self,
        kind: str,
        recipe: Mapping[str, Any],
        path: Path,
        build: Callable[[Path], None],
        resumable: bool,
        failed: Path,
    ) -> None:
        partial = path.with_suffix(".partial")
        if partial.exists() and not resumable:
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)
        begun = time.monotonic()
        try:
            build(partial)
            seconds = time.monotonic() - begun
            files = {str(p.relative_to(partial)): p for p in sorted(partial.rglob("*")) if p.is_file()}
            manifest = {
                "kind": kind,
                "recipe": dict(recipe),
                "build_seconds": seconds,
                "files": {name: {"bytes": p.stat().st_size, "sha256": file_hash(p)} for name, p in files.items()},
            }
            write_json(partial / MANIFEST, manifest)
            for p in (*files.values(), partial / MANIFEST):
                sync(p)
            partial.rename(path)
            sync(path.parent)
        except (StageInterruptedError, KeyboardInterrupt):
            raise
        except OSError as error:
            explained = explain_os_error(error, partial)
            write_json_if_possible(failed, {"error": explained, "traceback": traceback.format_exc()})
            raise OSError(error.errno, explained) from error
        except Exception as error:
            write_json_if_possible(failed, {"error": str(error), "traceback": traceback.format_exc()})
            raise
        failed.unlink(missing_ok=True)
        self._verified.add(path)

    def damage(self, path: Path) -> str | None:
        """What is wrong with a finished stage's files, or None; every byte is read once per process."""
        if path in self._verified:
            return None
        try:
            files = json.loads((path / MANIFEST).read_text())["files"]
        except (OSError, ValueError, KeyError) as error:
            return f"its manifest is unreadable ({error})"
        for name, expected in files.items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} holds {file.stat().st_size} bytes, not {expected['bytes']}"
            if file_hash(file) != expected["sha256"]:
                return f"{name} does not match its checksum"
        self._verified.add(path)
        return None

    def _finished(self, path: Path, key: str) -> Entry:
        return Entry(path, key, False, json.loads((path / MANIFEST).read_text())["build_seconds"])

    def _set_aside(self, path: Path, damage: str) -> None:
        number = 1
        while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
            number += 1
        path.rename(aside)
        log.warning("cache entry %s is damaged: %s; set aside as %s and built again", path, damage, aside.name)

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        lock = FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0.2)
        except Timeout:
            log.info("waiting for another job that builds %s", path)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def cache_root() -> Path:
    """Where stages are kept: HEADDYN_CACHE, or `.cache/headdyn` in the home folder."""
    return Path(os.environ.get("HEADDYN_CACHE") or Path.home() / ".cache" / "headdyn").absolute()


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_writable(folder: Path, what: str, setting: str) -> None:
    """Create the folder and write a byte there. Raises ValueError naming the folder, the fact and the setting."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"the {what} {folder} cannot be written ({error.strerror}); set {setting} to a folder that can"
        ) from error


def explain_os_error(error: OSError, folder: Path) -> str:
    """One line for a user: what failed, where, and what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no space left for {folder}: free some, or set HEADDYN_CACHE and HEADDYN_OUT to another disk, then rerun"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.filename or folder} cannot be written ({error.strerror}); choose a folder that can"
    return f"{error.strerror or error} ({error.filename or folder})"


def write_json_if_possible(path: Path, content: Mapping[str, Any]) -> None:
    """Leave a note about a failure; where even that cannot be written, the failure itself is what gets raised."""
    try:
        write_json(path, content)
    except OSError as error:
        log.warning("could not write %s: %s", path, error)


def sync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
