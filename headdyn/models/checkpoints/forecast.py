"""What a series will download, and which of its revisions hold the same weights, before a byte is fetched. No torch."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from headdyn.core.store import Store
from headdyn.models.checkpoints.files import on_this_machine
from headdyn.models.checkpoints.hub import CheckpointError, describe, sizes_and_hashes
from headdyn.models.integrity import check_integrity
from headdyn.models.revisions import in_order

_REQUESTS_AT_ONCE = 8
_WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Of a model's revisions: how many are on this machine, and what the hub says of the others.

    `shared` maps a revision to why it will not count: its weights' files, shard by shard, are another's.
    """

    name: str
    here: int
    to_download: int
    download_bytes: int
    shared: dict[str, str]

    def lines(self) -> list[str]:
        """What a user is told before anything starts; nothing where nothing is downloaded."""
        if not self.to_download:
            return []
        size = self.download_bytes / 1e9
        lines = [
            f"{self.name}: {self.to_download} of {self.here + self.to_download} checkpoints to download, {size:.2g} GB"
        ]
        if self.shared:
            some = ", ".join(list(self.shared)[:4]) + (" …" if len(self.shared) > 4 else "")
            reason = next(iter(self.shared.values()))
            lines.append(
                f"{self.name}: {len(self.shared)} of them will not count, {some}: the hub's hashes say that {reason}; "
                "name the others with model.revisions=… to save the download"
            )
        return lines


def forecast(name: str, revisions: Sequence[str], store: Store) -> Forecast:
    """Ask the hub for the files and hashes of every revision that is not on this machine.

    A revision that the hub lacks is left to its own run, which says so. Raises CheckpointError where the hub does not
    answer for any of them.
    """
    missing = [revision for revision in in_order(revisions) if _is_missing(name, revision, store)]
    if not missing:
        return Forecast(name=name, here=len(set(revisions)), to_download=0, download_bytes=0, shared={})
    describe(name, missing[-1])  # a silent hub answers for all of them, once
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        answers = list(pool.map(partial(_files, name), missing))
    known = {revision: files for revision, files in zip(missing, answers, strict=True) if files is not None}
    weights = {
        revision: " ".join(digest for file, (_, digest) in sorted(files.items()) if file.endswith(_WEIGHTS) and digest)
        for revision, files in known.items()
    }
    hashes = {revision: digests for revision, digests in weights.items() if digests}
    return Forecast(
        name=name,
        here=len(set(revisions)) - len(missing),
        to_download=len(known),
        download_bytes=sum(size for files in known.values() for size, _ in files.values()),
        shared=dict(check_integrity(hashes, missing[-1]).excluded),
    )


def _is_missing(name: str, revision: str, store: Store) -> bool:
    try:
        return not on_this_machine(name, revision, store)
    except CheckpointError:  # a local folder without the revision: nothing to download
        return False


def _files(name: str, revision: str) -> dict[str, tuple[int, str | None]] | None:
    """What would be downloaded; None for a revision that cannot be had."""
    try:
        return sizes_and_hashes(name, revision)
    except ValueError:
        return None
