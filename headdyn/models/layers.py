"""The decoder's parts: norm, rotary positions, attention, MLP and the block that joins them.

Shape suffixes as in models/decoder.py; here also r, the rotated width of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from headdyn.models.config import DecoderConfig
from headdyn.models.tracing import Tap

Rotary = tuple[Float[Tensor, "T r"], Float[Tensor, "T r"]]  # cos and sin
KeysValues = tuple[Float[Tensor, "B _ G d"], Float[Tensor, "B _ G d"]]  # of all tokens so far


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class Norm(nn.Module):
    """RMSNorm or LayerNorm, in at least float32 whatever the input's dtype, as Hugging Face computes it."""

    def __init__(self, width: int, kind: str, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if kind == "layer" else None
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Normalise the last axis; an RMSNorm's result has the dtype to which torch promotes the input's and gain's."""
        if self.bias is not None:
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        wide = _at_least_float32(x)
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def rotate(
    x_BTHd: Float[Tensor, "B T H d"], cos_Tr: Float[Tensor, "T r"], sin_Tr: Float[Tensor, "T r"]
) -> Float[Tensor, "B T H d"]:
    """Rotary embedding in the rotate-half layout, on the first r channels of each head."""
    half = cos_Tr.shape[-1] // 2  # both halves of the channels have the same angles
    # Split, not sliced: the gradient of a slice is a whole array of zeros around it, of a split one concatenation.
    first, second, rest = x_BTHd.split((half, half, x_BTHd.shape[-1] - 2 * half), dim=-1)
    cos, sin = (table_Tr[:, None, :half].to(x_BTHd.dtype) for table_Tr in (cos_Tr, sin_Tr))
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def rotary_tables(
    length: int, offset: int, width: int, theta: float, frequencies: tuple[float, ...] | None, device: torch.device
) -> Float[Tensor, "2 T r"]:
    """cos and sin for `length` positions from `offset` on and the `width` (r) channels of a head that rotate.

    `frequencies` [r / 2], in radians a position, replace those that follow from `theta`. The compiler takes the result
    for a constant (training/objective.py).
    """
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
    """Attention with the causal mask, or with the given one, which must be causal too."""
    groups, length = k_BGKd.shape[1:3]
    if q_BHQd.device.type == "cpu" and torch.is_autocast_enabled("cpu") and q_BHQd.shape[2] == length:
        dtype = torch.get_autocast_dtype("cpu")
        q_BGhTd = (q_BHQd * q_BHQd.shape[-1] ** -0.5).unflatten(1, (groups, -1))
        q_BGhTd, k_BGKd, v_BGKd = (x.to(dtype).contiguous() for x in (q_BGhTd, k_BGKd, v_BGKd))
        return BlockwiseAttention.apply(q_BGhTd, k_BGKd, v_BGKd, mask_QK).flatten(1, 2)
    return F.scaled_dot_product_attention(
        q_BHQd, k_BGKd, v_BGKd, attn_mask=mask_QK, is_causal=mask_QK is None, enable_gqa=groups != q_BHQd.shape[1]
    )


class BlockwiseAttention(torch.autograd.Function):
    """Causal attention for bfloat16 on a CPU: products in bfloat16, softmax in float32, queries in blocks.

    Each block of queries computes scores only for keys up to its last query, and stores its pattern in bfloat16 alone.
    Shapes: h query heads read each of G key/value heads; scores and patterns of a block are matrices whose rows are the
    block's queries of all h heads. The mask is [Q, K] or [B, 1, Q, K]; None means causal.

    Backward is written out, because autograd would also store patterns in float32, mask gradients that are zero
    already, and transpose the gradients of the keys: a compiled training step takes 131 ms with autograd's and 118 ms
    with this (D128 L2 H4 d32 B32 T128, one core).
    """

    @staticmethod
    def forward(ctx: FunctionCtx, q_BGhTd: Tensor, k_BGTd: Tensor, v_BGTd: Tensor, mask_QK: Tensor | None) -> Tensor:
        patterns, z = [], []
        for start, stop in _blocks(k_BGTd.shape[2]):
            scores = _rows(q_BGhTd, start, stop) @ k_BGTd[:, :, :stop].mT
            if mask_QK is None:
                keys = torch.arange(stop, device=scores.device)
                allowed = keys <= keys[start:, None]
            else:
                allowed = mask_QK[..., start:stop, :stop].unsqueeze(-3)
            scores_BGhQK = _at_least_float32(scores.unflatten(2, (-1, stop - start)))
            pattern = torch.where(allowed, scores_BGhQK, -torch.inf).softmax(-1).to(scores.dtype).flatten(2, 3)
            patterns.append(pattern)
            z.append((pattern @ v_BGTd[:, :, :stop]).unflatten(2, (-1, stop - start)))
        ctx.save_for_backward(q_BGhTd, k_BGTd, v_BGTd, *patterns)
        return torch.cat(z, dim=-2)

    @staticmethod
    def backward(ctx: Any, gradient_BGhTd: Tensor) -> tuple[Tensor | None, ...]:
        q_BGhTd, k_BGTd, v_BGTd, *patterns = ctx.saved_tensors
        q_gradients, kv_gradients = [], []
        for (start, stop), pattern in zip(_blocks(k_BGTd.shape[2]), patterns, strict=True):
            gradient = _rows(gradient_BGhTd, start, stop)
            wide, by_pattern = (_at_least_float32(x) for x in (pattern, gradient @ v_BGTd[:, :, :stop].mT))
            by_scores = (wide * (by_pattern - (wide * by_pattern).sum(-1, keepdim=True))).to(pattern.dtype)
            q_gradients.append((by_scores @ k_BGTd[:, :, :stop]).unflatten(2, (-1, stop - start)))
            kv_gradients.append((by_scores.mT @ _rows(q_BGhTd, start, stop), pattern.mT @ gradient))
        k_gradient, v_gradient = (_sum_of_prefixes(parts) for parts in zip(*kv_gradients, strict=True))
        return torch.cat(q_gradients, dim=-2), k_gradient, v_gradient, None


def _blocks(length: int) -> list[tuple[int, int]]:
    """The (start, stop) of each block of queries: up to four blocks, of 64 queries or more."""
    count = max(1, min(4, length // 64))
    return [(i * length // count, (i + 1) * length // count) for i in range(count)]


def _rows(x_BGhTd: Tensor, start: int, stop: int) -> Tensor:
    """The block's queries of all heads of a group, as rows of one matrix."""
    return x_BGhTd[:, :, :, start:stop].flatten(2, 3)


def _sum_of_prefixes(parts: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of growing length, each aligned at its first row; as long as the last, longest one."""
    total = parts[0]
    for part in parts[1:]:
        rows = total.shape[2]
        total = torch.cat((total + part[:, :, :rows], part[:, :, rows:]), dim=2)
    return total


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
        normed_heads = (c.num_heads, c.num_kv_heads) if c.qk_norm_over == "layer" else (1, 1)
        q_width, k_width = (heads * c.head_dim for heads in normed_heads)
        self.q_norm = Norm(q_width, "rms", c.norm_eps) if c.qk_norm else None
        self.k_norm = Norm(k_width, "rms", c.norm_eps) if c.qk_norm else None

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
        q_BTHd = _normed(self.q_norm, self.q(x_BTD)).view(batch, length, c.num_heads, c.head_dim)
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
        """The keys (after norm and rotation) and values of these tokens; x is the output of the block's first norm."""
        batch, length, _ = x_BTD.shape
        k_BTGd = _normed(self.k_norm, self.k(x_BTD)).view(batch, length, self.config.num_kv_heads, self.config.head_dim)
        v_BTGd = self.v(x_BTD).view(batch, length, self.config.num_kv_heads, self.config.head_dim)
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
        return _at_least_float32(scores_BHQK).masked_fill(~mask_QK, -torch.inf).softmax(-1).to(scores_BHQK.dtype)


def _normed(norm: Norm | None, x_BTX: Float[Tensor, "B T X"]) -> Float[Tensor, "B T X"]:
    """q or k of all heads, side by side, after the norm, whose width is that of one head or of all heads together."""
    return x_BTX if norm is None else norm(x_BTX.unflatten(-1, (-1, len(norm.weight)))).flatten(-2)


_GELU = {"gelu": "none", "gelu_tanh": "tanh"}  # gelu's argument `approximate`, by DecoderConfig.mlp


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
        """The MLP's output, which at every position depends on that position alone."""
        if self.gate is not None:
            return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))
        return self.down(F.gelu(self.up(x_BTD), approximate=_GELU[self.kind]))


class Block(nn.Module):
    """Attention and MLP, one after the other, or both on the block's input (`parallel`).

    Each has a norm on its input, or with `post_norm` on its output. The sites attn_out and mlp_out are what is added to
    the residual stream; with `post_norm` that is the norm's output.
    """

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.parallel, self.post_norm, self.layer = config.parallel_residual, config.post_norm, layer
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
        attn_out_BTD, keys_values = self.attention(self.reads(self.norm1, x_BTD), rotary, mask_QK, tap, past)
        attn_out_BTD = self.writes(self.norm1, attn_out_BTD)
        if tap is not None:
            attn_out_BTD = tap("attn_out", self.layer, attn_out_BTD)
        middle_BTD = x_BTD + attn_out_BTD
        mlp_out_BTD = self.mlp_out(x_BTD if self.parallel else middle_BTD)
        if tap is not None:
            mlp_out_BTD = tap("mlp_out", self.layer, mlp_out_BTD)
        x_BTD = middle_BTD + mlp_out_BTD
        return (x_BTD if tap is None else tap("resid_post", self.layer, x_BTD)), keys_values

    def reads(self, norm: Norm, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The input of attention or MLP, given the residual stream x."""
        return x_BTD if self.post_norm else norm(x_BTD)

    def writes(self, norm: Norm, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """What is added to the residual stream, given the output x of attention or MLP."""
        return norm(x_BTD) if self.post_norm else x_BTD

    def mlp_out(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """What the MLP adds to the residual stream, given the residual stream x that it reads."""
        return self.writes(self.norm2, self.mlp(self.reads(self.norm2, x_BTD)))
