"""Snapshots of a training: a safetensors file for each saved step, with the configuration inside."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from headdyn.core.whole_files import whole_file
from headdyn.models.config import DecoderConfig
from headdyn.models.decoder import Decoder

_NAME = re.compile(r"step(\d{6,})\.safetensors")
_METADATA = "headdyn"


def save_snapshot(folder: Path, decoder: Decoder, step: int) -> Path:
    """Write `step000800.safetensors` into the folder, in the decoder's dtype, and return its path.

    The file appears whole or not at all: it is written under another name, flushed to the disk and renamed. Its
    metadata have the DecoderConfig, the step and a checksum of these and the weights. Raises OSError if the disk fails.
    """
    assert step >= 0
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step{step:06d}.safetensors"
    tensors = {name: parameter.detach().cpu() for name, parameter in decoder.named_parameters()}  # a tied weight once
    facts = {"config": dataclasses.asdict(decoder.config), "step": step}
    # One entry, since safetensors writes several in an order that differs between processes.
    content = save(tensors, {_METADATA: json.dumps({**facts, "sha256": _checksum(facts, tensors)})})
    with whole_file(path, durable=True) as file:
        file.write_bytes(content)
    return path


def read_snapshot(path: Path, dtype: torch.dtype = torch.float32) -> tuple[Decoder, int]:
    """The decoder of a snapshot, converted to `dtype`, and its step.

    Raises ValueError, naming the file, if it is missing, truncated, changed in any byte or no snapshot, or if its
    configuration has keys that this version does not know.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; the steps there are {sorted(snapshot_steps(path.parent))}") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); delete it and run its training again") from error
    if _METADATA not in metadata:
        raise ValueError(f"{path} is no snapshot: its metadata have only {sorted(metadata)}; give one that a run saved")
    try:
        facts = json.loads(metadata[_METADATA])
        intact = facts.pop("sha256") == _checksum(facts, tensors)
    except (ValueError, KeyError, AttributeError):
        intact = False
    if not intact:
        raise ValueError(f"{path} is damaged: its checksum does not match; delete it and run its training again")
    config = _config(facts["config"], path)
    state = {name: tensor.to(dtype, copy=True) for name, tensor in tensors.items()}
    return Decoder.from_state(config, state), facts["step"]


def snapshot_steps(folder: Path) -> dict[int, Path]:
    """Step and file of every snapshot in a folder, in the order of training."""
    return dict(sorted((int(match[1]), path) for path in folder.glob("*") if (match := _NAME.fullmatch(path.name))))


def state_hash(decoder: Decoder) -> str:
    """SHA-256, in hex, of every parameter's name, dtype, shape and bytes, a tied weight once."""
    return _hash(dict(decoder.named_parameters()))


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checksum(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(json.dumps([facts, _hash(tensors)], sort_keys=True).encode()).hexdigest()


def _config(fields: dict[str, Any], path: Path) -> DecoderConfig:
    unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(DecoderConfig)})
    if unknown:
        raise ValueError(
            f"{path} was saved with settings {unknown} that this version does not know; use a newer headdyn"
        )
    tuples = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}  # JSON has lists only
    return DecoderConfig(**{**fields, **tuples})
