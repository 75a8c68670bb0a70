"""The one transformer: a readable decoder whose settings cover Qwen3, Llama, Mistral, Qwen2, GPT-NeoX and GPT-2.

Shape suffixes, used in the whole project: B batch, T tokens, Q query position, K key position,
H query heads, G key/value heads, D model width, d head width, L layers, V vocabulary, S topics. Here also
r the rotated width of a head.

There are no hooks. Internals are returned by `Decoder.trace`, interventions are arguments to it, and nothing here
changes a model. The fast path (`Decoder.__call__`) and the traced one run the same lines; a tap, absent on the fast
path, is what records and edits.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from headdyn.models.config import DecoderConfig

SITES = ("resid_pre", "q", "k", "v", "pattern", "z", "attn_out", "mlp_out", "resid_post")
_BY_HEAD = ("q", "k", "v", "z")  # shaped BTHd or BTGd; the others, pattern apart, are BTD

Rotary = tuple[Float[Tensor, "T r"], Float[Tensor, "T r"]]  # cos and sin
KeysValues = tuple[Float[Tensor, "B _ G d"], Float[Tensor, "B _ G d"]]  # of the tokens so far


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Replace a site's value: `x = torch.where(where, value, x)`, both broadcast to x; `where=None` is everywhere.

    `where` may differ by row, which is how many patching cells share one batch. Several edits of a site apply in the
    order given. Site shapes: resid_pre, attn_out, mlp_out, resid_post BTD; q and z BTHd; k and v BTGd;
    pattern BHQK (rows are not renormalised). A value or mask that does not broadcast to its site is a ValueError
    of the call that uses it.
    """

    site: str
    layer: int
    value: Tensor
    where: Tensor | None = None


@dataclass(frozen=True)
class Trace:
    """What `Decoder.trace` returns: the logits asked for and the site values, as `trace["z", 6]`."""

    logits: Tensor | None
    values: Mapping[tuple[str, int], Tensor]

    def __getitem__(self, key: tuple[str, int]) -> Tensor:
        if key not in self.values:
            raise KeyError(f"site {key} was not traced; traced: {sorted(self.values)}")
        return self.values[key]


@dataclass(frozen=True, kw_only=True)
class HeadWeights:
    """One layer's attention weights by head, in the order `x_BTD @ W`; gains and biases where the model has them."""

    q_HDd: Tensor
    k_GDd: Tensor
    v_GDd: Tensor
    o_HdD: Tensor
    norm_gain_D: Tensor
    norm_bias_D: Tensor | None
    q_gain_d: Tensor | None
    k_gain_d: Tensor | None
    q_bias_Hd: Tensor | None
    k_bias_Gd: Tensor | None
    v_bias_Gd: Tensor | None
    o_bias_D: Tensor | None


class _Tap:
    """Records the sites asked for, after applying the edits aimed at them."""

    def __init__(self, sites: Iterable[str], layers: Iterable[int], edits: Sequence[Edit]) -> None:
        self.asked = {(site, layer) for site in sites for layer in layers}
        self.edits = edits
        self.values: dict[tuple[str, int], Tensor] = {}

    def concerns(self, site: str, layer: int) -> bool:
        return (site, layer) in self.asked or any(e.site == site and e.layer == layer for e in self.edits)

    def __call__(self, site: str, layer: int, x: Tensor) -> Tensor:
        for edit in self.edits:
            if edit.site == site and edit.layer == layer:
                _check_broadcast(edit, x)
                value = edit.value.to(x.dtype)
                x = value.expand_as(x) if edit.where is None else torch.where(edit.where, value, x)
        if (site, layer) in self.asked:
            self.values[site, layer] = x
        return x


def _check_broadcast(edit: Edit, x: Tensor) -> None:
    """Refuse what torch.where would accept by growing x, as a value with more rows than the batch."""
    for name, given in (("value", edit.value), ("where", edit.where)):
        if given is None:
            continue
        sizes = zip(reversed(given.shape), reversed(x.shape), strict=False)
        if given.ndim > x.ndim or any(mine not in (1, its) for mine, its in sizes):
            raise ValueError(
                f"edit of {edit.site!r} at layer {edit.layer}: {name} of shape {tuple(given.shape)} does not broadcast "
                f"to the site's {tuple(x.shape)}"
            )


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


