"""Every other family against Hugging Face's own model: in and out, with mutants; and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from headdyn.models.config import DecoderConfig
from headdyn.models.decoder import Decoder
from headdyn.models.families import export_config, export_pretrained, import_config, load_pretrained
from headdyn.models.family_table import FAMILIES
from tests.parity import hugging_face
from tests.parity.checks import ATOL, assert_parity, assert_same_weights
from tests.small_models import GPT2, GQA, NEOX, OLMO2, OLMO3, RESCALED, SLIDING, drawn, tokens

LENGTH = 19
LLAMA_SIZES = {
    "vocab_size": 29,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": None,
}
NEOX_SIZES = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
GPT2_SIZES = {
    "vocab_size": 29,
    "n_embd": 16,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 24,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FULL, SLIDES = "full_attention", "sliding_attention"
SMALL: dict[str, Callable[..., PreTrainedConfig]] = {
    "qwen3": lambda **changes: Qwen3Config(**{**LLAMA_SIZES, "head_dim": 6, **changes}),
    "qwen2": lambda **changes: Qwen2Config(**{**LLAMA_SIZES, **changes}),
    "llama": lambda **changes: LlamaConfig(**{**LLAMA_SIZES, **changes}),
    "mistral": lambda **changes: MistralConfig(**{**LLAMA_SIZES, **changes}),
    "olmo2": lambda **changes: Olmo2Config(**{**LLAMA_SIZES, **changes}),
    "olmo3": lambda **changes: Olmo3Config(
        **{**LLAMA_SIZES, "sliding_window": 5, "layer_types": [SLIDES, FULL, SLIDES], **changes}
    ),
    "gpt_neox": lambda **changes: GPTNeoXConfig(**{**NEOX_SIZES, **changes}),
    "gpt2": lambda **changes: GPT2Config(**{**GPT2_SIZES, **changes}),
}
STOCK: dict[str, PreTrainedConfig] = {
    "qwen2": SMALL["qwen2"](),
    "qwen2 tied": SMALL["qwen2"](tie_word_embeddings=True),
    "llama": SMALL["llama"](),
    "llama theta": SMALL["llama"](rope_parameters={"rope_type": "default", "rope_theta": 50.0}),
    "llama biases": SMALL["llama"](attention_bias=True, mlp_bias=True, num_key_value_heads=4),
    "llama head_dim": SMALL["llama"](head_dim=6),
    "llama 3.1": SMALL["llama"](head_dim=16, rope_parameters=LLAMA3),
    "mistral": SMALL["mistral"](sliding_window=5),
    "mistral unlimited": SMALL["mistral"](sliding_window=None),
    "olmo2": SMALL["olmo2"](),
    "olmo2 biases": SMALL["olmo2"](attention_bias=True, num_key_value_heads=None, tie_word_embeddings=True),
    "olmo3": SMALL["olmo3"](),
    "olmo3 unlimited": SMALL["olmo3"](num_hidden_layers=2, layer_types=[FULL, FULL]),
    "olmo3 by default": SMALL["olmo3"](num_hidden_layers=4, layer_types=None),
    "neox": SMALL["gpt_neox"](),
    "neox sequential": SMALL["gpt_neox"](use_parallel_residual=False, rotary_pct=1.0, rotary_emb_base=500.0),
    "neox no bias": SMALL["gpt_neox"](attention_bias=False, hidden_act="gelu_fast", tie_word_embeddings=True),
    "gpt2": SMALL["gpt2"](),
    "gpt2 exact": SMALL["gpt2"](activation_function="gelu", n_inner=20, tie_word_embeddings=False),
}


@pytest.mark.parametrize("config", STOCK.values(), ids=STOCK)
def test_parity_and_round_trip(config: PreTrainedConfig, tmp_path: Path) -> None:
    stock = hugging_face.build(config, tmp_path / "stock")
    decoder, x_BT = load_pretrained(stock, torch.float32), tokens(3, LENGTH)
    assert_parity(decoder, stock, x_BT)
    if decoder.config.rotary_frequencies is None:  # a rescaled RoPE's table has no config.json of its own
        ours = export_pretrained(decoder, tmp_path / "ours", config.model_type)
        assert_parity(decoder, ours, x_BT)
        assert_same_weights(load_pretrained(ours, torch.float32), decoder)
        exported, original = load_file(ours / "model.safetensors"), load_file(stock / "model.safetensors")
        assert exported.keys() == original.keys()
        assert all(torch.equal(exported[name], original[name]) for name in original)


def test_scores_divided_by_the_layers_number_are_queries_divided_by_it(tmp_path: Path) -> None:
    """Stanford's GPT-2 (mistral) scales so; a reader that leaves it out has the last two layers wrong."""
    stock = hugging_face.build(SMALL["gpt2"](scale_attn_by_inverse_layer_idx=True), tmp_path / "stock")
    decoder, x_BT = load_pretrained(stock, torch.float32), tokens(3, LENGTH)
    assert_parity(decoder, stock, x_BT)
    with torch.no_grad():
        decoder.blocks[2].attention.q.weight *= 3
    assert (decoder(x_BT) - hugging_face.logits(stock, x_BT)).abs().max() > 100 * ATOL


