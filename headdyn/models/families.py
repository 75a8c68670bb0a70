"""Reads and writes Hugging Face checkpoints: config.json to DecoderConfig and back, weights to Decoder and back.

All differences between families are in `headdyn.models.family_table`. Before it writes a config.json, export reads it
back: if a field comes back different, the family cannot express it, and the error names it.
"""

import dataclasses
import json
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from headdyn.models.config import DecoderConfig
from headdyn.models.decoder import Decoder
from headdyn.models.family_table import FAMILIES, LACKS, Family, Packing, Setting, not_implemented

# With a linear RoPE factor of 1e30 no position below 1e6 rotates by more than 1e-24 radians: cos is 1, and x + sin * y
# is x to the bit, in transformers 4.57 and 5.23. This makes a stock model behave as one without positions.
NOPE_FACTOR = 1e30


# -- config.json ------------------------------------------------------------------------------------------------------


def import_config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """The DecoderConfig of a config.json.

    Raises ValueError for an unknown family, and, with key and value, for a setting that the decoder does not implement.
    """
    family = _family(hf_config.get("model_type"))
    for key, value in {"quantization_config": None, "auto_map": None, **family.held}.items():
        if hf_config.get(key, value) != value:
            raise not_implemented(hf_config, key, hf_config[key], [value])
    fields = {**family.fixed, **{field: setting.read(hf_config) for field, setting in family.settings.items()}}
    derived = {
        "num_kv_heads": fields["num_heads"],
        "head_dim": fields["d_model"] // fields["num_heads"],
        "d_ff": 4 * fields["d_model"],
    }
    fields |= {field: value for field, value in derived.items() if fields.get(field) is None}
    fields["sliding_window"] = _import_windows(hf_config, family, fields)
    return DecoderConfig(**fields, **_import_rope(hf_config, family, fields["head_dim"]))


def read_config(folder: Path) -> DecoderConfig:
    """The settings of the decoder in a Hugging Face folder. Raises ValueError as `load_pretrained` does."""
    return import_config(_read_json(folder / "config.json"))


def export_config(config: DecoderConfig, family: str, *, max_positions: int) -> dict[str, Any]:
    """The config.json with which `family` computes the same as this decoder.

    `max_positions` is the longest sequence that a rotary family states; it limits nothing. Raises ValueError naming the
    settings that the family cannot express.
    """
    row = _family(family)
    hf_config = {
        "architectures": [row.architecture],
        "model_type": family,
        "bos_token_id": None,  # some families' defaults would end a generation at token 2
        "eos_token_id": None,
        "pad_token_id": None,
        **row.held,
        **{setting.key: setting.write(getattr(config, field)) for field, setting in row.settings.items()},
        **_export_windows(config, row),
        **_export_rope(config, row, max_positions),
    }
    returned = import_config(hf_config)
    if not config.rotary_dim:
        returned = dataclasses.replace(returned, rotary_theta=config.rotary_theta)  # without RoPE it has no effect
    lost = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(returned, f.name)]
    if lost:
        listing = ", ".join(f"{name}={getattr(config, name)!r}" for name in lost)
        raise ValueError(f"{family} cannot express {listing}; choose another of {', '.join(FAMILIES)}")
    return hf_config


