"""Small decoders of every shape the package supports, with weights drawn so that a wrong model shows."""

from __future__ import annotations

import dataclasses

import torch

from headdyn.models.config import DecoderConfig
from headdyn.models.decoder import Decoder

MHA = DecoderConfig(vocab_size=29, num_layers=3, d_model=16, num_heads=4, num_kv_heads=4, head_dim=6, d_ff=20)
GQA = dataclasses.replace(MHA, num_kv_heads=2)
NOPE = GQA.without_positions()
RESCALED = dataclasses.replace(MHA, qk_norm=False, rotary_frequencies=(0.9, 0.11, 0.013))
SLIDING = dataclasses.replace(GQA, qk_norm=False, rotary_theta=1e4, tied_embeddings=False, sliding_window=3)
NEOX = dataclasses.replace(
    MHA,
    head_dim=8,
    norm="layer",
    parallel_residual=True,
    rotary_fraction=0.5,
    qk_norm=False,
    mlp="gelu",
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    tied_embeddings=False,
)
GPT2 = dataclasses.replace(
    NEOX, parallel_residual=False, rotary_fraction=0.0, max_positions=24, mlp="gelu_tanh", tied_embeddings=True
)
OLMO2 = dataclasses.replace(GQA, head_dim=4, post_norm=True, qk_norm_over="layer", tied_embeddings=False)
OLMO3 = dataclasses.replace(OLMO2, sliding_window=(3, None, 3), rotary_theta=5e5)
CONFIGS = {
    "mha": MHA,
    "gqa": GQA,
    "nope": NOPE,
    "rescaled": RESCALED,
    "sliding": SLIDING,
    "neox": NEOX,
    "gpt2": GPT2,
    "olmo2": OLMO2,
    "olmo3": OLMO3,
}


@torch.no_grad()
def drawn(config: DecoderConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> Decoder:
    """Matrices from N(0, 1/D), gains around 1 and biases around 0, so that dropping or swapping any of them shows."""
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(config).to(dtype)
    for name, parameter in decoder.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim == 2:
            parameter.copy_(noise * config.d_model**-0.5)
        else:
            parameter.copy_((0.0 if name.endswith("bias") else 1.0) + 0.3 * noise)
    return decoder


def tokens(rows: int, length: int, seed: int = 0, vocab_size: int = MHA.vocab_size) -> torch.Tensor:
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))
