"""The decoder's parts: norm, rotary positions, attention, MLP and the block that joins them.

Shape suffixes as in models/decoder.py; here also r, the rotated width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from headdyn.models.config import DecoderConfig
from headdyn.models.tracing import Tap

Rotary = tuple[Float[Tensor, "T r"], Float[Tensor, "T r"]]  # cos and sin
KeysValues = tuple[Float[Tensor, "B _ G d"], Float[Tensor, "B _ G d"]]  # of the tokens so far


class Norm(nn.Module):
    """RMSNorm or LayerNorm, in at least float32 whatever the input's dtype, as Hugging Face computes it."""

    def __init__(self, width: int, kind: str, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if kind == "layer" else None
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Normalise the last axis; the result has the input's dtype times the gain's."""
        if self.bias is not None:
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def rotate(
    x_BTHd: Float[Tensor, "B T H d"], cos_Tr: Float[Tensor, "T r"], sin_Tr: Float[Tensor, "T r"]
) -> Float[Tensor, "B T H d"]:
    """Rotary embedding in the rotate-half layout, on the first r channels of each head."""
    half = cos_Tr.shape[-1] // 2  # both halves of the channels have the same angles
    first, second, rest = x_BTHd[..., :half], x_BTHd[..., half : 2 * half], x_BTHd[..., 2 * half :]
    cos, sin = (table_Tr[:, None, :half].to(x_BTHd.dtype) for table_Tr in (cos_Tr, sin_Tr))
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def rotary_tables(
    length: int, offset: int, width: int, theta: float, frequencies: tuple[float, ...] | None, device: torch.device
) -> Float[Tensor, "2 T r"]:
    """cos and sin, a constant to the compiler (training/objective.py)."""
    if frequencies is not None:
        frequencies_r = torch.tensor(frequencies, dtype=torch.float32, device=device)
    else:
        exponents_r = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
        frequencies_r = 1.0 / theta**exponents_r
    angles_Tr = torch.arange(offset, offset + length, dtype=torch.float32, device=device)[:, None] * frequencies_r
    angles_Tr = torch.cat((angles_Tr, angles_Tr), dim=-1)
    return torch.stack((angles_Tr.cos(), angles_Tr.sin()))


def _attend(
    q_BHQd: Float[Tensor, "B H Q d"],
    k_BGKd: Float[Tensor, "B G K d"],
    v_BGKd: Float[Tensor, "B G K d"],
    mask_QK: Bool[Tensor, "*rows Q K"] | None,
) -> Float[Tensor, "B H Q d"]:
    """Attention with the causal mask, or the one given."""
    if q_BHQd.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        if mask_QK is None:
            return _attend_in_halves(q_BHQd, k_BGKd, v_BGKd)
        with torch.autocast("cpu", enabled=False):  # the fused kernel is 2.5 times slower in bfloat16 (D128 d32 T128)
            return _attend(q_BHQd.float(), k_BGKd.float(), v_BGKd.float(), mask_QK)
    return F.scaled_dot_product_attention(
        q_BHQd,
        k_BGKd,
        v_BGKd,
        attn_mask=mask_QK,
        is_causal=mask_QK is None,
        enable_gqa=k_BGKd.shape[1] != q_BHQd.shape[1],
    )


def _attend_in_halves(
    q_BHTd: Float[Tensor, "B H T d"], k_BGTd: Float[Tensor, "B G T d"], v_BGTd: Float[Tensor, "B G T d"]
) -> Float[Tensor, "B H T d"]:
    """Causal attention for bfloat16 on a CPU: the earlier half of the queries never sees the later half of the keys.

    Products in bfloat16, softmax in float32. Compiled, a training step took 166 ms where the fused kernel in float32
    made it 187 (D128 L4 H4 d32 B32 T128, one core); 562 against 644 at D256 d64 B16 T256.
    """
    dtype = torch.get_autocast_dtype("cpu")
    groups, length = k_BGTd.shape[1], k_BGTd.shape[2]
    q_BGhTd = (q_BHTd * q_BHTd.shape[-1] ** -0.5).to(dtype).unflatten(1, (groups, -1))
    k_BG1Td, v_BG1Td = k_BGTd.to(dtype).unsqueeze(2), v_BGTd.to(dtype).unsqueeze(2)
    parts = []
    for start, stop in ((0, length // 2), (length // 2, length)):
        scores = q_BGhTd[..., start:stop, :] @ k_BG1Td[..., :stop, :].mT
        unseen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(start + 1)
        pattern = scores.masked_fill(unseen, -torch.inf).softmax(dim=-1, dtype=torch.float32)
        parts.append(pattern.to(dtype) @ v_BG1Td[..., :stop, :])
    return torch.cat(parts, dim=-2).flatten(1, 2)


class Attention(nn.Module):
    """Causal self-attention over H query heads that read G key/value heads."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        c = config
        self.q = nn.Linear(c.d_model, c.num_heads * c.head_dim, bias=c.qkv_bias)
        self.k = nn.Linear(c.d_model, c.num_kv_heads * c.head_dim, bias=c.qkv_bias)
        self.v = nn.Linear(c.d_model, c.num_kv_heads * c.head_dim, bias=c.qkv_bias)
        self.o = nn.Linear(c.num_heads * c.head_dim, c.d_model, bias=c.out_bias)
        self.q_norm = Norm(c.head_dim, "rms", c.norm_eps) if c.qk_norm else None
        self.k_norm = Norm(c.head_dim, "rms", c.norm_eps) if c.qk_norm else None

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        rotary: Rotary | None,
        mask_QK: Bool[Tensor, "*rows T K"] | None,
        tap: Tap | None = None,
        past: KeysValues | None = None,
    ) -> tuple[Float[Tensor, "B T D"], KeysValues]:
        """Return attn_out_BTD and this layer's keys and values, the past ones included."""
        c = self.config
        batch, length, _ = x_BTD.shape
        q_BTHd = self.q(x_BTD).view(batch, length, c.num_heads, c.head_dim)
        if self.q_norm is not None:
            q_BTHd = self.q_norm(q_BTHd)
        if rotary is not None:
            q_BTHd = rotate(q_BTHd, *rotary)
        k_BTGd, v_BTGd = self.keys_values(x_BTD, rotary)
        if tap is not None:
            q_BTHd = tap("q", self.layer, q_BTHd)
            k_BTGd = tap("k", self.layer, k_BTGd)
            v_BTGd = tap("v", self.layer, v_BTGd)
        if past is not None:
            k_BTGd, v_BTGd = torch.cat((past[0], k_BTGd), dim=1), torch.cat((past[1], v_BTGd), dim=1)

        q_BHQd, k_BGKd, v_BGKd = q_BTHd.transpose(1, 2), k_BTGd.transpose(1, 2), v_BTGd.transpose(1, 2)
        if tap is not None and tap.concerns("pattern", self.layer):
            pattern_BHQK = tap("pattern", self.layer, self.pattern(q_BHQd, k_BGKd, mask_QK))
            z_BHQd = pattern_BHQK @ v_BGKd.repeat_interleave(c.queries_per_group, dim=1)
        else:
            z_BHQd = _attend(q_BHQd, k_BGKd, v_BGKd, mask_QK)
        z_BTHd = z_BHQd.transpose(1, 2)
        if tap is not None:
            z_BTHd = tap("z", self.layer, z_BTHd)
        return self.o(z_BTHd.reshape(batch, length, -1)), (k_BTGd, v_BTGd)

    def keys_values(self, x_BTD: Float[Tensor, "B T D"], rotary: Rotary | None) -> KeysValues:
        """The keys (after norm and rotation) and values of these tokens; x is behind the block's first norm."""
        batch, length, _ = x_BTD.shape
        k_BTGd = self.k(x_BTD).view(batch, length, self.config.num_kv_heads, self.config.head_dim)
        v_BTGd = self.v(x_BTD).view(batch, length, self.config.num_kv_heads, self.config.head_dim)
        if self.k_norm is not None:
            k_BTGd = self.k_norm(k_BTGd)
        return (k_BTGd if rotary is None else rotate(k_BTGd, *rotary)), v_BTGd

    def pattern(
        self,
        q_BHQd: Float[Tensor, "B H Q d"],
        k_BGKd: Float[Tensor, "B G K d"],
        mask_QK: Bool[Tensor, "*rows Q K"] | None,
    ) -> Float[Tensor, "B H Q K"]:
        """Post-softmax attention weights, the softmax in at least float32."""
        if mask_QK is None:
            mask_QK = torch.ones(q_BHQd.shape[2], k_BGKd.shape[2], dtype=torch.bool, device=q_BHQd.device).tril()
        k_BHKd = k_BGKd.repeat_interleave(self.config.queries_per_group, dim=1)
        scores_BHQK = (q_BHQd @ k_BHKd.mT) * self.config.head_dim**-0.5
        scores_BHQK = scores_BHQK.masked_fill(~mask_QK, -torch.inf)
        wide = torch.float32 if scores_BHQK.dtype in (torch.bfloat16, torch.float16) else scores_BHQK.dtype
        return scores_BHQK.softmax(dim=-1, dtype=wide).to(scores_BHQK.dtype)


