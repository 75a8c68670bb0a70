"""The cache of finished stages, each keyed by a hash of everything it depends on, so that nothing is computed twice.

A stage is built under a file lock in `KEY.partial`; its files are checksummed into a manifest and synced, and the
folder is renamed to `KEY`. Parallel jobs wait for one another and share the result. A stage whose files no longer match
their checksums is set aside and built again.
"""

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

from headdyn.core.json_files import write_json
from headdyn.core.whole_files import sync

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


class StageFailedError(RuntimeError):
    """A stage for which this job waited has failed in the job that was building it."""


class DiskError(OSError):
    """An error of the disk in one line for the user: which folder, and what to do."""

    def __str__(self) -> str:
        return str(self.strerror)


class StageInterruptedError(Exception):
    """Raised by a build that was asked to stop. It is no failure; a resumable stage later continues where it was."""


@dataclass(frozen=True)
class Entry:
    """A finished stage. `built` is true if this call built it, false if it was there before."""

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

    Raises ValueError if the root cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._verified: set[Path] = set()
        require_writable(self.root, "cache folder", "HEADDYN_CACHE")

    def find(self, kind: str, recipe: Mapping[str, Any]) -> Entry | None:
        """The finished stage, or None if there is none or it is damaged. Changes nothing."""
        path = self.root / kind / recipe_key(kind, recipe)
        return self._entry(path) if path.is_dir() and self.damage(path) is None else None

    def get(
        self, kind: str, recipe: Mapping[str, Any], build: Callable[[Path], None], *, resumable: bool = False
    ) -> Entry:
        """The finished stage, built now by `build(folder)` if there is none.

        A `resumable` build is given the folder that an interrupted build left. When a build fails, jobs that were
        waiting for it raise StageFailedError instead of trying too; a later call tries again. Raises DiskError, which
        says what to do, if the disk is full or refuses a file.
        """
        path = self.root / kind / recipe_key(kind, recipe)
        path.parent.mkdir(exist_ok=True)
        if path.is_dir() and path in self._verified:
            return self._entry(path)
        failure_note = path.with_suffix(".failed.json")
        # If this time has changed once the lock is held, a build has failed meanwhile. A clock could be set back.
        noted_before = modified(failure_note)
        with self._locked(path):
            if path.is_dir():
                damage = self.damage(path)
                if damage is None:
                    return self._entry(path)
                self._set_aside(path, damage)
            if modified(failure_note) not in (None, noted_before):
                error = json.loads(failure_note.read_text())["error"]
                raise StageFailedError(f"{kind} {path.name} failed in another job: {error}")
            try:
                self._build(path, {"kind": kind, "recipe": dict(recipe)}, build, resumable)
            except (StageInterruptedError, KeyboardInterrupt):
                raise
            except Exception as error:
                of_disk = disk_error(error, path)
                note = {"error": str(of_disk or error), "traceback": traceback.format_exc()}
                write_json_if_possible(failure_note, note)
                if of_disk is not None:
                    raise of_disk from error
                raise
            failure_note.unlink(missing_ok=True)
            self._verified.add(path)
        return self._entry(path, built=True)

    def _build(self, path: Path, facts: Mapping[str, Any], build: Callable[[Path], None], resumable: bool) -> None:
        partial = path.with_suffix(".partial")
        if partial.exists() and not resumable:
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)
        begun = time.monotonic()
        build(partial)
        seconds = time.monotonic() - begun
        (partial / MANIFEST).unlink(missing_ok=True)  # of a build that was killed between its manifest and its rename
        files = [file for file in sorted(partial.rglob("*")) if file.is_file()]
        sums = {
            str(file.relative_to(partial)): {"bytes": file.stat().st_size, "sha256": file_hash(file)} for file in files
        }
        write_json(partial / MANIFEST, {**facts, "build_seconds": seconds, "files": sums})
        for file in (*files, partial / MANIFEST):
            sync(file)
        partial.rename(path)
        sync(path.parent)

    def damage(self, path: Path) -> str | None:
        """What is wrong with a finished stage's files, or None. Reads every byte, once in each process."""
        if path in self._verified:
            return None
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            float(manifest["build_seconds"])
            if recipe_key(manifest["kind"], manifest["recipe"]) != path.name:
                return "its manifest is of another recipe"
            expected = {name: (facts["bytes"], facts["sha256"]) for name, facts in manifest["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"its manifest is unreadable ({type(error).__name__}: {error})"
        for name, (size, sha256) in expected.items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} holds {file.stat().st_size} bytes, not {size}"
            if file_hash(file) != sha256:
                return f"{name} does not match its checksum"
        self._verified.add(path)
        return None

    def _entry(self, path: Path, built: bool = False) -> Entry:
        return Entry(path, path.name, built, json.loads((path / MANIFEST).read_text())["build_seconds"])

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
            acquired = lock.acquire(timeout=0.2)
        except Timeout:
            log.info("waiting for another job that builds %s", path)
            acquired = lock.acquire()
        with acquired:
            yield


def cache_root() -> Path:
    """The folder of the cache: HEADDYN_CACHE, or `.cache/headdyn` in the home folder."""
    return Path(os.environ.get("HEADDYN_CACHE") or Path.home() / ".cache" / "headdyn").absolute()


def modified(path: Path) -> int | None:
    """When the file was last written, in nanoseconds since 1970, or None if there is no file."""
    return path.stat().st_mtime_ns if path.exists() else None


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_writable(folder: Path, what: str, setting: str) -> None:
    """Create the folder and try to write a file there. Raises ValueError if that fails.

    The message names the folder as `what`, the reason, and `setting`, by which the user chooses another folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"the {what} {folder} cannot be written ({error.strerror}); set {setting} to a folder that can"
        ) from error


def disk_error(error: Exception, folder: Path) -> DiskError | None:
    """The same error in one line for the user: what failed, where, what to do. None if the disk is not its cause.

    safetensors and torch report a full disk by the text of another error, so the text is searched too.
    """
    if isinstance(error, DiskError):
        return error
    full = "No space left on device" in str(error) or "failed writing file" in str(error)
    if full or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        text = (
            f"no space left for {folder}: free some, or set HEADDYN_CACHE and HEADDYN_OUT to another disk, then rerun"
        )
        return DiskError(errno.ENOSPC, text)
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        text = f"{error.filename or folder} cannot be written ({error.strerror}); choose a folder that can"
    else:
        text = f"{error.strerror or error} ({error.filename or folder})"
    return DiskError(error.errno, text)


def write_json_if_possible(path: Path, content: Mapping[str, Any]) -> None:
    """Write a note about a failure. If that fails too, only log a warning, so that the caller raises the failure."""
    try:
        write_json(path, content)
    except OSError as error:
        log.warning("could not write %s: %s", path, error)
