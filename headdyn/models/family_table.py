"""The table of Hugging Face families: how a config.json describes a decoder, and how its weights are stored.

A row says which key of config.json gives which field of DecoderConfig, which keys must have the one value that the
decoder implements, and which stored tensor has the weights of which modules, and how they are packed.
`headdyn.models.families` uses the table for reading and writing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Setting(NamedTuple):
    """A key of config.json that gives one field of DecoderConfig."""

    key: str
    default: Any = ...  # the key's value where config.json lacks it; ... means that it must have the key
    values: Mapping[Any, Any] | None = None  # the field's value for each value of the key; None if they are the same

    def read(self, hf_config: Mapping[str, Any]) -> Any:
        """The field's value. Raises ValueError where the key is missing or its value is not implemented."""
        value = hf_config.get(self.key, self.default)
        if value is ...:
            raise ValueError(f"config.json has no {self.key!r}, which {hf_config['model_type']} needs")
        if self.values is None:
            return value
        if value not in self.values:
            raise not_implemented(hf_config, self.key, value, self.values)
        return self.values[value]

    def write(self, ours: Any) -> Any:
        """The key's value for the field's value `ours`; if no value gives it, one that is read back as another."""
        if self.values is None:
            return ours
        return next((theirs for theirs, value in self.values.items() if value == ours), next(iter(self.values)))


def not_implemented(hf_config: Mapping[str, Any], key: str, value: Any, implemented: Iterable[Any]) -> ValueError:
    """The error for a setting of a known family that the decoder does not implement."""
    return ValueError(
        f"{hf_config['model_type']}: {key}={value!r} is not implemented, only {', '.join(map(repr, implemented))}; "
        "use a checkpoint without it"
    )


class Packing(NamedTuple):
    """`unpack(stored, parts, heads)` gives our weights or biases, `pack(ours, heads)` the stored tensor."""

    unpack: Callable[[Tensor, int, int], Sequence[Tensor]]
    pack: Callable[[Sequence[Tensor], int], Tensor]


PLAIN = Packing(lambda stored, parts, heads: stored.chunk(parts), lambda ours, heads: torch.cat(list(ours)))


def _transposed(x: Tensor) -> Tensor:
    return x.mT if x.ndim == 2 else x


# GPT-2 stores matrices for x @ W, so they are transposed, with q, k and v side by side.
CONV1D = Packing(
    lambda stored, parts, heads: _transposed(stored).chunk(parts),
    lambda ours, heads: _transposed(torch.cat(list(ours))),
)
# GPT-NeoX packs its fused projection head by head, [heads, 3, head_dim, ...]. Read as [3, heads, head_dim, ...] it
# would load without an error, with rows of q, k and v and of several heads mixed.
HEAD_BY_HEAD = Packing(
    lambda stored, parts, heads: [part.flatten(0, 1) for part in stored.unflatten(0, (heads, parts, -1)).unbind(1)],
    lambda ours, heads: torch.stack([part.unflatten(0, (heads, -1)) for part in ours], dim=1).flatten(0, 2),
)


