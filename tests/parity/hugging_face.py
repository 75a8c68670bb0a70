"""What Hugging Face's own model computes: logits, each head's z (the output projection's input), patterns."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

logging.disable_progress_bar()

OUTPUT_PROJECTION = re.compile(r"(o_proj|attention\.dense|attn\.c_proj)$")


def build(config: PreTrainedConfig, folder: Path, seed: int = 0) -> Path:
    """A folder with stock weights: matrices from N(0, 1/D), gains around 1, biases around 0."""
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                parameter.copy_(noise * config.hidden_size**-0.5)
            else:
                parameter.copy_((0.0 if name.endswith("bias") else 1.0) + 0.3 * noise)
    model.save_pretrained(folder)
    return folder


def load(folder: Path, attention: str = "sdpa") -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()


@torch.no_grad()
def outputs(model: PreTrainedModel, tokens_BT: Tensor, **arguments: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """logits_BTV, and per layer z_BTHd and pattern_BHQK (patterns only from an eager model)."""
    z: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        z.append(inputs[0].unflatten(-1, (model.config.num_attention_heads, -1)))

    handles = [
        module.register_forward_pre_hook(keep)
        for name, module in model.named_modules()
        if OUTPUT_PROJECTION.search(name)
    ]
    eager = model.config._attn_implementation == "eager"
    result = model(tokens_BT, output_attentions=eager, **arguments)
    for handle in handles:
        handle.remove()
    assert len(z) == model.config.num_hidden_layers
    return result.logits, z, list(result.attentions or [])


def logits(folder: Path, tokens_BT: Tensor) -> Tensor:
    return outputs(load(folder), tokens_BT)[0]
