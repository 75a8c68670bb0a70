"""Finds a checkpoint's files: in a local folder, in the hub's own cache, or by a download.

Imports no torch, so that a wrong name or revision, or a missing network, is reported at once.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from headdyn.core.json_files import read_json
from headdyn.core.store import Store, recipe_key
from headdyn.models.checkpoints import gguf
from headdyn.models.checkpoints.hub import (
    SOURCE,
    CheckpointError,
    describe,
    download,
    endpoint,
    is_tokenizer,
    nearest,
    wanted_files,
)
from headdyn.models.revisions import in_folder

SCHEMA = 1
MOST_ON_DISK = 2  # revisions with keep=False that are on disk at once, over all jobs of the machine


@contextmanager
def checkpoint_files(name: str, revision: str, store: Store, *, keep: bool) -> Iterator[Path]:
    """A folder with config, tokenizer and weights of one revision, to be read inside the block.

    `name` is a GGUF file, a local folder of one checkpoint (revision main), a folder with a folder or GGUF file for
    each revision, or a name on the hub. Files in the hub's own cache are used from there. Others are downloaded into
    the store; an interrupted download is continued. With `keep=False` downloaded files are removed when the block ends,
    and at most MOST_ON_DISK such revisions are on disk at once. Raises CheckpointError, in one line, if the files
    cannot be had, and OSError if the disk fails.
    """
    folder = folder_here(name, revision)
    if folder is not None:
        yield gguf.unpacked(folder, store) if folder.suffix == gguf.SUFFIX else folder
        return
    recipe, downloaded = _recipe(name, revision), _downloaded(name, revision, store)
    root, key = downloaded.parent, downloaded.name
    root.mkdir(parents=True, exist_ok=True)
    with nullcontext() if keep else _place(root, key), _in_use(root, key):
        if keep:
            _kept(root, key).touch()
        entry = store.get("checkpoint", recipe, lambda to: download(name, revision, to), resumable=True)
        try:
            yield entry.path
        finally:
            if not _kept(root, key).exists():
                _remove(root, key)


def require_reachable(name: str, revision: str, store: Store) -> None:
    """Raise CheckpointError within ten seconds if the checkpoint is neither on this machine nor on a hub that answers.

    A sweep calls this once before it starts. Whether a revision's files are damaged shows only when they are read.
    """
    folder = local_folder(name, revision)
    if folder is not None and folder.suffix == gguf.SUFFIX:
        gguf.require_readable(folder)
    if folder is None and not on_this_machine(name, revision, store):
        describe(name, revision)


def on_this_machine(name: str, revision: str, store: Store) -> bool:
    """Whether a checkpoint needs no download. Raises CheckpointError for a local folder that lacks the revision."""
    if folder_here(name, revision):
        return True
    return _downloaded(name, revision, store).is_dir()


def settings_here(name: str, revision: str, store: Store) -> Path | None:
    """What `folder_here` returns, or else the folder of a download in the store that has its config.json already."""
    downloaded = _downloaded(name, revision, store)
    return folder_here(name, revision) or (downloaded if (downloaded / "config.json").is_file() else None)


def folder_here(name: str, revision: str) -> Path | None:
    """A checkpoint's local folder or GGUF file, or its folder in the hub's cache, or None. Raises as `local_folder`."""
    return local_folder(name, revision) or _in_hub_cache(name, revision)


def is_local(name: str) -> bool:
    """Whether a model's name is a path, existing or not, rather than a name on the hub (ORGANISATION/MODEL)."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()


def local_folder(name: str, revision: str) -> Path | None:
    """The local folder or GGUF file of a checkpoint, or None if the name is one on the hub (ORGANISATION/MODEL).

    Raises CheckpointError for a path that is neither, and for a folder without the revision.
    """
    root = Path(name).expanduser()
    if root.suffix == gguf.SUFFIX and root.is_file():
        return root
    if not root.is_dir():
        if is_local(name):
            raise CheckpointError(f"model.name={name}: there is no such folder or .gguf file")
        return None
    if (root / revision / "config.json").is_file():
        return root / revision
    if (root / f"{revision}{gguf.SUFFIX}").is_file():
        return root / f"{revision}{gguf.SUFFIX}"
    if revision == "main" and (root / "config.json").is_file():
        return root
    available = in_folder(root)
    if available:
        raise CheckpointError(
            f"{root} has no revision {revision}; the nearest there are {nearest(revision, available)}"
        )
    if (root / "config.json").is_file():
        raise CheckpointError(f"{root} holds one checkpoint and no folder {revision}; leave model.revision out")
    raise CheckpointError(f"{root} holds no checkpoint: neither config.json nor folders that do")


def source_of(folder: Path) -> dict[str, Any]:
    """Where a checkpoint came from according to its `source.json`: its `commit` on the hub, or its `quantisation`."""
    path = folder / SOURCE
    return read_json(path) if path.is_file() else {}


def _downloaded(name: str, revision: str, store: Store) -> Path:
    return store.root / "checkpoint" / recipe_key("checkpoint", _recipe(name, revision))


def _recipe(name: str, revision: str) -> dict[str, Any]:
    return {"schema": SCHEMA, "name": name, "revision": revision, "endpoint": endpoint()}


def _in_hub_cache(name: str, revision: str) -> Path | None:
    """The revision's folder in the hub's own cache, if it has all files that are needed."""
    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None  # no possible name on the hub; `describe` raises the error for it
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


# -- at most MOST_ON_DISK revisions ------------------------------------------------------------------------------------
#
# To download a revision with keep=False, a job takes one of MOST_ON_DISK numbered places, writes the revision's key
# there, and removes the files when it is done. Files left by a killed job are removed by the next one in its place.


@contextmanager
def _place(root: Path, key: str) -> Iterator[None]:
    """Wait for a place on the disk for `key`, and remove the files that another key left there."""
    while True:
        for number in range(MOST_ON_DISK):
            holder = root / f"place-{number}.key"
            try:
                place = FileLock(root / f"place-{number}.lock").acquire(timeout=0)
            except Timeout:
                continue
            with place:
                previous = holder.read_text() if holder.exists() else key
                if previous != key and not _kept(root, previous).exists():
                    with suppress(Timeout), _in_use(root, previous, timeout=0):  # if in use, its user removes it
                        _remove(root, previous)
                holder.write_text(key)
                yield
            return
        time.sleep(0.1)


def _in_use(root: Path, key: str, timeout: float = -1) -> FileLock:
    return FileLock(root / f"{key}.in_use.lock", timeout=timeout)


def _kept(root: Path, key: str) -> Path:
    """The file that marks a revision as one to keep."""
    return root / f"{key}.kept"


def _remove(root: Path, key: str) -> None:
    """Remove a revision. It is renamed first, so that a half-removed one does not look like a finished stage."""
    if (root / key).is_dir():
        (root / key).rename(root / f"{key}.partial")
    for path in root.glob(f"{key}.*"):
        if path.is_dir():
            shutil.rmtree(path)
