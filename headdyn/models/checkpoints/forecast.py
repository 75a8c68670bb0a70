"""What a series will download, and which of its revisions have the same weights, before any download. No torch."""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from headdyn.core.store import Store
from headdyn.models.checkpoints.files import on_this_machine
from headdyn.models.checkpoints.hub import CheckpointError, describe, wanted_files
from headdyn.models.revisions import check_integrity, in_order, step_of

_REQUESTS_AT_ONCE = 8
_WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A model's `revisions`, in the order of training, and the bytes to download for each that is not on this machine.

    `shared` maps a revision to why it will not count: the files of its weights are the same as another's.
    """

    name: str
    revisions: tuple[str, ...]
    to_download: dict[str, int]
    shared: dict[str, str]

    def lines(self) -> list[str]:
        """The lines to print before anything starts; none if nothing is downloaded."""
        if not self.to_download:
            return []
        size_gb = sum(self.to_download.values()) / 1e9
        amount = f"{size_gb:.2g}" if size_gb < 100 else f"{size_gb:.0f}"
        count = len(self.revisions)
        lines = [f"{self.name}: {len(self.to_download)} of {count} checkpoints to download, {amount} GB"]
        if self.shared:
            some = ", ".join(list(self.shared)[:4]) + (" …" if len(self.shared) > 4 else "")
            reason = next(iter(self.shared.values()))
            others = ",".join(revision for revision in self.revisions if revision not in self.shared)
            lines.append(
                f"{self.name}: {len(self.shared)} of the {count} will not count ({some}), because the hub's hashes say "
                f"that {reason}; to take only the others, set model.revisions={others}"
            )
        return lines


def forecast(name: str, revisions: Sequence[str], store: Store, *, done: Collection[str] = ()) -> Forecast:
    """Ask the hub for the files and hashes of all revisions, if any of them is not on this machine.

    Revisions `done`, whose runs are complete, are compared with the others but not downloaded. A revision that the hub
    lacks is ignored here; its own run fails with the reason. Raises CheckpointError if the hub does not answer.
    """
    ordered = in_order(revisions)
    missing = [revision for revision in ordered if revision not in done and _is_missing(name, revision, store)]
    if not missing:
        return Forecast(name=name, revisions=ordered, to_download={}, shared={})
    describe(name, missing[-1])  # fails once, instead of for each revision, if the hub does not answer
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        answers = list(pool.map(partial(_files, name), ordered))
    known = {revision: files for revision, files in zip(ordered, answers, strict=True) if files is not None}
    weights = {
        revision: " ".join(digest for file, (_, digest) in sorted(files.items()) if file.endswith(_WEIGHTS) and digest)
        for revision, files in known.items()
    }
    hashes = {revision: digests for revision, digests in weights.items() if digests}
    last = next((revision for revision in reversed(ordered) if step_of(revision) is not None), None)
    return Forecast(
        name=name,
        revisions=ordered,
        to_download={
            revision: sum(size for size, _ in known[revision].values()) for revision in missing if revision in known
        },
        shared=check_integrity(hashes, last)[1],
    )


def _is_missing(name: str, revision: str, store: Store) -> bool:
    try:
        return not on_this_machine(name, revision, store)
    except CheckpointError:  # a local folder without the revision: nothing to download
        return False


def _files(name: str, revision: str) -> dict[str, tuple[int, str | None]] | None:
    """Bytes and, for files in LFS, SHA-256 of every file to download; None for a revision that cannot be had."""
    try:
        siblings = {file.rfilename: file for file in describe(name, revision).siblings or ()}
        wanted = [siblings[file] for file in wanted_files(siblings) if file in siblings]
    except ValueError:
        return None
    return {file.rfilename: (file.size or 0, file.lfs.sha256 if file.lfs else None) for file in wanted}
