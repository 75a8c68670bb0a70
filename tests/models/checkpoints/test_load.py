"""Checkpoints by name and revision: from the hub, from folders, from snapshots; whole, or refused by name."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from headdyn.core.machine import Machine
from headdyn.core.run_folder import RunFolder
from headdyn.core.store import Store
from headdyn.data.comparisons import Comparisons
from headdyn.models.checkpoints import load
from headdyn.models.checkpoints.hub import CheckpointError
from headdyn.models.checkpoints.snapshots import save_snapshot, state_hash
from headdyn.models.decoder import Decoder
from headdyn.models.families import export_pretrained
from headdyn.models.revisions import check_integrity
from headdyn.plan import make_plan
from headdyn.stages import Work, open_checkpoint
from tests.models.checkpoints.hub_server import Hub, serve
from tests.small_models import MHA, NEOX, drawn, tokens
from tests.small_tokenizer import BIGGER, byte_level

NAME = "maker/pythia-tiny"
REVISIONS = ("step0", "step1", "step1000", "step143000")


def model(seed: int, dtype: torch.dtype = torch.float16) -> Decoder:
    return drawn(dataclasses.replace(NEOX, d_model=32, vocab_size=len(byte_level())), seed=seed, dtype=dtype)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Revisions in Hugging Face's layout, float16 as Pythia's are; step1 holds the weights of step0."""
    root = tmp_path_factory.mktemp("suite")
    for number, revision in enumerate(REVISIONS):
        export_pretrained(model(0 if revision == "step1" else number), root / revision, "gpt_neox")
    byte_level().save_pretrained(str(root))  # one for all revisions
    return root


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def server(suite: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    tokenizer = {path.name: path.read_bytes() for path in suite.glob("*.json")}
    with serve(Hub()) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        for revision in REVISIONS:
            running.add(NAME, revision, suite / revision, extra=tokenizer)
        yield running


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_hub_and_a_folder_give_the_same(server: Hub, suite: Path, store: Store, dtype: torch.dtype) -> None:
    stored = model(2).to(dtype)
    for name in (NAME, str(suite)):
        loaded = load(name, "step1000", store=store, dtype=str(dtype).removeprefix("torch."))
        assert {parameter.dtype for parameter in loaded.decoder.parameters()} == {dtype}
        assert (loaded.name, loaded.revision, loaded.step) == (name, "step1000", 1000)
        assert loaded.state_hash == state_hash(stored)
        assert loaded.commit == (server.commit(NAME, "step1000") if name == NAME else None)
        text = "Which is bigger: 9.8 or 9.11?"
        assert loaded.tokenizer.encode(text) == byte_level().encode(text)
        assert torch.equal(loaded.decoder(tokens(2, 5)), stored(tokens(2, 5)))
    assert not any(path.is_dir() for path in (store.root / "checkpoint").iterdir()), "evicted, and the decoder lives on"


def test_prompts_fit_the_loaded_tokenizer(suite: Path, store: Store) -> None:
    """It has no padding token, and needs none."""
    loaded = load(str(suite), "step0", store=store)
    assert loaded.tokenizer.pad_token is None
    family = Comparisons(formats=(BIGGER,), bug_pairs=3, control_pairs=1)
    assert len(family.prompts(loaded.tokenizer).pairs) == 4
    loaded.tokenizer.chat_template = "{{ messages }}"
    with pytest.raises(ValueError, match="choose a base model"):
        family.prompts(loaded.tokenizer)


def test_a_chat_models_template_is_seen(suite: Path, store: Store, tmp_path: Path) -> None:
    shutil.copytree(suite, tmp_path / "chat")
    (tmp_path / "chat" / "step0" / "tokenizer.json").write_bytes((suite / "tokenizer.json").read_bytes())
    (tmp_path / "chat" / "step0" / "chat_template.jinja").write_text("{{ messages }}")
    loaded = load(str(tmp_path / "chat"), "step0", store=store)
    with pytest.raises(ValueError, match="chat model"):
        Comparisons(formats=(BIGGER,)).prompts(loaded.tokenizer)


def test_copies_show_in_the_hashes(suite: Path, store: Store) -> None:
    hashes = {r: load(str(suite), r, store=store).state_hash for r in REVISIONS}
    assert check_integrity(hashes, "step143000")[0] == [["step0", "step1"]]


def test_snapshots_of_a_run(tmp_path: Path, store: Store) -> None:
    decoders = {step: drawn(MHA, seed=step, dtype=torch.float32) for step in (0, 16, 800)}
    for step, decoder in decoders.items():
        save_snapshot(tmp_path / "snapshots", decoder, step)
    name = str(tmp_path / "snapshots")
    for revision, step in (("step16", 16), ("step000800", 800), ("main", 800)):
        loaded = load(name, revision, store=store)
        assert loaded.state_hash == state_hash(decoders[step]) and loaded.tokenizer is None
    assert load(tmp_path / "snapshots" / "step000016.safetensors").step == 16
    with pytest.raises(CheckpointError, match=r"has no snapshot step17; its steps are \[0, 16, 800\]"):
        load(name, "step17", store=store)


# -- what does not load -----------------------------------------------------------------------------------------------


def test_truncated_weights_are_refused_and_the_next_revision_loads(server: Hub, store: Store) -> None:
    whole = server.repos[NAME]["step0"]["model.safetensors"]
    for size in (0, 7, 100, len(whole) - 1):
        server.repos[NAME]["step0"]["model.safetensors"] = whole[:size]
        with pytest.raises(ValueError, match=r"model.safetensors cannot be read .*; download the checkpoint again"):
            load(NAME, "step0", store=store)
    assert load(NAME, "step1000", store=store).step == 1000
    assert not any(path.is_dir() for path in (store.root / "checkpoint").iterdir())


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        ({"config.json": b'{"model_type": "bloom"}'}, "unknown model family 'bloom'"),
        ({"config.json": b"{"}, r"config.json cannot be read"),
        ({"tokenizer.json": b"{"}, "the tokenizer in .* does not load"),
    ],
)
def test_other_damage_is_named(server: Hub, store: Store, spoil: dict[str, bytes], told: str) -> None:
    server.repos[NAME]["step0"] |= spoil
    with pytest.raises(ValueError, match=told):
        load(NAME, "step0", store=store)