EXPORTED = {
    "gpt_neox": dataclasses.replace(NEOX, head_dim=4),  # these two families have head_dim = D / H
    "gpt_neox without positions": dataclasses.replace(NEOX, head_dim=4).without_positions(),
    "gpt2": dataclasses.replace(GPT2, head_dim=4),
    "mistral": SLIDING,
    "llama": dataclasses.replace(GQA, qk_norm=False),
    "llama without positions": dataclasses.replace(GQA, qk_norm=False).without_positions(),
    "qwen2": dataclasses.replace(GQA, qk_norm=False, qkv_bias=True),
    "qwen3": dataclasses.replace(GQA, qkv_bias=True, out_bias=True),
    "olmo2": OLMO2,
    "olmo2 without positions": OLMO2.without_positions(),
    "olmo3": OLMO3,
    "olmo3 without positions": OLMO3.without_positions(),
}


@pytest.mark.parametrize(("name", "config"), EXPORTED.items(), ids=EXPORTED)
def test_a_drawn_decoder_exports_to_the_family_that_has_it(name: str, config: DecoderConfig, tmp_path: Path) -> None:
    decoder = drawn(config, dtype=torch.float32)
    export_pretrained(decoder, tmp_path, max_positions=64)
    hf_config = AutoConfig.from_pretrained(tmp_path)
    assert hf_config.model_type == name.split()[0]
    assert hf_config.max_position_embeddings == (config.max_positions or 64)
    assert_parity(decoder, tmp_path, tokens(3, LENGTH))
    assert_same_weights(load_pretrained(tmp_path, torch.float32), decoder)


# -- mutants ----------------------------------------------------------------------------------------------------------


def zero_queries(decoder: Decoder) -> None:
    decoder.blocks[1].attention.q.weight.zero_()
    if decoder.blocks[1].attention.q.bias is not None:
        decoder.blocks[1].attention.q.bias.zero_()


def swap_two_heads(decoder: Decoder) -> None:
    c, weight = decoder.config, decoder.blocks[2].attention.o.weight
    weight.copy_(weight.unflatten(1, (c.num_heads, c.head_dim))[:, [1, 0, 2, 3]].flatten(1))


def drop_a_gain(decoder: Decoder) -> None:
    decoder.blocks[2].norm2.weight.fill_(1)


def drop_the_biases(decoder: Decoder) -> None:
    for name, parameter in decoder.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()


MUTANTS = [
    (family, mutate)
    for family in ("qwen2", "llama", "mistral", "olmo2", "olmo3", "gpt_neox", "gpt2")
    for mutate in (zero_queries, swap_two_heads, drop_a_gain, drop_the_biases)
    if mutate is not drop_the_biases or family not in ("llama", "mistral", "olmo2", "olmo3")  # which have none
]