class MLP(nn.Module):
    """SwiGLU, or one hidden layer of GELU (exact, or GPT-2's tanh approximation)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.kind = config.mlp
        gated = config.mlp == "swiglu"
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=config.mlp_bias) if gated else None
        self.up = nn.Linear(config.d_model, config.d_ff, bias=config.mlp_bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.mlp_bias)

    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Act on every position by itself."""
        if self.gate is not None:
            return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))
        return self.down(F.gelu(self.up(x_BTD), approximate="tanh" if self.kind == "gelu_tanh" else "none"))


class Block(nn.Module):
    """Attention and MLP, each behind its norm, one after the other or both on the block's input."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.parallel, self.layer = config.parallel_residual, layer
        self.norm1 = Norm(config.d_model, config.norm, config.norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = Norm(config.d_model, config.norm, config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        rotary: Rotary | None,
        mask_QK: Bool[Tensor, "*rows T K"] | None,
        tap: Tap | None = None,
        past: KeysValues | None = None,
    ) -> tuple[Float[Tensor, "B T D"], KeysValues]:
        """Return resid_post_BTD and this layer's keys and values."""
        if tap is not None:
            x_BTD = tap("resid_pre", self.layer, x_BTD)
        attn_out_BTD, keys_values = self.attention(self.norm1(x_BTD), rotary, mask_QK, tap, past)
        if tap is not None:
            attn_out_BTD = tap("attn_out", self.layer, attn_out_BTD)
        middle_BTD = x_BTD + attn_out_BTD
        mlp_out_BTD = self.mlp(self.norm2(x_BTD if self.parallel else middle_BTD))
        if tap is not None:
            mlp_out_BTD = tap("mlp_out", self.layer, mlp_out_BTD)
        x_BTD = middle_BTD + mlp_out_BTD
        return (x_BTD if tap is None else tap("resid_post", self.layer, x_BTD)), keys_values