def _family(model_type: Any) -> Family:
    if model_type not in FAMILIES:
        lacks = f" (it needs {LACKS[model_type]})" if model_type in LACKS else ""
        raise ValueError(f"unknown model family {model_type!r}{lacks}; the known ones are {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


# -- sliding windows ---------------------------------------------------------------------------------------------------

_SLIDING, _FULL = "sliding_attention", "full_attention"


def _import_windows(hf_config: Mapping[str, Any], family: Family, fields: Mapping[str, Any]) -> Any:
    """`sliding_window`: one window for all layers, or one for each if some layers have full attention."""
    window, every, types = fields.get("sliding_window"), family.full_attention_every, hf_config.get("layer_types")
    if every is None:
        if set(types or ()) - {_FULL}:
            raise not_implemented(hf_config, "layer_types", types, ["full_attention in all"])
        return window
    layers = fields["num_layers"]
    types = types or [_SLIDING if (layer + 1) % every else _FULL for layer in range(layers)]
    if set(types) - {_SLIDING, _FULL} or len(types) != layers:
        raise not_implemented(hf_config, "layer_types", types, [f"{layers} times {_SLIDING} or {_FULL}"])
    windows = tuple(window if kind == _SLIDING else None for kind in types)
    return windows if len(set(windows)) > 1 else windows[0]


def _export_windows(config: DecoderConfig, family: Family) -> dict[str, Any]:
    if family.full_attention_every is None:
        return {}
    windows = [config.window(layer) for layer in range(config.num_layers)]
    return {
        # transformers makes a sliding mask even if no layer uses it, and needs some number for it.
        "sliding_window": next(filter(None, windows), family.settings["sliding_window"].default),
        "layer_types": [_FULL if window is None else _SLIDING for window in windows],
    }


# -- RoPE -------------------------------------------------------------------------------------------------------------


def _llama3(frequencies: Tensor, given: Mapping[str, Any]) -> Tensor:
    """Llama 3.1's frequencies: those of short wavelengths (against the original context) are kept, those of long ones
    divided by `factor`, those in between blended. In transformers' order of operations, so that the tables are equal.
    """
    low, high, context = given["low_freq_factor"], given["high_freq_factor"], given["original_max_position_embeddings"]
    wavelengths = 2 * math.pi / frequencies
    share = (context / wavelengths - low) / (high - low)
    blended = (1 - share) * frequencies / given["factor"] + share * frequencies
    slowed = torch.where(wavelengths > context / low, frequencies / given["factor"], blended)
    return torch.where(wavelengths < context / high, frequencies, slowed)


_CONTEXT = "original_max_position_embeddings"
_ROPE_TYPES: Mapping[str, tuple[tuple[str, ...], Callable[[Tensor, Mapping[str, Any]], Tensor] | None]] = {
    "default": ((), None),
    "linear": (("factor",), lambda frequencies, given: frequencies / given["factor"]),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", _CONTEXT), _llama3),
}


def _rope_parameters(hf_config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The settings of RoPE in config.json.

    Raises ValueError if layers of full and of sliding attention have different ones, as OLMo-3 after its long-context
    training, where only the layers of full attention use YaRN.
    """
    scaling, parameters = hf_config.get("rope_scaling"), hf_config.get("rope_parameters") or {}
    if family.full_attention_every is None:
        return dict(scaling or parameters)
    full, sliding = {**(parameters.get(_FULL) or {}), **(scaling or {})}, dict(parameters.get(_SLIDING) or {})
    if full != sliding:
        alike = f"the same in layers of {_SLIDING}, {sliding}"
        raise not_implemented(hf_config, f"rope_parameters of {_FULL}", full, [alike])
    return full


def _import_rope(hf_config: Mapping[str, Any], family: Family, head_dim: int) -> dict[str, Any]:
    """rotary_theta, rotary_fraction and rotary_frequencies.

    transformers 5 has all settings in rope_parameters; older versions have theta at the top level of config.json and
    the others in rope_scaling. If both are given, rope_scaling is used, as in transformers.
    """
    if family.rope is None:
        return {"rotary_fraction": 0.0}
    rope = _rope_parameters(hf_config, family)
    kind: Any = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _ROPE_TYPES:
        raise not_implemented(hf_config, "rope_type", kind, list(_ROPE_TYPES))
    keys, rescale = _ROPE_TYPES[kind]
    if _CONTEXT in keys:
        rope.setdefault(_CONTEXT, hf_config.get("max_position_embeddings"))
    unknown = set(rope) - {"rope_type", "type", "rope_theta", "partial_rotary_factor", *keys}
    if unknown or set(keys) - set(rope):
        raise ValueError(
            f"{hf_config['model_type']}: rope_type={kind!r} takes the keys {list(keys)}, but config.json gives {rope}"
        )

    def read(setting: Setting, key: str) -> Any:
        return setting.read({**hf_config, setting.key: rope[key]} if key in rope else hf_config)

    theta, fraction = read(family.rope[0], "rope_theta"), read(family.rope[1], "partial_rotary_factor")
    if kind == "linear" and rope["factor"] >= NOPE_FACTOR:
        return {"rotary_theta": theta, "rotary_fraction": 0.0}
    fields = {"rotary_theta": theta, "rotary_fraction": fraction}
    if rescale is not None:
        width = int(head_dim * fraction)
        frequencies = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
        fields["rotary_frequencies"] = tuple(rescale(frequencies, rope).tolist())
    return fields


def _export_rope(config: DecoderConfig, family: Family, max_positions: int) -> dict[str, Any]:
    """RoPE for transformers 5 (rope_parameters) and for older versions (top level of config.json, rope_scaling)."""
    if family.rope is None:
        return {}
    theta, fraction = family.rope
    top_level: dict[str, Any] = {"max_position_embeddings": max_positions, theta.key: config.rotary_theta}
    is_nope = config.rotary_fraction == 0 and fraction.values is not None
    kind: dict[str, Any] = {"rope_type": "linear", "factor": NOPE_FACTOR} if is_nope else {"rope_type": "default"}
    parameters = {**kind, "rope_theta": config.rotary_theta}
    if is_nope and family.full_attention_every is None:
        top_level["rope_scaling"] = parameters
    if fraction.values is None:
        top_level[fraction.key] = parameters["partial_rotary_factor"] = config.rotary_fraction
    if family.full_attention_every is not None:
        return {**top_level, "rope_parameters": dict.fromkeys((_FULL, _SLIDING), parameters)}
    return {**top_level, "rope_parameters": parameters}


# -- weights ----------------------------------------------------------------------------------------------------------

# Buffers that old checkpoints carry beside their weights: causal masks and RoPE tables.
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")


def load_pretrained(folder: Path, dtype: torch.dtype) -> Decoder:
    """The decoder in a Hugging Face folder: config.json with safetensors or pytorch_model.bin, whole or in shards.

    Weights are converted to `dtype`; no code from the folder runs. Raises ValueError, naming the file, for an unknown
    family or setting, a missing, damaged or wrongly shaped weight, and a weight that the family does not have.
    """
    folder = Path(folder)
    hf_config = _read_json(folder / "config.json")
    config = import_config(hf_config)
    family = _family(hf_config["model_type"])
    stored = {
        name if name.startswith((family.prefix, _unembedding(family))) else family.prefix + name: read
        for name, read in _stored_tensors(folder).items()
        if not name.endswith(_BUFFERS)
    }
    with torch.device("meta"):
        shapes = Decoder(config).state_dict()
    state = {}
    for name, ours, packing in _tensors(family, config, shapes):
        if name not in stored:
            raise ValueError(
                f"{folder} has no tensor {name!r}; the download is incomplete, or its config.json is another model's"
            )
        tensor = stored.pop(name)()
        wanted = packing.pack([shapes[our] for our in ours], config.num_heads).shape
        if tensor.shape != wanted:
            raise ValueError(
                f"{folder}: {name!r} has shape {tuple(tensor.shape)}, but config.json makes it {tuple(wanted)}"
            )
        for our, part in zip(ours, packing.unpack(tensor, len(ours), config.num_heads), strict=True):
            state[our] = part.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if hf_config.get("scale_attn_by_inverse_layer_idx"):  # GPT-2 divides a layer's scores; dividing queries is the same
        for layer in range(config.num_layers):
            for kind in ("weight", "bias"):
                state[f"blocks.{layer}.attention.q.{kind}"] /= layer + 1
    unembedding = stored.pop(f"{_unembedding(family)}.weight", None) if config.tied_embeddings else None
    if unembedding is not None and not torch.equal(unembedding().to(dtype), state["embed.weight"]):
        raise ValueError(
            f"{folder}: config.json ties the embeddings, but the stored ones differ; set its tie_word_embeddings=false"
        )
    if stored:
        raise ValueError(f"{folder} holds weights that {hf_config['model_type']} does not read: {sorted(stored)[:5]}")
    return Decoder.from_state(config, state)


def export_pretrained(decoder: Decoder, folder: Path, family: str | None = None, *, max_positions: int = 32768) -> Path:
    """Write config.json and model.safetensors for `AutoModelForCausalLM.from_pretrained`; returns the folder.

    `family=None` uses the first family that can express the decoder. `max_positions` is the longest sequence that a
    rotary model states; it limits nothing. Raises ValueError naming the settings that the family cannot express.
    """
    folder, config = Path(folder), decoder.config
    hf_config = export_config(config, family or _first_family(config), max_positions=max_positions)
    weights = {name: tensor.detach() for name, tensor in decoder.named_parameters()}  # a tied weight once
    tensors = {
        name: packing.pack([weights[our] for our in ours], config.num_heads).contiguous()
        for name, ours, packing in _tensors(FAMILIES[hf_config["model_type"]], config, weights)
    }
    dtype_name = str(decoder.embed.weight.dtype).removeprefix("torch.")
    hf_config |= {"dtype": dtype_name, "torch_dtype": dtype_name}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(hf_config, indent=2) + "\n", encoding="utf-8")
    return folder


def _first_family(config: DecoderConfig) -> str:
    """The first family that can express a decoder. Raises ValueError, with each family's reason, if none can."""
    reasons = []
    for family in FAMILIES:
        try:
            export_config(config, family, max_positions=0)
        except ValueError as error:
            reasons.append(str(error).split(";")[0])
        else:
            return family
    raise ValueError("no family expresses this decoder: " + "; ".join(reasons))


def _unembedding(family: Family) -> str:
    return next(module.theirs for module in family.modules if "unembed" in module.ours)


def _tensors(
    family: Family, config: DecoderConfig, names: Mapping[str, Tensor]
) -> Iterator[tuple[str, tuple[str, ...], Packing]]:
    """(stored name, our names, packing) of every parameter among `names`; a tied unembedding is left out."""
    for module in family.modules:
        if "unembed" in module.ours and config.tied_embeddings:
            continue
        for layer in range(config.num_layers if "{}" in module.theirs else 1):
            for kind in ("weight", "bias"):
                ours = tuple(f"{name.format(layer)}.{kind}" for name in module.ours)
                if ours[0] in names:
                    yield f"{module.theirs.format(layer)}.{kind}", ours, module.packing


def _stored_tensors(folder: Path) -> dict[str, Callable[[], Tensor]]:
    """A function for each stored tensor that reads it; files are mapped, so that no other tensors are read."""
    for name, read in (("model.safetensors", _open_safetensors), ("pytorch_model.bin", _open_pickle)):
        index = folder / f"{name}.index.json"
        if index.exists():
            files = sorted(set(_read_json(index)["weight_map"].values()))
        elif (folder / name).exists():
            files = [name]
        else:
            continue
        return {tensor: get for file in files for tensor, get in read(folder / file).items()}
    raise ValueError(
        f"{folder} holds no weights: neither model.safetensors nor pytorch_model.bin, nor an index of shards; "
        f"it holds {sorted(path.name for path in folder.iterdir())[:10]}"
    )


def _open_safetensors(path: Path) -> dict[str, Callable[[], Tensor]]:
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error
    return {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118


def _open_pickle(path: Path) -> dict[str, Callable[[], Tensor]]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise _damaged(path, error) from error
    return {name: partial(state.__getitem__, name) for name in state}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    fact = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
    return ValueError(f"{path} {fact}; download the checkpoint again")