@pytest.mark.parametrize(("family", "mutate"), MUTANTS)
@torch.no_grad()
def test_a_wrong_model_is_not_at_parity(family: str, mutate: Callable[[Decoder], None], tmp_path: Path) -> None:
    x_BT = tokens(3, LENGTH)
    decoder = load_pretrained(hugging_face.build(SMALL[family](), tmp_path), torch.float32)
    mutate(decoder)
    assert (decoder(x_BT) - hugging_face.logits(tmp_path, x_BT)).abs().max() > 1000 * ATOL


IGNORED = [
    ("llama theta", {"rotary_theta": 1e4}),
    ("llama 3.1", {"rotary_frequencies": None}),
    ("mistral", {"sliding_window": None}),
    ("olmo2", {"rotary_theta": 50.0}),
    ("olmo2", {"post_norm": False}),
    ("olmo3", {"sliding_window": None}),
    ("olmo3", {"sliding_window": 5}),
    ("olmo3", {"sliding_window": (5, 5, None)}),
    ("neox", {"rotary_fraction": 1.0}),
    ("neox", {"parallel_residual": False}),
    ("neox", {"mlp": "gelu_tanh"}),
    ("gpt2", {"mlp": "gelu"}),
    ("gpt2", {"norm_eps": 1e-3}),
]


@pytest.mark.parametrize(("name", "mutation"), IGNORED, ids=str)
@torch.no_grad()
def test_a_setting_that_is_ignored_shows(name: str, mutation: dict[str, Any], tmp_path: Path) -> None:
    x_BT = tokens(3, LENGTH)
    decoder = load_pretrained(hugging_face.build(STOCK[name], tmp_path), torch.float32)
    mutant = decoder.with_config(dataclasses.replace(decoder.config, **mutation))
    # The two kinds of GELU differ by 5e-4 at most, so their mutants are the least: 7.1e-4.
    assert (mutant(x_BT) - hugging_face.logits(tmp_path, x_BT)).abs().max() > 10 * ATOL


@torch.no_grad()
def test_gpt_neox_read_three_by_heads_is_another_model(tmp_path: Path) -> None:
    """The packing is [heads, 3, head_dim, ...]; the other reading has the same shapes and loads without complaint."""
    x_BT = tokens(3, LENGTH)
    decoder = load_pretrained(hugging_face.build(SMALL["gpt_neox"](), tmp_path), torch.float32)
    stored = load_file(tmp_path / "model.safetensors")
    for layer, block in enumerate(decoder.blocks):
        for kind in ("weight", "bias"):
            fused = stored[f"gpt_neox.layers.{layer}.attention.query_key_value.{kind}"]
            for part, module in zip(
                fused.chunk(3), (block.attention.q, block.attention.k, block.attention.v), strict=True
            ):
                getattr(module, kind).copy_(part)
    assert (decoder(x_BT) - hugging_face.logits(tmp_path, x_BT)).abs().max() > 1  # measured 3.9


# -- config.json ------------------------------------------------------------------------------------------------------

# Settings of Hugging Face's classes that change nothing a decoder in evaluation computes.
INERT = {
    "max_position_embeddings",  # bounds nothing under RoPE (Llama 3.1's fallback apart)
    "initializer_range",
    "use_cache",
    "attention_dropout",
    "hidden_dropout",
    "classifier_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "pretraining_tp",
    "is_decoder",
    "summary_type",
    "summary_use_proj",
    "summary_activation",
    "summary_proj_to_labels",
    "summary_first_dropout",
    "reorder_and_upcast_attn",  # the same products in another order
}
ELSEWHERE = {"rope_parameters", "layer_types", "scale_attn_by_inverse_layer_idx"}  # read beside the table
UNUSED = {"qwen3": {"sliding_window", "max_window_layers"}, "qwen2": {"sliding_window", "max_window_layers"}}


