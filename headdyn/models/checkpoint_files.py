"""Where a checkpoint's files are: in a local folder, in the hub's own cache, or downloaded to be read and removed.

No torch here, so that a name, a revision or a network that is not there answers before anything heavy is imported.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from headdyn.core.store import Store, recipe_key
from headdyn.models.hub import (
    SOURCE,
    CheckpointError,
    describe,
    download,
    endpoint,
    is_tokenizer,
    nearest,
    wanted_files,
)
from headdyn.models.revisions import in_order

SCHEMA = 1
MOST_ON_DISK = 2  # revisions that nobody asked to keep, over all jobs of the machine


@contextmanager
def checkpoint_files(name: str, revision: str, store: Store, *, keep: bool) -> Iterator[Path]:
    """A folder with config, tokenizer and weights of one revision, to be read inside the block.

    `name` is a local folder, of one checkpoint (revision main) or with a folder per revision, or a name on the hub.
    What the hub's own cache holds is used from there and left there. Anything else is downloaded into the store: whole
    files of an interrupted download are gone on from, a failing connection is retried with growing pauses, checksums
    are the hub's. With `keep=False` the files go when the block ends, and at most two such revisions are on the disk.
    Raises CheckpointError, in one line, where it cannot be had; OSError where the disk refuses.
    """
    folder = local_folder(name, revision) or _in_hub_cache(name, revision)
    if folder is not None:
        yield folder
        return
    recipe = _recipe(name, revision)
    root, key = store.root / "checkpoint", recipe_key("checkpoint", recipe)
    root.mkdir(parents=True, exist_ok=True)
    kept = root / f"{key}.kept"
    with nullcontext() if keep else _one_of_two(root), FileLock(root / f"{key}.in_use.lock"):
        if keep:
            kept.touch()
        else:
            _make_room(root, key)
        entry = store.get("checkpoint", recipe, lambda to: download(name, revision, to), resumable=True)
        try:
            yield entry.path
        finally:
            if not kept.exists():
                _evict(entry.path)


def require_reachable(name: str, revision: str, store: Store) -> None:
    """Raise CheckpointError within ten seconds if the checkpoint is neither on this machine nor on a hub that answers.

    For a sweep to ask once before it starts; whether a revision's files are sound shows only when they are read.
    """
    if local_folder(name, revision) or _in_hub_cache(name, revision):
        return
    if not (store.root / "checkpoint" / recipe_key("checkpoint", _recipe(name, revision))).is_dir():
        describe(name, revision)


def local_folder(name: str, revision: str) -> Path | None:
    """The folder a name means, or None where it is meant for the hub (ORGANISATION/MODEL, and no folder here).

    Raises CheckpointError for a path that is no folder, and for a folder without the revision.
    """
    root = Path(name).expanduser()
    if not root.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise CheckpointError(f"model.name={name}: there is no such folder")
        return None
    if (root / revision / "config.json").is_file():
        return root / revision
    if revision == "main" and (root / "config.json").is_file():
        return root
    there = local_revisions(root)
    if there:
        raise CheckpointError(f"{root} has no revision {revision}; the nearest there are {nearest(revision, there)}")
    if (root / "config.json").is_file():
        raise CheckpointError(f"{root} holds one checkpoint and no folder {revision}; leave model.revision out")
    raise CheckpointError(f"{root} holds no checkpoint: neither config.json nor folders that do")


def local_revisions(root: Path) -> tuple[str, ...]:
    """The revisions in a local folder that has one folder for each, in the order of training."""
    return in_order(sorted(path.parent.name for path in root.glob("*/config.json")))


def commit_of(folder: Path) -> str | None:
    """The commit a downloaded checkpoint was read from; None for a local folder's."""
    path = folder / SOURCE
    return json.loads(path.read_text(encoding="utf-8"))["commit"] if path.is_file() else None


def _recipe(name: str, revision: str) -> dict[str, Any]:
    return {"schema": SCHEMA, "name": name, "revision": revision, "endpoint": endpoint()}


# -- what is on the disk ----------------------------------------------------------------------------------------------


def _in_hub_cache(name: str, revision: str) -> Path | None:
    """The snapshot's folder in the hub's own cache, if all that is needed lies there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None  # no name the hub could have; asking it says so
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    try:
        wanted = wanted_files([path.name for path in folder.iterdir() if path.exists()])
    except ValueError:
        return None
    shards = [file for file in wanted if "-of-" in file]
    complete = all(f"-of-{len(shards):05d}." in file for file in shards)
    return folder if complete and any(map(is_tokenizer, wanted)) else None


@contextmanager
def _one_of_two(root: Path) -> Iterator[None]:
    """Wait until fewer than two jobs of this machine hold a revision that will be evicted."""
    while True:
        for number in range(MOST_ON_DISK):
            slot = FileLock(root / f"slot-{number}.lock")
            try:
                slot.acquire(timeout=0)
            except Timeout:
                continue
            try:
                yield
            finally:
                slot.release()
            return
        time.sleep(0.1)


def _make_room(root: Path, own: str) -> None:
    """Remove what killed jobs left, oldest first, until one other revision at most is on the disk; then take a place.

    One job at a time, and the place is a folder, so that two jobs cannot both count themselves the second.
    """
    with FileLock(root / "room.lock"):
        others = [path for path in root.iterdir() if path.is_dir() and not _stays(root, path, own)]
        left = len(others)
        for path in sorted(others, key=lambda path: path.stat().st_mtime):
            if left < MOST_ON_DISK:
                break
            try:
                with FileLock(root / f"{_key(path)}.in_use.lock", timeout=0):
                    _evict(path)
                    left -= 1
            except Timeout:
                continue  # another job is reading it
        if not (root / own).is_dir():
            (root / f"{own}.partial").mkdir(exist_ok=True)


def _stays(root: Path, path: Path, own: str) -> bool:
    if ".damaged" in path.name:
        return False
    return _key(path) == own or (root / f"{_key(path)}.kept").exists()


def _key(path: Path) -> str:
    return path.name.partition(".")[0]


def _evict(path: Path) -> None:
    """Remove a folder; one that is removed by half must not pass for a finished stage, so it is renamed first."""
    if path.suffix == "":
        path = path.rename(path.with_suffix(".partial"))
    shutil.rmtree(path)
