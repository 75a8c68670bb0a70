"""Loading a checkpoint into memory from the hub, a folder, a GGUF file or a training of headdyn: `load(...)`.

`snapshots.py` reads and writes what headdyn's trainings save, `files.py` finds a checkpoint's files on this machine,
`hub.py` downloads them. Torch is imported when something is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headdyn.core.store import Store, cache_root
from headdyn.models.checkpoints.files import checkpoint_files, source_of
from headdyn.models.checkpoints.hub import CheckpointError
from headdyn.models.revisions import step_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from headdyn.models.config import DecoderConfig
    from headdyn.models.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One revision in memory. `state_hash` is a hash of the weights in the dtype that they were loaded in.

    `material` is what the argument `prepare` of `load` returned; None without it.
    """

    name: str
    revision: str
    step: int | None  # None if neither the files nor the revision's name say it (main)
    decoder: Decoder
    tokenizer: PreTrainedTokenizerBase | None  # None for models of artificial languages, which have no text
    state_hash: str
    commit: str | None  # on the hub; None for a local folder
    quantisation: str | None = None  # of a GGUF file
    material: Any = None


def load(
    name: str | Path,
    revision: str = "main",
    *,
    dtype: str = "float32",
    store: Store | None = None,
    keep: bool = False,
    prepare: Callable[[DecoderConfig, PreTrainedTokenizerBase | None], Any] = lambda config, tokenizer: None,
) -> Checkpoint:
    """Load a checkpoint, with its weights converted to `dtype`.

    `name` is one of: a name on the hub; a folder that `save_pretrained` wrote; a GGUF file; a folder with one such
    folder or file for each revision; a snapshot of a training by headdyn, or a folder of such snapshots (revision
    "step800"; "main" is the last one). `dtype` is a name of torch's. With `keep`, a download stays on the disk, in
    `store` (default: the cache of all runs). `prepare` is called with the model's settings and tokenizer, before the
    weights are read unless they are a snapshot's, so that it can refuse a model early; what it returns becomes
    `material`. Raises CheckpointError if the checkpoint cannot be found or has weights that are NaN or infinite, and
    ValueError for an unknown family or damaged files.
    """
    import torch

    from headdyn.models.checkpoints.snapshots import read_snapshot, state_hash
    from headdyn.models.families import load_pretrained, read_config

    torch_dtype, tokenizer, step = getattr(torch, dtype), None, step_of(revision)
    source: dict[str, Any] = {}
    snapshot = _snapshot(Path(name).expanduser(), revision)
    if snapshot is not None:
        decoder, step = read_snapshot(snapshot, torch_dtype)
        material = prepare(decoder.config, None)
    else:
        with checkpoint_files(str(name), revision, store or Store(cache_root()), keep=keep) as folder:
            config, tokenizer = read_config(folder), read_tokenizer(folder, name)
            material = prepare(config, tokenizer)
            decoder, source = load_pretrained(folder, torch_dtype), source_of(folder)
    for parameter, values in decoder.named_parameters():
        if not values.isfinite().all():
            raise CheckpointError(f"{name} {revision}: {parameter} holds NaN or infinite weights; its file is damaged")
    return Checkpoint(
        name=str(name),
        revision=revision,
        step=step,
        decoder=decoder,
        tokenizer=tokenizer,
        state_hash=state_hash(decoder),
        commit=source.get("commit"),
        quantisation=source.get("quantisation"),
        material=material,
    )


def _snapshot(path: Path, revision: str) -> Path | None:
    """The file of the snapshot, or None if `path` is neither a snapshot nor a folder of snapshots."""
    from headdyn.models.checkpoints.snapshots import snapshot_steps

    if path.suffix == ".safetensors":
        return path
    snapshots = snapshot_steps(path)
    if not snapshots:
        return None
    step = max(snapshots) if revision == "main" else step_of(revision)
    if step not in snapshots:
        raise CheckpointError(f"{path} has no snapshot {revision}; its steps are {list(snapshots)}")
    return snapshots[step]


def read_tokenizer(folder: Path, name: str | Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a checkpoint's folder or in `name`, the folder of its suite; None if neither has one.

    Raises CheckpointError if it does not load.
    """
    from transformers import AutoTokenizer

    for candidate in (folder, Path(name).expanduser()):
        if any((candidate / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            try:
                return AutoTokenizer.from_pretrained(candidate, local_files_only=True, trust_remote_code=False)
            except (OSError, ValueError, KeyError) as error:
                raise CheckpointError(f"the tokenizer in {candidate} does not load: {error}") from error
    return None