@pytest.mark.parametrize("family", FAMILIES)
def test_no_setting_of_a_family_is_overlooked(family: str) -> None:
    """Every field of Hugging Face's class is read, held to one value, or known to change nothing."""
    row = FAMILIES[family]
    own = {f.name for f in dataclasses.fields(type(SMALL[family]()))} - {
        f.name for f in dataclasses.fields(PreTrainedConfig)
    }
    read = {setting.key for setting in row.settings.values()} | set(row.held)
    assert own <= read | INERT | ELSEWHERE | UNUSED.get(family, set()), "classify the new setting"
    assert not (read & INERT)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_key_means_hugging_faces_default(family: str) -> None:
    """Old files leave out what was the default when they were written."""
    many_heads = (
        {"num_attention_heads": 32, "hidden_size": 64} if family != "gpt2" else {}
    )  # a default of 8 or 32 K/V heads
    hf_config = SMALL[family](**many_heads).to_dict()
    row = FAMILIES[family]
    sizes = {setting.key for setting in row.settings.values() if setting.default is ...}
    short = {key: value for key, value in hf_config.items() if key in {"model_type", *sizes}}
    defaults = type(SMALL[family]())(**{key: value for key, value in short.items() if key != "model_type"})
    assert import_config(short) == import_config(defaults.to_dict())
    for key in sizes:
        with pytest.raises(ValueError, match=f"config.json has no '{key}', which {family} needs"):
            import_config({name: value for name, value in short.items() if name != key})


def test_older_files_say_the_same_differently() -> None:
    pythia = {
        "model_type": "gpt_neox",
        "vocab_size": 50304,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-05,
    }
    config = import_config(pythia)
    assert (config.rotary_dim, config.rotary_theta, config.head_dim, config.num_kv_heads) == (16, 1e4, 64, 12)
    assert config.parallel_residual and config.qkv_bias and config.mlp_bias and not config.tied_embeddings
    llama = {key: value for key, value in SMALL["llama"]().to_dict().items() if key != "rope_parameters"}
    linear = {"type": "linear", "factor": 2.0}
    old = import_config({**llama, "rope_theta": 5e5, "rope_scaling": linear})
    new = import_config({**llama, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}})
    assert old == new and old.rotary_theta == 5e5 and old.rotary_frequencies[0] == 0.5


@pytest.mark.parametrize("context", [64, 8192], ids=["blended", "Llama 3.1's"])
def test_llama_3_1_frequencies_equal_hugging_faces(context: int) -> None:
    config = LlamaConfig(
        **{**LLAMA_SIZES, "head_dim": 128},
        rope_parameters={**LLAMA3, "rope_theta": 5e5, "original_max_position_embeddings": context},
    )
    expected, scale = ROPE_INIT_FUNCTIONS["llama3"](config)
    ours = import_config(config.to_dict()).rotary_frequencies
    assert scale == 1 and torch.equal(torch.tensor(ours), expected)
    plain = import_config(LlamaConfig(**{**LLAMA_SIZES, "head_dim": 128}).to_dict())
    assert plain.rotary_frequencies is None


