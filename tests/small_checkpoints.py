"""Small Hugging Face folders of every family, with a tokenizer, as a checkpoint that comes trained would lie on a disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from headdyn.models.config import DecoderConfig
from headdyn.models.families import export_pretrained
from tests.small_models import GPT2, GQA, MHA, NEOX, OLMO2, OLMO3, SLIDING, drawn
from tests.small_tokenizer import byte_level

FAMILIES: dict[str, DecoderConfig] = {
    "llama": dataclasses.replace(GQA, qk_norm=False),
    "mistral": SLIDING,
    "qwen2": dataclasses.replace(GQA, qk_norm=False, qkv_bias=True),
    "qwen3": MHA,
    "olmo2": OLMO2,
    "olmo3": OLMO3,
    "gpt_neox": dataclasses.replace(NEOX, head_dim=4),
    "gpt2": dataclasses.replace(GPT2, head_dim=4, max_positions=64),
}


def checkpoint(folder: Path, family: str = "gpt_neox", seed: int = 0, *, with_tokenizer: bool = True) -> Path:
    """A folder with a small model of the family in float32, its vocabulary padded beyond the tokenizer's."""
    config = dataclasses.replace(FAMILIES[family], vocab_size=len(byte_level()) + 5)
    export_pretrained(drawn(config, seed).float(), folder, family, max_positions=64)
    if with_tokenizer:
        byte_level().save_pretrained(folder)
    return folder
