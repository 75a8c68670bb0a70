"""GGUF files: what is read is what Hugging Face reads of the same weights, and what cannot be read is named."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize
from transformers import LlamaConfig

from headdyn.core.run_folder import RunRecord
from headdyn.core.store import Store
from headdyn.models.checkpoints import load
from headdyn.models.checkpoints.files import require_reachable
from headdyn.models.checkpoints.hub import CheckpointError
from headdyn.models.families import load_pretrained
from headdyn.run import main
from tests.commands import environment, only
from tests.parity import hugging_face
from tests.small_models import tokens

HEADS, KV_HEADS, WIDTH, LAYERS, VOCABULARY = 4, 2, 64, 2, 29
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    **{
        f"model.layers.{layer}.{theirs}": f"blk.{layer}.{ours}"
        for layer in range(LAYERS)
        for theirs, ours in {
            "input_layernorm": "attn_norm",
            "self_attn.q_proj": "attn_q",
            "self_attn.k_proj": "attn_k",
            "self_attn.v_proj": "attn_v",
            "self_attn.o_proj": "attn_output",
            "post_attention_layernorm": "ffn_norm",
            "mlp.gate_proj": "ffn_gate",
            "mlp.up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
        }.items()
    },
}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of rotated pairs side by side, as llama.cpp stores q and k; Hugging Face has halves (its convert script)."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """`interleaved` undone."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a small Llama."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "tie_word_embeddings": False}
    config = LlamaConfig(**sizes, **heads, bos_token_id=None, eos_token_id=None, rms_norm_eps=1e-5)
    return hugging_face.build(config, tmp_path_factory.mktemp("llama"))