REFUSED = [
    ("qwen3", {"hidden_act": "relu"}, r"qwen3: hidden_act='relu' is not implemented, only 'silu', 'swish'"),
    ("qwen3", {"use_sliding_window": True}, "qwen3: use_sliding_window=True is not implemented, only False"),
    ("qwen2", {"use_sliding_window": True}, "qwen2: use_sliding_window=True"),
    ("qwen2", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "qwen2: layer_types="),
    ("llama", {"hidden_act": "gelu"}, "llama: hidden_act='gelu'"),
    (
        "llama",
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "llama: rope_type='dynamic' is not implemented, only",
    ),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "llama: rope_type='yarn'"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, r"rope_type='linear' takes the keys \['factor'\]"),
    ("llama", {"rope_parameters": {"rope_type": "default", "factor": 2.0}}, r"rope_type='default' takes the keys \[\]"),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "llama: partial_rotary_factor=0.5"),
    (
        "olmo3",
        {"rope_scaling": {"rope_type": "yarn", "factor": 8.0}},
        "olmo3: rope_parameters of full_attention=.*yarn",
    ),
    ("olmo3", {"layer_types": [FULL, "linear_attention", FULL]}, "olmo3: layer_types="),
    ("olmo3", {"layer_types": [FULL]}, "only '3 times sliding_attention or full_attention'"),
    ("mistral", {"quantization_config": {"bits": 4}}, "mistral: quantization_config="),
    ("mistral", {"auto_map": {"AutoModelForCausalLM": "code.Model"}}, "mistral: auto_map="),
    ("gpt_neox", {"hidden_act": "quick_gelu"}, "gpt_neox: hidden_act='quick_gelu'"),
    ("gpt2", {"activation_function": "relu"}, "gpt2: activation_function='relu'"),
    ("gpt2", {"scale_attn_weights": False}, "gpt2: scale_attn_weights=False"),
    ("gpt2", {"add_cross_attention": True}, "gpt2: add_cross_attention=True"),
]


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED, ids=str)
def test_a_setting_that_is_not_implemented_is_refused(family: str, changes: dict[str, Any], message: str) -> None:
    hf_config = SMALL[family]().to_dict()
    assert import_config(hf_config)
    with pytest.raises(ValueError, match=message):
        import_config({**hf_config, **changes})


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    known = "qwen3, qwen2, llama, mistral, olmo2, olmo3, gpt_neox, gpt2"
    for model_type in ("bloom", None):
        with pytest.raises(ValueError, match=f"unknown model family {model_type!r}; the known ones are {known}"):
            import_config({"model_type": model_type})
    with pytest.raises(
        ValueError, match=f"'gemma3_text' .it needs norms both before and after .*; the known ones are {known}"
    ):
        import_config({"model_type": "gemma3_text"})
    with pytest.raises(ValueError, match=f"'gemma'; the known ones are {known}"):
        export_config(GQA, "gemma", max_positions=64)