def test_a_checkpoint_without_a_tokenizer(suite: Path, tmp_path: Path, store: Store) -> None:
    shutil.copytree(suite / "step0", tmp_path / "bare")
    assert load(tmp_path / "bare", store=store).tokenizer is None
    arguments = ["model=huggingface", f"model.name={tmp_path / 'bare'}", "data=comparisons", "analysis=[circuits]"]
    record = RunFolder(tmp_path / "run", {})
    with pytest.raises(ValueError, match="bare has no tokenizer, and prompts need one; name a language model"), record:
        machine, config = Machine("cpu", "fp32", 1), make_plan(arguments).jobs[0]
        open_checkpoint(Work(config=config, store=store, machine=machine, record=record, should_stop=lambda: False))


@torch.no_grad()
def test_weights_that_are_no_numbers(suite: Path, tmp_path: Path, store: Store) -> None:
    spoilt = model(0)
    spoilt.blocks[1].mlp.up.weight[3, 2] = torch.inf
    shutil.copytree(suite, tmp_path / "spoilt")
    export_pretrained(spoilt, tmp_path / "spoilt" / "step0", "gpt_neox")
    with pytest.raises(CheckpointError, match=r"step0: blocks.1.mlp.up.weight holds NaN or infinite weights"):
        load(str(tmp_path / "spoilt"), "step0", store=store)


def test_without_a_network_a_local_suite_loads(suite: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load(str(suite), "step143000", store=store).step == 143000
    with pytest.raises(CheckpointError, match=r"HF_HUB_OFFLINE is set .* model=organism_planted"):
        load(NAME, "step0", store=store)
