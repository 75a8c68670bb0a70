"""A checkpoint by name and revision: decoder, tokenizer and a hash of its weights, wherever its files come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from headdyn.core.store import Store
from headdyn.models.checkpoint_files import checkpoint_files, commit_of
from headdyn.models.checkpoints import load_snapshot, snapshot_steps, state_hash
from headdyn.models.decoder import Decoder
from headdyn.models.families import load_pretrained
from headdyn.models.hub import CheckpointError
from headdyn.models.revisions import step_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One revision in memory. `state_hash` is of the weights as loaded, so compare it at one dtype only."""

    name: str
    revision: str
    step: int | None  # None where the revision's name states none (main)
    decoder: Decoder
    tokenizer: PreTrainedTokenizerBase | None  # None for snapshots of a run on micro-languages, which have no text
    state_hash: str
    commit: str | None  # on the hub; None for what was read from a local folder


def load_checkpoint(name: str, revision: str, store: Store, *, dtype: torch.dtype, keep: bool = False) -> Checkpoint:
    """Load a revision of a model on the hub, of a local folder, or of the snapshots of a run here (step000800).

    `keep` is whether downloaded files stay on the disk; see `headdyn.models.checkpoint_files.checkpoint_files`.
    Raises CheckpointError where it cannot be had, ValueError for an unknown family or damaged files, both in one line.
    """
    root = Path(name).expanduser()
    snapshots = snapshot_steps(root) if root.is_dir() else {}
    if snapshots:
        decoder, tokenizer, commit = _snapshot(root, revision, snapshots, dtype), None, None
    else:
        with checkpoint_files(name, revision, store, keep=keep) as folder:
            decoder, commit = load_pretrained(folder, dtype), commit_of(folder)
            tokenizer = load_tokenizer(folder, root)
    for parameter, values in decoder.named_parameters():
        if not values.isfinite().all():
            raise CheckpointError(f"{name} {revision}: {parameter} holds NaN or infinite weights; its file is damaged")
    return Checkpoint(
        name=name,
        revision=revision,
        step=step_of(revision),
        decoder=decoder,
        tokenizer=tokenizer,
        state_hash=state_hash(decoder),
        commit=commit,
    )


def load_tokenizer(*folders: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in the first of the folders that has one: a suite may keep one for all its revisions.

    Raises CheckpointError where none has, or where it does not load.
    """
    from transformers import AutoTokenizer

    for folder in folders:
        if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            try:
                return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            except (OSError, ValueError, KeyError) as error:
                raise CheckpointError(f"the tokenizer in {folder} does not load: {error}") from error
    raise CheckpointError(f"{folders[0]} has no tokenizer: neither tokenizer.json, tokenizer.model nor vocab.json")


def _snapshot(root: Path, revision: str, snapshots: dict[int, Path], dtype: torch.dtype) -> Decoder:
    step = max(snapshots) if revision == "main" else step_of(revision)
    if step not in snapshots:
        raise CheckpointError(f"{root} has no snapshot {revision}; its steps are {list(snapshots)}")
    return load_snapshot(snapshots[step], dtype)[0]
