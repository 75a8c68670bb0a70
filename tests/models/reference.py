"""The decoder written a second time, the slow way: one head, one query at a time, rotation by complex numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from headdyn.models.decoder import Decoder


def run(
    decoder: Decoder,
    tokens_BT: Tensor,
    replaced: Mapping[tuple[str, int], Tensor] | None = None,
    documents_BT: Tensor | None = None,
) -> tuple[Tensor, dict[tuple[str, int], Tensor]]:
    """Logits and every site, sites in `replaced` taking the value given there."""
    rows = [
        _row(
            decoder,
            tokens_BT[b],
            {site: value[b] for site, value in (replaced or {}).items()},
            torch.zeros_like(tokens_BT[b]) if documents_BT is None else documents_BT[b],
        )
        for b in range(len(tokens_BT))
    ]
    sites = {site: torch.stack([row[1][site] for row in rows]) for site in rows[0][1]}
    return torch.stack([row[0] for row in rows]), sites


def _row(
    decoder: Decoder, tokens_T: Tensor, replaced: Mapping[tuple[str, int], Tensor], documents_T: Tensor
) -> tuple[Tensor, dict[tuple[str, int], Tensor]]:
    c = decoder.config
    weights = dict(decoder.named_parameters())
    if c.tied_embeddings:
        weights["unembed.weight"] = weights["embed.weight"]
    sites: dict[tuple[str, int], Tensor] = {}
    length = len(tokens_T)

    def site(name: str, layer: int, x: Tensor) -> Tensor:
        sites[name, layer] = replaced.get((name, layer), x)
        return sites[name, layer]

    def linear(name: str, x: Tensor, part: slice = slice(None)) -> Tensor:
        y = x @ weights[f"{name}.weight"][part].T
        return y + weights[f"{name}.bias"][part] if f"{name}.bias" in weights else y

    def norm(name: str, x: Tensor) -> Tensor:
        if f"{name}.bias" in weights:
            x = x - x.mean(-1, keepdim=True)
        scaled = x / ((x * x).mean(-1, keepdim=True) + c.norm_eps).sqrt() * weights[f"{name}.weight"]
        return scaled + weights[f"{name}.bias"] if f"{name}.bias" in weights else scaled

    def rotated(x_Td: Tensor) -> Tensor:
        half = c.rotary_dim // 2
        x_Td = x_Td.clone()
        for i in range(half):
            frequency = c.rotary_theta ** (-2 * i / c.rotary_dim)
            if c.rotary_frequencies is not None:
                frequency = c.rotary_frequencies[i]
            turn = torch.exp(1j * frequency * torch.arange(length, dtype=torch.float64))
            turned = torch.complex(x_Td[:, i], x_Td[:, half + i]) * turn
            x_Td[:, i], x_Td[:, half + i] = turned.real, turned.imag
        return x_Td

    def mlp(layer: int, x: Tensor) -> Tensor:
        up = linear(f"blocks.{layer}.mlp.up", x)
        if c.mlp == "swiglu":
            gate = linear(f"blocks.{layer}.mlp.gate", x)
            hidden = gate / (1 + torch.exp(-gate)) * up
        elif c.mlp == "gelu":
            hidden = up * (1 + torch.erf(up / math.sqrt(2))) / 2
        else:
            hidden = up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3))) / 2
        return linear(f"blocks.{layer}.mlp.down", hidden)

    x = weights["embed.weight"][tokens_T]
    if c.max_positions:
        x = x + weights["positions.weight"][:length]
    for layer in range(c.num_layers):
        x = site("resid_pre", layer, x)
        name = f"blocks.{layer}.attention"
        normed = x if c.post_norm else norm(f"blocks.{layer}.norm1", x)

        def by_head(kind: str, heads: int, name: str = name, normed: Tensor = normed) -> Tensor:
            parts = []
            whole = linear(f"{name}.{kind}", normed)
            if kind != "v" and c.qk_norm and c.qk_norm_over == "layer":
                whole = norm(f"{name}.{kind}_norm", whole)
            for h in range(heads):
                part = whole[:, h * c.head_dim : (h + 1) * c.head_dim]
                if kind != "v":
                    per_head = c.qk_norm and c.qk_norm_over == "head"
                    part = rotated(norm(f"{name}.{kind}_norm", part) if per_head else part)
                parts.append(part)
            return torch.stack(parts, dim=1)

        q, k, v = (
            site(kind, layer, by_head(kind, heads))
            for kind, heads in (("q", c.num_heads), ("k", c.num_kv_heads), ("v", c.num_kv_heads))
        )
        pattern = torch.zeros(c.num_heads, length, length, dtype=x.dtype)
        window = c.sliding_window[layer] if isinstance(c.sliding_window, tuple) else c.sliding_window
        for h in range(c.num_heads):
            for t in range(length):
                first = 0 if window is None else max(0, t - window + 1)
                seen = [j for j in range(first, t + 1) if documents_T[j] == documents_T[t]]
                scores = torch.stack([q[t, h] @ k[j, h * c.num_kv_heads // c.num_heads] for j in seen])
                weight = torch.exp(scores / math.sqrt(c.head_dim))
                pattern[h, t, seen] = weight / weight.sum()
        pattern = site("pattern", layer, pattern)
        z = torch.zeros(length, c.num_heads, c.head_dim, dtype=x.dtype)
        for h in range(c.num_heads):
            z[:, h] = pattern[h] @ v[:, h * c.num_kv_heads // c.num_heads]
        z = site("z", layer, z)
        written = linear(f"{name}.o", z.flatten(1))
        attn_out = site("attn_out", layer, norm(f"blocks.{layer}.norm1", written) if c.post_norm else written)
        mlp_in = x if c.parallel_residual else x + attn_out
        if c.post_norm:
            mlp_out = norm(f"blocks.{layer}.norm2", mlp(layer, mlp_in))
        else:
            mlp_out = mlp(layer, norm(f"blocks.{layer}.norm2", mlp_in))
        mlp_out = site("mlp_out", layer, mlp_out)
        x = site("resid_post", layer, x + attn_out + mlp_out)
    return linear("unembed", norm("norm", x)), sites