def written(original: Path, path: Path, kind: GGMLQuantizationType, family: str = "llama") -> dict[str, torch.Tensor]:
    """Write the folder's weights as a GGUF file, matrices rounded as `kind`; returns what rounding leaves of them."""
    writer, left = GGUFWriter(path, family), {}
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(VOCABULARY)
    writer.add_name("small")
    for name, tensor in hugging_face.load(original).state_dict().items():
        weight = tensor.numpy()
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
        stored = weight if heads is None else interleaved(weight, heads)
        of_file = f"{NAMES[name.removesuffix('.weight')]}.weight"
        if weight.ndim == 1:
            writer.add_tensor(of_file, stored.astype(np.float32))
            left[name] = torch.from_numpy(weight)
            continue
        rounded = quantize(stored, kind)
        writer.add_tensor(of_file, rounded, raw_dtype=kind)
        back = dequantize(rounded, kind).reshape(stored.shape)
        left[name] = torch.from_numpy(back if heads is None else halves(back, heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return left


@pytest.mark.parametrize("kind", [GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0])
def test_a_file_is_the_model_that_rounding_leaves(original: Path, tmp_path: Path, kind: GGMLQuantizationType) -> None:
    left = written(original, tmp_path / "small.gguf", kind)
    loaded = load(tmp_path / "small.gguf", store=Store(tmp_path / "cache"))
    assert loaded.quantisation == f"{kind.name} in 16, F32 in 5 tensors" and loaded.commit is None
    theirs = hugging_face.load(original)
    theirs.load_state_dict(left)
    ids = tokens(2, 12, vocab_size=VOCABULARY)
    with torch.no_grad():
        torch.testing.assert_close(loaded.decoder(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)
        error = float((loaded.decoder(ids) - load_pretrained(original, torch.float32)(ids)).abs().max())
    assert 0 < error < {"F16": 0.02, "Q8_0": 0.3, "Q4_0": 5}[kind.name]


def test_a_folder_of_files_is_a_series(original: Path, tmp_path: Path) -> None:
    for step in (20, 3):
        written(original, tmp_path / f"step{step}.gguf", GGMLQuantizationType.F16)
    assert load(tmp_path, "step3", store=Store(tmp_path / "cache")).step == 3
    with pytest.raises(CheckpointError, match="has no revision step4; the nearest there are step3, step20"):
        load(tmp_path, "step4", store=Store(tmp_path / "cache"))


def test_a_run_says_how_its_file_rounds_the_weights(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(original, tmp_path / "small.gguf", GGMLQuantizationType.Q8_0)
    for name in ("HEADDYN_OUT", "HEADDYN_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, environment(tmp_path)[name])
    monkeypatch.setattr(sys, "argv", ["headdyn"])
    few = ("mode=smoke", "tracking=none", "threads=1", "patterns_kept=0", "analysis.attention.bootstrap_draws=100")
    model = ("model=huggingface", f"model.name={tmp_path / 'small.gguf'}", "analysis=[attention]")
    assert main([*few, *model]) == 0
    record = RunRecord.read(only(tmp_path / "out" / "outputs"))
    assert record.manifest["checkpoint"]["quantisation"] == "Q8_0 in 16, F32 in 5 tensors"
    page = (record.folder / "report.html").read_text()
    assert "read from a GGUF file that rounds them (Q8_0 in 16, F32 in 5 tensors)" in page


def test_a_file_whose_tokens_do_not_serve_is_refused_before_anything_starts(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(original, tmp_path / "small.gguf", GGMLQuantizationType.Q8_0)
    (tmp_path / "text.jsonl").write_text('{"text": "a text"}\n' * 3)
    for name in ("HEADDYN_OUT", "HEADDYN_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, environment(tmp_path)[name])
    monkeypatch.setattr(sys, "argv", ["headdyn"])
    model = ("model=huggingface", f"model.name={tmp_path / 'small.gguf'}", "tracking=none")
    for data, lacks in (
        (["data=local_text", f"data.path={tmp_path / 'text.jsonl'}", "analysis=[loss]"], "and text needs one"),
        (["data=comparisons", "analysis=[answer_lens]"], "and prompts need one"),
    ):
        capsys.readouterr()  # what was said of writing the file
        assert main([*model, *data]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "small.gguf has no tokenizer, " + lacks in line
    assert not list((tmp_path / "out").rglob("*")) and not list((tmp_path / "cache").glob("gguf/*"))


def test_what_cannot_be_read_is_named_before_anything_starts(original: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    written(original, tmp_path / "mamba.gguf", GGMLQuantizationType.F16, family="mamba")
    (tmp_path / "text.gguf").write_text("no model")
    whole = tmp_path / "whole.gguf"
    written(original, whole, GGMLQuantizationType.F16)
    (tmp_path / "cut.gguf").write_bytes(whole.read_bytes()[:20_000])
    rounded = GGUFWriter(tmp_path / "q8_1.gguf", "llama")
    rounded.add_tensor("output.weight", np.zeros((2, 40), np.uint8), raw_dtype=GGMLQuantizationType.Q8_1)
    rounded.write_header_to_file()
    rounded.write_kv_data_to_file()
    rounded.write_tensors_to_file()
    rounded.close()
    for name, words in (
        ("mamba.gguf", "is of the family 'mamba'; of GGUF files llama, mistral, qwen2, qwen3, gpt2 are read"),
        ("q8_1.gguf", "holds weights rounded as Q8_1; F32, F16, Q4_0, .*Q4_K.* are read"),
        ("text.gguf", "is no GGUF file, is cut off"),
        ("cut.gguf", "is no GGUF file, is cut off"),
        ("absent.gguf", "there is no such folder or .gguf file"),
    ):
        with pytest.raises(CheckpointError, match=words) as caught:
            require_reachable(str(tmp_path / name), "main", store)
        assert "\n" not in str(caught.value)


def test_without_the_package_it_says_what_to_install(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(original, tmp_path / "small.gguf", GGMLQuantizationType.F16)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"needs the package gguf; pip install 'headdyn\[gguf\]'"):
        require_reachable(str(tmp_path / "small.gguf"), "main", Store(tmp_path / "cache"))
