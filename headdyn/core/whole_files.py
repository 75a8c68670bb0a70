"""Files written whole or not at all, so that a kill or a full disk leaves the earlier file or none."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` to write to, renamed to `path` if the block ends without an error.

    With `durable`, file and rename are on the disk afterwards, so that a loss of power keeps them too. Raises OSError
    if the disk fails; an earlier file at `path` then remains.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync(path.parent)  # the rename


def sync(path: Path) -> None:
    """Wait until the file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
