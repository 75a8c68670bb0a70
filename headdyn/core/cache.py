"""The contents of the cache of finished stages: sizes, damaged folders, and folders that no run uses."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from headdyn.core.run_folder import MANIFEST as RUN_MANIFEST
from headdyn.core.run_folder import read_manifest
from headdyn.core.store import MANIFEST, Store

# The condition of a folder in the cache, and what to do about it.
FIXES = {
    "used": "",
    "unused": "no run below the output folder uses it; --prune unused removes it",
    "unfinished": "a stopped build, which the same command continues; --prune unfinished removes it",
    "damaged": "the next run that needs it builds it again; --prune damaged removes it",
}


@dataclass(frozen=True)
class Item:
    """A folder in the cache. `kind` is its stage, such as corpus; `why` says how it is damaged."""

    path: Path
    kind: str
    condition: str
    bytes: int
    why: str = ""


def contents(store: Store, runs: Iterable[Path]) -> Iterator[Item]:
    """Every folder of the store's stages. One is unused if no run below the folders `runs`, finished or not, needs it.

    Reads every byte of finished stages, to compare them with their checksums.
    """
    manifests = (read_manifest(path.parent, results=False) for folder in runs for path in folder.rglob(RUN_MANIFEST))
    used = {stage["key"] for manifest in manifests for stage in manifest.get("stages", {}).values()}
    for path in sorted(path for stage in stage_folders(store.root) for path in stage.iterdir() if path.is_dir()):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        kind, why = path.parent.name, ""
        if path.suffix == ".partial":
            condition = "unfinished"
        elif path.suffix.startswith(".damaged-"):
            condition, why = "damaged", "set aside by a run that needed it"
        elif damage := store.damage(path):
            condition, why = "damaged", damage
        else:
            condition = "used" if path.name in used else "unused"
        yield Item(path, kind, condition, size, why)


def stage_folders(root: Path) -> list[Path]:
    """The folders of the stages: those that contain a lock or a finished entry of the store."""
    return [
        folder
        for folder in sorted(root.iterdir())
        if folder.is_dir() and (any(folder.glob("*.lock")) or any(folder.glob(f"*/{MANIFEST}")))
    ]


def remove(item: Item) -> bool:
    """Delete the folder. Returns False, and deletes nothing, while a running job holds its lock."""
    key = item.path.name.partition(".")[0]
    try:
        with FileLock(item.path.with_name(f"{key}.lock"), timeout=0):
            shutil.rmtree(item.path)
    except Timeout:
        return False
    return True