class Module(NamedTuple):
    """A module of the family (`theirs`) and the decoder's modules that get its weights; `{}` stands for the layer."""

    theirs: str
    ours: Sequence[str]
    packing: Packing = PLAIN


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family. `settings` are the fields of DecoderConfig that config.json gives, `fixed` those that the family
    fixes, `held` the keys of config.json of which only one value is implemented.
    """

    architecture: str
    prefix: str  # with which the base model's tensor names begin; absent if the base model alone was saved
    settings: Mapping[str, Setting]
    fixed: Mapping[str, Any]
    held: Mapping[str, Any]
    rope: tuple[Setting, Setting] | None  # theta and the rotating share, if not in rope_parameters
    modules: Sequence[Module]
    full_attention_every: int | None = None  # one of so many layers has full attention, the others a sliding window


_QKV = ["blocks.{}.attention.q", "blocks.{}.attention.k", "blocks.{}.attention.v"]
_GELU = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}

_ATTENTION_BIAS = {"qkv_bias": Setting("attention_bias", False), "out_bias": Setting("attention_bias", False)}

_LLAMA: Mapping[str, Any] = {
    "prefix": "model.",
    "settings": {
        "vocab_size": Setting("vocab_size"),
        "num_layers": Setting("num_hidden_layers"),
        "d_model": Setting("hidden_size"),
        "num_heads": Setting("num_attention_heads"),
        "num_kv_heads": Setting("num_key_value_heads", 32),
        "head_dim": Setting("head_dim", None),
        "d_ff": Setting("intermediate_size"),
        "norm_eps": Setting("rms_norm_eps", 1e-6),
        "mlp": Setting("hidden_act", "silu", {"silu": "swiglu", "swish": "swiglu"}),
        "tied_embeddings": Setting("tie_word_embeddings", False),
    },
    "rope": (Setting("rope_theta", 1e4), Setting("partial_rotary_factor", 1.0, {1.0: 1.0})),
    "modules": (
        Module("model.embed_tokens", ["embed"]),
        Module("model.layers.{}.input_layernorm", ["blocks.{}.norm1"]),
        Module("model.layers.{}.self_attn.q_proj", ["blocks.{}.attention.q"]),
        Module("model.layers.{}.self_attn.k_proj", ["blocks.{}.attention.k"]),
        Module("model.layers.{}.self_attn.v_proj", ["blocks.{}.attention.v"]),
        Module("model.layers.{}.self_attn.o_proj", ["blocks.{}.attention.o"]),
        Module("model.layers.{}.self_attn.q_norm", ["blocks.{}.attention.q_norm"]),
        Module("model.layers.{}.self_attn.k_norm", ["blocks.{}.attention.k_norm"]),
        Module("model.layers.{}.post_attention_layernorm", ["blocks.{}.norm2"]),
        Module("model.layers.{}.mlp.gate_proj", ["blocks.{}.mlp.gate"]),
        Module("model.layers.{}.mlp.up_proj", ["blocks.{}.mlp.up"]),
        Module("model.layers.{}.mlp.down_proj", ["blocks.{}.mlp.down"]),
        Module("model.norm", ["norm"]),
        Module("lm_head", ["unembed"]),
    ),
}

_POST_NORMS = {"blocks.{}.norm1": "post_attention_layernorm", "blocks.{}.norm2": "post_feedforward_layernorm"}
_OLMO2: Mapping[str, Any] = {
    "settings": {
        "num_kv_heads": Setting("num_key_value_heads", None),
        "norm_eps": Setting("rms_norm_eps", 1e-5),
        **_ATTENTION_BIAS,
    },
    "fixed": {"qk_norm": True, "qk_norm_over": "layer", "post_norm": True},
    "held": {},
    "modules": tuple(
        module._replace(theirs=f"model.layers.{{}}.{_POST_NORMS[module.ours[0]]}")
        if module.ours[0] in _POST_NORMS
        else module
        for module in _LLAMA["modules"]
    ),
}


def _llama_like(architecture: str, *, settings: Mapping[str, Setting], **fields: Any) -> Family:
    return Family(architecture=architecture, **{**_LLAMA, **fields, "settings": {**_LLAMA["settings"], **settings}})


# What the decoder lacks for families that are often asked for.
_GEMMA_3 = (
    "norms both before and after attention and MLP, embeddings scaled by √D, a gated GELU, and another RoPE in the "
    "layers with a sliding window"
)
LACKS = {"gemma3": _GEMMA_3, "gemma3_text": _GEMMA_3}

FAMILIES: Mapping[str, Family] = {
    "qwen3": _llama_like(
        "Qwen3ForCausalLM",
        settings={"head_dim": Setting("head_dim", 128), **_ATTENTION_BIAS},
        fixed={"qk_norm": True},
        held={"use_sliding_window": False},
    ),
    "qwen2": _llama_like(
        "Qwen2ForCausalLM",
        settings={},
        fixed={"qk_norm": False, "qkv_bias": True},
        held={"use_sliding_window": False},
    ),
    "llama": _llama_like(
        "LlamaForCausalLM",
        settings={
            "num_kv_heads": Setting("num_key_value_heads", None),
            **_ATTENTION_BIAS,
            "mlp_bias": Setting("mlp_bias", False),
        },
        fixed={"qk_norm": False},
        held={},
    ),
    "mistral": _llama_like(
        "MistralForCausalLM",
        settings={"num_kv_heads": Setting("num_key_value_heads", 8), "sliding_window": Setting("sliding_window", 4096)},
        fixed={"qk_norm": False},
        held={},
    ),
    "olmo2": _llama_like("Olmo2ForCausalLM", **_OLMO2),
    "olmo3": _llama_like(
        "Olmo3ForCausalLM",
        **{**_OLMO2, "settings": {**_OLMO2["settings"], "sliding_window": Setting("sliding_window", 4096)}},
        rope=(Setting("rope_theta", 5e5), _LLAMA["rope"][1]),
        full_attention_every=4,
    ),
    "gpt_neox": Family(
        architecture="GPTNeoXForCausalLM",
        prefix="gpt_neox.",
        settings={
            "vocab_size": Setting("vocab_size"),  # of the padded table: Pythia's 50,304 logits, not its 50,277 tokens
            "num_layers": Setting("num_hidden_layers"),
            "d_model": Setting("hidden_size"),
            "num_heads": Setting("num_attention_heads"),
            "d_ff": Setting("intermediate_size"),
            "norm_eps": Setting("layer_norm_eps", 1e-5),
            "mlp": Setting("hidden_act", "gelu", _GELU),
            "parallel_residual": Setting("use_parallel_residual", True),
            "qkv_bias": Setting("attention_bias", True),
            "out_bias": Setting("attention_bias", True),
            "tied_embeddings": Setting("tie_word_embeddings", False),
        },
        fixed={"norm": "layer", "qk_norm": False, "mlp_bias": True},
        held={},
        rope=(Setting("rotary_emb_base", 1e4), Setting("rotary_pct", 0.25)),
        modules=(
            Module("gpt_neox.embed_in", ["embed"]),
            Module("gpt_neox.layers.{}.input_layernorm", ["blocks.{}.norm1"]),
            Module("gpt_neox.layers.{}.attention.query_key_value", _QKV, HEAD_BY_HEAD),
            Module("gpt_neox.layers.{}.attention.dense", ["blocks.{}.attention.o"]),
            Module("gpt_neox.layers.{}.post_attention_layernorm", ["blocks.{}.norm2"]),
            Module("gpt_neox.layers.{}.mlp.dense_h_to_4h", ["blocks.{}.mlp.up"]),
            Module("gpt_neox.layers.{}.mlp.dense_4h_to_h", ["blocks.{}.mlp.down"]),
            Module("gpt_neox.final_layer_norm", ["norm"]),
            Module("embed_out", ["unembed"]),
        ),
    ),
    "gpt2": Family(
        architecture="GPT2LMHeadModel",
        prefix="transformer.",
        settings={
            "vocab_size": Setting("vocab_size"),
            "num_layers": Setting("n_layer"),
            "d_model": Setting("n_embd"),
            "num_heads": Setting("n_head"),
            "d_ff": Setting("n_inner", None),
            "max_positions": Setting("n_positions"),
            "norm_eps": Setting("layer_norm_epsilon", 1e-5),
            "mlp": Setting("activation_function", "gelu_new", _GELU),
            "tied_embeddings": Setting("tie_word_embeddings", True),
        },
        fixed={"norm": "layer", "qk_norm": False, "qkv_bias": True, "out_bias": True, "mlp_bias": True},
        held={"scale_attn_weights": True, "add_cross_attention": False},
        rope=None,
        modules=(
            Module("transformer.wte", ["embed"]),
            Module("transformer.wpe", ["positions"]),
            Module("transformer.h.{}.ln_1", ["blocks.{}.norm1"]),
            Module("transformer.h.{}.attn.c_attn", _QKV, CONV1D),
            Module("transformer.h.{}.attn.c_proj", ["blocks.{}.attention.o"], CONV1D),
            Module("transformer.h.{}.ln_2", ["blocks.{}.norm2"]),
            Module("transformer.h.{}.mlp.c_fc", ["blocks.{}.mlp.up"], CONV1D),
            Module("transformer.h.{}.mlp.c_proj", ["blocks.{}.mlp.down"], CONV1D),
            Module("transformer.ln_f", ["norm"]),
            Module("lm_head", ["unembed"]),
        ),
    ),
}
