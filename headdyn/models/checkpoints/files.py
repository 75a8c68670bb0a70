"""Where a checkpoint's files are: in a local folder, in the hub's own cache, or downloaded to be read and removed.

No torch here, so that a name, a revision or a network that is not there answers before anything heavy is imported.
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
MOST_ON_DISK = 2  # revisions that nobody asked to keep, over all jobs of the machine


@contextmanager
def checkpoint_files(name: str, revision: str, store: Store, *, keep: bool) -> Iterator[Path]:
    """A folder with config, tokenizer and weights of one revision, to be read inside the block.

    `name` is a GGUF file, a local folder of one checkpoint (revision main), one with a folder or a GGUF file per
    revision, or a name on the hub.
    What the hub's own cache holds is used from there and left there. Anything else is downloaded into the store; an
    interrupted download is continued. With `keep=False` the files are removed when the block ends, and at most
    MOST_ON_DISK such revisions are on the disk.
    Raises CheckpointError, in one line, where it cannot be had; OSError where the disk refuses.
    """
    folder = folder_here(name, revision)
    if folder is not None:
        yield gguf.unpacked(folder, store) if folder.suffix == gguf.SUFFIX else folder
        return
    recipe = _recipe(name, revision)
    root, key = store.root / "checkpoint", recipe_key("checkpoint", recipe)
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

    For a sweep to ask once before it starts; whether a revision's files are sound shows only when they are read.
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
    """As `folder_here`, or what was downloaded into the store, if its config.json is among it."""
    downloaded = _downloaded(name, revision, store)
    return folder_here(name, revision) or (downloaded if (downloaded / "config.json").is_file() else None)


def folder_here(name: str, revision: str) -> Path | None:
    """The folder or GGUF file that a name means, or the hub's own cache has; else None. Raises as `local_folder`."""
    return local_folder(name, revision) or _in_hub_cache(name, revision)


def is_local(name: str) -> bool:
    """Whether a model's name is a path, there or not, and none on the hub (ORGANISATION/MODEL)."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()


def local_folder(name: str, revision: str) -> Path | None:
    """The folder or GGUF file that a name means, or None where it is meant for the hub (ORGANISATION/MODEL).

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
    """What `source.json` says of where a checkpoint came from: its `commit` on the hub, or its `quantisation`."""
    path = folder / SOURCE
    return read_json(path) if path.is_file() else {}


def _downloaded(name: str, revision: str, store: Store) -> Path:
    return store.root / "checkpoint" / recipe_key("checkpoint", _recipe(name, revision))


def _recipe(name: str, revision: str) -> dict[str, Any]:
    return {"schema": SCHEMA, "name": name, "revision": revision, "endpoint": endpoint()}


def _in_hub_cache(name: str, revision: str) -> Path | None:
    """The snapshot's folder in the hub's own cache, if all that is needed lies there."""
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


# -- how many are on the disk -----------------------------------------------------------------------------------------
#
# A revision that nobody keeps is downloaded by the holder of one of MOST_ON_DISK numbered places, who writes its key
# there and removes the files when done. What a killed holder left is removed by the next holder of its place.


@contextmanager
def _place(root: Path, key: str) -> Iterator[None]:
    """Wait for a place on the disk for `key`, and clear it of what another key left there."""
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
                    with suppress(Timeout), _in_use(root, previous, timeout=0):  # in use: the holder's to remove
                        _remove(root, previous)
                holder.write_text(key)
                yield
            return
        time.sleep(0.1)


def _in_use(root: Path, key: str, timeout: float = -1) -> FileLock:
    return FileLock(root / f"{key}.in_use.lock", timeout=timeout)


def _kept(root: Path, key: str) -> Path:
    """The mark of a revision that is to stay."""
    return root / f"{key}.kept"


def _remove(root: Path, key: str) -> None:
    """Remove a revision; one that is removed by half must not pass for a finished stage, so it is renamed first."""
    if (root / key).is_dir():
        (root / key).rename(root / f"{key}.partial")
    for path in root.glob(f"{key}.*"):
        if path.is_dir():
            shutil.rmtree(path)
