"""The settings of a decoder. No torch here: a configuration is checked before anything heavy is imported."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The settings of a decoder, which cover every supported family. The defaults are Mini-Qwen3's.

    Raises ValueError for numbers of heads and channels that do not fit, and for combinations that no family has.
    """

    vocab_size: int
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    parallel_residual: bool = False  # GPT-NeoX: attention and MLP both read the block's input
    post_norm: bool = False  # OLMo-2: norms act on the outputs of attention and MLP, not on their inputs
    rotary_fraction: float = 1.0  # share of head_dim that rotates (rotate-half layout); 0 is NoPE and DroPE
    rotary_theta: float = 1e6
    rotary_frequencies: tuple[float, ...] | None = None  # explicit table for rescaled RoPE (Llama 3.1)
    max_positions: int = 0  # learned absolute positions (GPT-2); 0 is none
    qk_norm: bool = True  # RMSNorm on q and k, before rotation
    qk_norm_over: Literal["head", "layer"] = "head"  # over each head's channels, or over those of all heads (OLMo-2)
    mlp: Literal["swiglu", "gelu", "gelu_tanh"] = "swiglu"
    qkv_bias: bool = False
    out_bias: bool = False  # of the attention's output projection
    mlp_bias: bool = False
    tied_embeddings: bool = True
    # Keys further back than this are masked (Mistral). A tuple has a window for each layer, None for all keys (OLMo-3).
    sliding_window: int | tuple[int | None, ...] | None = None

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            fits = [g for g in range(1, self.num_heads + 1) if self.num_heads % g == 0]
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}; "
                f"set attention.num_kv_heads to one of {fits}"
            )
        if self.post_norm and (self.norm != "rms" or self.parallel_residual):
            raise ValueError("post_norm=True goes with norm='rms' and parallel_residual=False, as in OLMo-2")
        if self.rotary_dim % 2:
            raise ValueError(
                f"RoPE rotates pairs, but rotary width {self.rotary_dim} (of head_dim={self.head_dim}) is odd; "
                "set an even model.head_dim or position_enc=nope"
            )
        if self.rotary_frequencies is not None and 2 * len(self.rotary_frequencies) != self.rotary_dim:
            raise ValueError(
                f"{len(self.rotary_frequencies)} rotary_frequencies turn pairs of channels, but {self.rotary_dim} "
                f"channels rotate; give {self.rotary_dim // 2}"
            )

    def window(self, layer: int) -> int | None:
        """How many keys a query of the layer can attend to, that of its own token included; None is all up to it."""
        return self.sliding_window[layer] if isinstance(self.sliding_window, tuple) else self.sliding_window

    @property
    def rotary_dim(self) -> int:
        """How many channels of a head rotate."""
        return int(self.head_dim * self.rotary_fraction)

    @property
    def queries_per_group(self) -> int:
        """How many query heads share one key/value head."""
        return self.num_heads // self.num_kv_heads

    def without_positions(self) -> DecoderConfig:
        """The same model with RoPE dropped in all layers at once (DroPE before recalibration)."""
        return dataclasses.replace(self, rotary_fraction=0.0, rotary_frequencies=None)
