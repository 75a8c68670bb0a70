"""Snapshots come back as they were saved, or not at all."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from headdyn.models.checkpoints import snapshots
from headdyn.models.checkpoints.snapshots import read_snapshot, save_snapshot, snapshot_steps, state_hash
from headdyn.models.config import DecoderConfig
from tests.small_models import CONFIGS, MHA, NEOX, RESCALED, drawn, tokens


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_round_trip(config: DecoderConfig, dtype: torch.dtype, tmp_path: Path) -> None:
    decoder = drawn(config, dtype=dtype)
    path = save_snapshot(tmp_path / "run", decoder, 800)
    assert path == tmp_path / "run" / "step000800.safetensors"
    loaded, step = read_snapshot(path, dtype)
    assert (loaded.config, step, state_hash(loaded)) == (config, 800, state_hash(decoder))
    assert torch.equal(loaded(tokens(2, 5)), decoder(tokens(2, 5)))
    assert (loaded.unembed.weight is loaded.embed.weight) == config.tied_embeddings
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    usual, _ = read_snapshot(path)
    assert {parameter.dtype for parameter in usual.parameters()} == {torch.float32}
    assert torch.equal(usual.embed.weight, decoder.embed.weight.float())


def test_a_loaded_decoder_outlives_its_file(tmp_path: Path) -> None:
    path = save_snapshot(tmp_path, drawn(MHA, dtype=torch.float32), 1)
    loaded, _ = read_snapshot(path)
    before = state_hash(loaded)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert state_hash(loaded) == before


def test_steps_are_listed_in_the_order_of_training(tmp_path: Path) -> None:
    decoder = drawn(MHA)
    assert snapshot_steps(tmp_path) == snapshot_steps(tmp_path / "absent") == {}
    for step in (1_000_000, 16, 0, 143_000):
        save_snapshot(tmp_path, decoder, step)
    for other in ("step000001.tmp", "step12.safetensors", "model.safetensors", "step000002.safetensors.tmp"):
        (tmp_path / other).touch()
    found = snapshot_steps(tmp_path)
    assert list(found) == [0, 16, 143_000, 1_000_000]
    assert found[16].name == "step000016.safetensors" and read_snapshot(found[1_000_000])[1] == 1_000_000


def test_a_full_disk_leaves_the_snapshot_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = drawn(MHA, seed=0, dtype=torch.float32)
    path = save_snapshot(tmp_path, old, 5)

    def full(descriptor: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_snapshot(tmp_path, drawn(MHA, seed=1, dtype=torch.float32), 5)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert state_hash(read_snapshot(path)[0]) == state_hash(old)


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    return save_snapshot(tmp_path, drawn(NEOX, dtype=torch.float32), 800)


def header_length(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def test_a_truncated_file_is_refused(snapshot: Path) -> None:
    content = snapshot.read_bytes()
    header = header_length(content)
    for size in (0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(content) // 2, len(content) - 1):
        snapshot.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"step000800\.safetensors is truncated or damaged .*; delete it"):
            read_snapshot(snapshot)
    snapshot.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match=r"step000800\.safetensors is truncated or damaged"):
        read_snapshot(snapshot)


def test_any_flipped_byte_is_noticed(snapshot: Path) -> None:
    """Also one that leaves a valid file: another step, another theta, a neighbouring float."""
    content = snapshot.read_bytes()
    header = header_length(content)
    positions = [*range(0, header, 5), *range(header, len(content), 4001), len(content) - 1]
    positions += [content.index(b'\\"step\\": ') + 10, content.index(b"rotary_theta") + 16]
    for position in positions:
        for mask in (0x01, 0x80):
            changed = bytearray(content)
            changed[position] ^= mask
            snapshot.write_bytes(changed)
            with pytest.raises(ValueError, match=r"step000800\.safetensors is (truncated or )?(damaged|no snapshot)"):
                read_snapshot(snapshot)
    snapshot.write_bytes(content)
    read_snapshot(snapshot)


def resaved(snapshot: Path, **changes: object) -> None:
    """The snapshot with other settings and a checksum that matches them: what another version would write."""
    with safe_open(snapshot, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    was = json.loads(metadata["headdyn"])
    facts = {"config": {**was["config"], **changes}, "step": was["step"]}
    save_file(tensors, snapshot, {"headdyn": json.dumps({**facts, "sha256": snapshots._checksum(facts, tensors)})})


def test_settings_of_another_version_are_refused(snapshot: Path) -> None:
    resaved(snapshot)
    read_snapshot(snapshot)
    resaved(snapshot, attention_sinks=4)
    with pytest.raises(ValueError, match=r"step000800\.safetensors was saved with settings \['attention_sinks'\]"):
        read_snapshot(snapshot)


def test_what_is_no_snapshot_is_refused(snapshot: Path) -> None:
    save_file({"x": torch.ones(2)}, snapshot, {"format": "pt"})
    with pytest.raises(ValueError, match=r"is no snapshot: its metadata have only \['format'\]"):
        read_snapshot(snapshot)
    save_snapshot(snapshot.parent, drawn(MHA), 16)
    with pytest.raises(ValueError, match=r"step000017\.safetensors does not exist; the steps there are \[16, 800\]"):
        read_snapshot(snapshot.with_name("step000017.safetensors"))


# -- hashes -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_hash_tells_weights_apart() -> None:
    decoder = drawn(NEOX, dtype=torch.float32)
    hashes = {state_hash(decoder)}
    assert state_hash(drawn(NEOX, dtype=torch.float32)) in hashes
    q, k = decoder.blocks[0].attention.q.weight, decoder.blocks[0].attention.k.weight
    q[3, 2] = torch.nextafter(q[3, 2], q[3, 2] + 1)  # one unit in the last place
    hashes.add(state_hash(decoder))
    q.copy_(k), k.copy_(q.flip(0))
    hashes.add(state_hash(decoder))
    hashes.add(state_hash(decoder.bfloat16()))
    hashes.add(state_hash(drawn(NEOX, seed=1, dtype=torch.float32)))
    assert len(hashes) == 5


@torch.no_grad()
def test_the_hash_sees_names_and_shapes() -> None:
    """Weights of nothing but zeros: the bytes are the same."""

    def zeros(config: DecoderConfig) -> str:
        decoder = drawn(config)
        for parameter in decoder.parameters():
            parameter.zero_()
        return state_hash(decoder)

    transposed = dataclasses.replace(MHA, vocab_size=MHA.d_model, d_model=MHA.vocab_size)
    untied = dataclasses.replace(MHA, tied_embeddings=False)
    assert len({zeros(MHA), zeros(transposed), zeros(untied), zeros(RESCALED)}) == 4
    assert zeros(MHA) == zeros(MHA.without_positions())  # settings that have no weights are not the hash's subject
