"""The comparison every family goes through."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from headdyn.models.decoder import Decoder
from tests.parity import hugging_face

# Measured against logits of standard deviation near 1, fused and eager: Qwen3, Qwen2, Llama and Mistral are equal to
# the bit, GPT-NeoX and GPT-2 within 1.4e-6 (a parallel block and GPT-2's fused products add up in another order).
ATOL = 1e-5


@torch.no_grad()
def differences(decoder: Decoder, folder: Path, tokens_BT: Tensor) -> dict[str, float]:
    """Largest absolute difference to Hugging Face's model in `folder`, by what is compared."""
    trace = decoder.trace(tokens_BT, sites=("z",))
    fused, z, _ = hugging_face.outputs(hugging_face.load(folder), tokens_BT)
    explicit = decoder.trace(tokens_BT, sites=("z", "pattern"))
    eager, eager_z, patterns = hugging_face.outputs(hugging_face.load(folder, "eager"), tokens_BT)
    layers = range(decoder.config.num_layers)
    return {
        "logits": (decoder(tokens_BT) - fused).abs().max().item(),
        "z": max((trace["z", layer] - z[layer]).abs().max().item() for layer in layers),
        "eager logits": (explicit.logits - eager).abs().max().item(),
        "eager z": max((explicit["z", layer] - eager_z[layer]).abs().max().item() for layer in layers),
        "patterns": max((explicit["pattern", layer] - patterns[layer]).abs().max().item() for layer in layers),
    }


def assert_parity(decoder: Decoder, folder: Path, tokens_BT: Tensor) -> None:
    assert decoder(tokens_BT).std() > 0.5  # else the tolerance would mean little
    assert decoder.embed.weight.dtype == torch.float32
    for name, difference in differences(decoder, folder, tokens_BT).items():
        assert difference < ATOL, f"{name} differ by {difference:.1e}"


def assert_same_weights(mine: Decoder, its: Decoder) -> None:
    assert mine.config == its.config
    state = its.state_dict()
    for name, tensor in mine.state_dict().items():
        assert torch.equal(tensor, state[name]), name