@torch.compiler.assume_constant_result
def _rotary_tables(
    length: int, offset: int, width: int, theta: float, frequencies: tuple[float, ...] | None, device: torch.device
) -> Float[Tensor, "2 T r"]:
    """cos and sin. A constant to the compiler, which would otherwise take the cosine of every position anew for every
    sequence, head, layer and pass: a tenth of a training step on a CPU."""
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
        tap: _Tap | None = None,
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
        tap: _Tap | None = None,
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


class Decoder(nn.Module):
    """A causal language model. `decoder(tokens_BT)` gives logits_BTV; `trace` gives whatever lies between.

    Raises ValueError where the configuration is impossible (see `DecoderConfig`).
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = nn.Embedding(config.max_positions, config.d_model) if config.max_positions else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = Norm(config.d_model, config.norm, config.norm_eps)
        self.unembed = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.unembed.weight = self.embed.weight

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, std: float = 0.02) -> Decoder:
        """Draw every matrix from N(0, std²), the two that write into the residual stream scaled by 1/√(2L) (GPT-2).

        Gains become 1 and biases 0, so that the generator alone decides every parameter.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            writes = name.endswith(("attention.o.weight", "mlp.down.weight"))
            parameter.normal_(0, std / math.sqrt(2 * self.config.num_layers) if writes else std, generator=generator)
        return self

    def forward(
        self, tokens_BT: Int[Tensor, "B T"], documents_BT: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T V"]:
        """Logits of the next token at every position. With `documents_BT`, no position attends across documents."""
        x_BTD = self.embeddings(tokens_BT, 0)
        rotary = self.rotary(tokens_BT.shape[1], 0)
        mask = self.mask(tokens_BT.shape[1], 0, documents_BT)
        for block in self.blocks:
            x_BTD, _ = block(x_BTD, rotary, mask)
        return self.unembed(self.norm(x_BTD))

    def embeddings(self, tokens_BT: Int[Tensor, "B T"], offset: int) -> Float[Tensor, "B T D"]:
        """What the first block reads, the first token standing at position `offset`.

        Raises ValueError where the tokens outrun learned positions.
        """
        x_BTD = self.embed(tokens_BT)
        if self.positions is not None:
            end = offset + tokens_BT.shape[1]
            if end > self.config.max_positions:
                raise ValueError(f"{end} tokens exceed the model's {self.config.max_positions} learned positions")
            x_BTD = x_BTD + self.positions.weight[offset:end]
        return x_BTD

    def rotary(self, length: int, offset: int) -> Rotary | None:
        """cos and sin of `length` positions; in float32 throughout, which parity with Hugging Face requires."""
        c = self.config
        if not c.rotary_dim:
            return None
        device = self.embed.weight.device
        tables_2Tr = _rotary_tables(length, offset, c.rotary_dim, c.rotary_theta, c.rotary_frequencies, device)
        return tables_2Tr[0], tables_2Tr[1]

    def mask(
        self, length: int, offset: int, documents_BT: Int[Tensor, "B T"] | None = None
    ) -> Bool[Tensor, "*rows T K"] | None:
        """True where a query may look, [Q, K] or with documents [B, 1, Q, K].

        None where plain causal attention is meant: SDPA is faster without a mask.
        """
        window = self.config.sliding_window
        if offset == 0 and documents_BT is None and (window is None or length <= window):
            return None
        device = self.embed.weight.device
        queries = torch.arange(offset, offset + length, device=device)[:, None]
        keys = torch.arange(offset + length, device=device)
        allowed = keys <= queries
        if window is not None:
            allowed = allowed & (keys > queries - window)
        if documents_BT is not None:
            allowed = allowed & (documents_BT[:, None, :, None] == documents_BT[:, None, None, :])
        return allowed

    def trace(
        self,
        tokens_BT: Int[Tensor, "B T"],
        *,
        sites: Sequence[str] = (),
        layers: Sequence[int] | None = None,
        edits: Sequence[Edit] = (),
        start: tuple[int, Float[Tensor, "rows T D"]] | None = None,
        logits: Literal["all", "last"] | None = "all",
        documents_BT: Int[Tensor, "B T"] | None = None,
    ) -> Trace:
        """Run the model and return internals, with interventions; differentiable, and the model stays as it was.

        `sites` at `layers` (default: all) are returned after the edits. `start=(layer, resid_BTD)` begins with that
        value at the layer's resid_pre and does not read the tokens; layer L leaves only norm and unembedding to do.
        `logits=None` stops behind the last layer asked for, "last" computes only the last position's logits, as
        [B, 1, V]. A pattern is formed only at layers that ask for it.
        Raises ValueError for an unknown site, a layer out of range, or an edit that does not fit its site.
        """
        first, x_BTD = (0, self.embeddings(tokens_BT, 0)) if start is None else start
        layers = range(first, self.config.num_layers) if layers is None else layers
        if not 0 <= first <= self.config.num_layers:
            raise ValueError(
                f"start layer {first} is out of range; this model can start at 0 to {self.config.num_layers}"
            )
        if logits not in ("all", "last", None):
            raise ValueError(f"logits={logits!r} is none of 'all', 'last' and None")
        self._check_sites([*sites, *(edit.site for edit in edits)])
        self._check_layers([*layers, *(edit.layer for edit in edits)], first)
        tap = _Tap(sites, layers, edits)
        stop = self.config.num_layers if logits else max(layers, default=first - 1) + 1
        length = x_BTD.shape[1]
        rotary, mask = self.rotary(length, 0), self.mask(length, 0, documents_BT)
        for block in self.blocks[first:stop]:
            x_BTD, _ = block(x_BTD, rotary, mask, tap)
        if logits == "last":
            x_BTD = x_BTD[:, -1:]
        return Trace(self.unembed(self.norm(x_BTD)) if logits else None, tap.values)

    def _check_sites(self, sites: Iterable[str]) -> None:
        for site in sites:
            if site not in SITES:
                raise ValueError(f"unknown site {site!r}; the sites are {', '.join(SITES)}")

    def _check_layers(self, layers: Iterable[int], first: int = 0) -> None:
        last = self.config.num_layers - 1
        for layer in layers:
            if not first <= layer <= last:
                where = f"this run starts at layer {first} and the last is" if first else "this model's are 0 to"
                raise ValueError(f"layer {layer} is out of range; {where} {last}")

    def _block(self, layer: int) -> Block:
        self._check_layers([layer])
        return cast(Block, self.blocks[layer])

    @torch.no_grad()
    def generate(
        self,
        tokens_BT: Int[Tensor, "B T"],
        steps: int,
        *,
        edits: Sequence[Edit] = (),
        edit_steps: Literal["prefill", "every_step"] = "prefill",
    ) -> Int[Tensor, "B T"]:
        """Greedy continuation by `steps` tokens with a key/value cache; returns prompt and continuation together.

        Edits act on the prompt. With `edit_steps="every_step"` each also acts on every new token, its first position
        standing for that token: what a forward hook does that goes on firing while a cached model decodes
        (science.md §10). Pattern edits are refused there, since their key axis grows.
        """
        if edit_steps == "every_step" and any(edit.site == "pattern" for edit in edits):
            raise ValueError("pattern edits cannot act on every decoding step; use edit_steps='prefill'")
        self._check_sites(edit.site for edit in edits)
        self._check_layers(edit.layer for edit in edits)
        later = [_first_position(edit) for edit in edits] if edit_steps == "every_step" else []
        past: list[KeysValues | None] = [None] * self.config.num_layers
        offset, step_tokens = 0, tokens_BT
        for step in range(steps):
            tap = _Tap((), (), later if step else edits)
            x_BTD = self.embeddings(step_tokens, offset)
            length = step_tokens.shape[1]
            rotary, mask = self.rotary(length, offset), self.mask(length, offset)
            for layer, block in enumerate(self.blocks):
                x_BTD, past[layer] = block(x_BTD, rotary, mask, tap, past[layer])
            offset += length
            step_tokens = self.unembed(self.norm(x_BTD[:, -1:])).argmax(-1)
            tokens_BT = torch.cat((tokens_BT, step_tokens), dim=1)
        return tokens_BT

    def head_weights(self, layer: int) -> HeadWeights:
        """Views of one layer's attention weights by head (fold nothing, copy nothing). Query head h reads group hG//H.

        Raises ValueError for a layer out of range.
        """
        c, block = self.config, self._block(layer)
        attention = block.attention

        def by_head(linear: nn.Linear, heads: int) -> tuple[Tensor, Tensor | None]:
            bias = None if linear.bias is None else linear.bias.view(heads, c.head_dim)
            return linear.weight.view(heads, c.head_dim, c.d_model).mT, bias

        q_HDd, q_bias = by_head(attention.q, c.num_heads)
        k_GDd, k_bias = by_head(attention.k, c.num_kv_heads)
        v_GDd, v_bias = by_head(attention.v, c.num_kv_heads)
        return HeadWeights(
            q_HDd=q_HDd,
            k_GDd=k_GDd,
            v_GDd=v_GDd,
            o_HdD=attention.o.weight.view(c.d_model, c.num_heads, c.head_dim).permute(1, 2, 0),
            norm_gain_D=block.norm1.weight,
            norm_bias_D=block.norm1.bias,
            q_gain_d=None if attention.q_norm is None else attention.q_norm.weight,
            k_gain_d=None if attention.k_norm is None else attention.k_norm.weight,
            q_bias_Hd=q_bias,
            k_bias_Gd=k_bias,
            v_bias_Gd=v_bias,
            o_bias_D=attention.o.bias,
        )

    @torch.no_grad()
    def permuted(self, layer: int, order: Sequence[int]) -> Decoder:
        """A copy in which head i of `layer` is this model's head order[i]: the same function (science.md §14).

        Under grouped queries the order must keep every group together, since its heads share one key and value.
        Raises ValueError where it does not, where `order` is no permutation, or for a layer out of range.
        """
        c, mine = self.config, self._block(layer).attention
        order = list(order)
        if sorted(order) != list(range(c.num_heads)):
            raise ValueError(f"{order} is not a permutation of the {c.num_heads} heads 0..{c.num_heads - 1}")
        size = c.queries_per_group
        groups = [sorted({head // size for head in order[i : i + size]}) for i in range(0, c.num_heads, size)]
        if any(len(group) > 1 for group in groups):
            raise ValueError(
                f"the order {order} breaks key/value groups: every {size} consecutive places must hold the {size} "
                f"heads of one group, but a place range mixes groups {next(g for g in groups if len(g) > 1)}"
            )
        other = copy.deepcopy(self)
        theirs = other._block(layer).attention

        def reorder(source: nn.Linear, target: nn.Linear, heads: list[int]) -> None:
            target.weight.copy_(source.weight.view(len(heads), c.head_dim, -1)[heads].reshape_as(source.weight))
            if source.bias is not None:
                target.bias.copy_(source.bias.view(len(heads), c.head_dim)[heads].reshape_as(source.bias))

        kv_order = [group[0] for group in groups]
        reorder(mine.q, theirs.q, order)
        reorder(mine.k, theirs.k, kv_order)
        reorder(mine.v, theirs.v, kv_order)
        columns = mine.o.weight.view(c.d_model, c.num_heads, c.head_dim)[:, order]
        theirs.o.weight.copy_(columns.reshape_as(mine.o.weight))
        return other

    def with_config(self, config: DecoderConfig) -> Decoder:
        """The same weights, shared and not copied, under other settings of the same shapes (DroPE: no rotation)."""
        return Decoder.from_state(config, self.state_dict())

    @classmethod
    def from_state(cls, config: DecoderConfig, state: Mapping[str, Tensor]) -> Decoder:
        """A decoder that takes these tensors over (no copy, their dtype), keyed as `named_parameters` names them.

        Raises RuntimeError, naming the tensors, where names or shapes are not those of the configuration.
        """
        with torch.device("meta"):
            decoder = cls(config)
        if config.tied_embeddings:
            state = {**state, "unembed.weight": state["embed.weight"]}
        decoder.load_state_dict(state, assign=True)
        if config.tied_embeddings:
            decoder.unembed.weight = decoder.embed.weight  # one Parameter again, as an optimizer must see it
        return decoder


def _first_position(edit: Edit) -> Edit:
    """The edit as it acts on one new token: its own first position, on the axis that lines up with the site's T."""
    axis = -3 if edit.site in _BY_HEAD else -2

    def first(x: Tensor) -> Tensor:
        return x.narrow(axis, 0, 1) if x.ndim >= -axis else x

    return dataclasses.replace(edit, value=first(edit.value), where=None if edit.where is None else first(edit.where))