def test_what_a_family_cannot_express_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="llama cannot express qk_norm=True; choose another of qwen3, qwen2"):
        export_pretrained(drawn(GQA), tmp_path, "llama")
    with pytest.raises(ValueError, match="gpt_neox cannot express head_dim=8;"):
        export_pretrained(drawn(NEOX), tmp_path, "gpt_neox")
    with pytest.raises(
        ValueError,
        match=r"no family expresses this decoder: qwen3 cannot express .*llama cannot express rotary_frequencies",
    ):
        export_pretrained(drawn(RESCALED), tmp_path)
    assert not list(tmp_path.iterdir())


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    return hugging_face.build(SMALL["gpt2"](), tmp_path / "stock")


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_and_old_files_read_the_same(family: str, tmp_path: Path) -> None:
    """Sharded safetensors, one .bin, sharded .bin, and a .bin from before torch wrote archives."""
    folder = hugging_face.build(SMALL[family](), tmp_path / "stock")
    decoder, config = load_pretrained(folder, torch.float32), (folder / "config.json").read_text()
    hugging_face.load(folder).save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    weights = load_file(folder / "model.safetensors")
    for name in ("bin", "bin shards", "old bin"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
    torch.save(weights, tmp_path / "bin" / "pytorch_model.bin")
    torch.save(weights, tmp_path / "old bin" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    names = sorted(weights)
    weight_map = {name: f"pytorch_model-{1 + i % 2}.bin" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        torch.save({name: weights[name] for name in names if weight_map[name] == file}, tmp_path / "bin shards" / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (tmp_path / "bin shards" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for name in ("shards", "bin", "bin shards", "old bin"):
        assert_same_weights(load_pretrained(tmp_path / name, torch.float32), decoder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_of_the_base_model_lacks_the_prefix(family: str, tmp_path: Path) -> None:
    """As GPT-2's own file on the hub; buffers of old versions stand beside the weights there."""
    folder = hugging_face.build(SMALL[family](), tmp_path / "stock")
    decoder = load_pretrained(folder, torch.float32)
    prefix = FAMILIES[family].prefix
    weights = {name.removeprefix(prefix): value for name, value in load_file(folder / "model.safetensors").items()}
    weights |= {"h.0.attn.bias": torch.ones(1, 1, 24, 24), "layers.0.attention.masked_bias": torch.tensor(-1e9)}
    weights |= {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    save_file(weights, folder / "model.safetensors")
    assert_same_weights(load_pretrained(folder, torch.float32), decoder)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_dtype_is_the_one_asked_for(stored: torch.dtype, tmp_path: Path) -> None:
    decoder = drawn(dataclasses.replace(NEOX, head_dim=4), dtype=torch.float32).to(stored)
    export_pretrained(decoder, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == str(stored).removeprefix("torch.")
    for dtype in (torch.float32, torch.float64, stored):
        loaded = load_pretrained(tmp_path, dtype)
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
        assert all(parameter.requires_grad and parameter.is_contiguous() for parameter in loaded.parameters())
        assert torch.equal(loaded.embed.weight.to(stored), decoder.embed.weight)


def test_weights_outlive_their_file(stock: Path) -> None:
    """The file is mapped while reading; a cache may evict or overwrite it afterwards."""
    decoder = load_pretrained(stock, torch.float32)
    before = decoder.embed.weight.clone()
    with (stock / "model.safetensors").open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(0)
        file.write(bytes(size))
    assert torch.equal(decoder.embed.weight, before)


def test_no_code_runs_from_a_pickle(tmp_path: Path, stock: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    (stock / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Trap()}, stock / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin cannot be read"):
        load_pretrained(stock, torch.float32)
    assert not (tmp_path / "sprung").exists()


def rewrite(stock: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(stock / "model.safetensors")
    change(weights)
    save_file(weights, stock / "model.safetensors")


def test_a_damaged_or_foreign_folder_is_refused(stock: Path) -> None:
    file, whole, config = stock / "model.safetensors", (stock / "model.safetensors").read_bytes(), stock / "config.json"

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_pretrained(stock, torch.float32)
        file.write_bytes(whole)

    for size in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:size])
        refused(r"model\.safetensors cannot be read .*; download the checkpoint again")
    rewrite(stock, lambda weights: weights.pop("transformer.h.1.attn.c_attn.bias"))
    refused(r"has no tensor 'transformer\.h\.1\.attn\.c_attn\.bias'; the download is incomplete")
    rewrite(stock, lambda weights: weights.update({"transformer.ln_f.weight": torch.ones(15)}))
    refused(r"'transformer\.ln_f\.weight' has shape \(15,\), but config\.json makes it \(16,\)")
    rewrite(stock, lambda weights: weights.update({"transformer.h.0.attn.q_norm.weight": torch.ones(4)}))
    refused(r"holds weights that gpt2 does not read: \['transformer\.h\.0\.attn\.q_norm\.weight'\]")
    rewrite(stock, lambda weights: weights.update({"lm_head.weight": torch.ones(29, 16)}))
    refused(r"config\.json ties the embeddings, but the stored ones differ")
    rewrite(stock, lambda weights: weights.update({"lm_head.weight": weights["transformer.wte.weight"].clone()}))
    load_pretrained(stock, torch.float32)
    (stock / "model.safetensors.index.json").write_text(
        '{"weight_map": {"transformer.wte.weight": "gone.safetensors"}}'
    )
    refused(r"gone\.safetensors does not exist; download the checkpoint again")
    (stock / "model.safetensors.index.json").unlink()
    file.rename(stock / "weights.safetensors")
    with pytest.raises(
        ValueError, match=r"holds no weights: neither .*; it holds \['config\.json', .*weights\.safetensors"
    ):
        load_pretrained(stock, torch.float32)
    config.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        load_pretrained(stock, torch.float32)
    config.unlink()
    with pytest.raises(ValueError, match=r"config\.json does not exist"):
        load_pretrained(stock, torch.float32)


def test_the_tests_ran_against_a_transformers_that_reads_rope_parameters() -> None:
    assert int(transformers.__version__.split(".")[0]) >= 5
