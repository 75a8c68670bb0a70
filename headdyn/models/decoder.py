"""The one transformer: a decoder whose settings cover Qwen3, Llama, Mistral, Qwen2, OLMo-2, GPT-NeoX and GPT-2.

Shape suffixes, used in the whole project: B batch, T tokens, Q query position, K key position,
H query heads, G key/value heads, D model width, d head width, L layers, V vocabulary, S topics.

There are no hooks: `Decoder.trace` returns internals and takes interventions as arguments, and does not change the
model. `Decoder.__call__` and `trace` run the same lines; in `trace` a Tap records and edits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from headdyn.models.config import DecoderConfig
from headdyn.models.layers import Block, KeysValues, Norm, Rotary, rotary_tables
from headdyn.models.tracing import SITES, Edit, Tap, Trace, first_position

__all__ = ["SITES", "Decoder", "DecoderConfig", "Edit", "HeadWeights", "Trace"]


@dataclass(frozen=True, kw_only=True)
class HeadWeights:
    """One layer's attention weights by head, for products `x_BTD @ W`; None for gains and biases that the model lacks.

    `norm_gain_D` and `norm_bias_D` belong to the norm before attention, `out_gain_D` to that after it (`post_norm`).
    """

    q_HDd: Tensor
    k_GDd: Tensor
    v_GDd: Tensor
    o_HdD: Tensor
    norm_gain_D: Tensor | None
    norm_bias_D: Tensor | None
    out_gain_D: Tensor | None
    q_gain_Hd: Tensor | None
    k_gain_Gd: Tensor | None
    q_bias_Hd: Tensor | None
    k_bias_Gd: Tensor | None
    v_bias_Gd: Tensor | None
    o_bias_D: Tensor | None


class Decoder(nn.Module):
    """A causal language model. `decoder(tokens_BT)` gives logits_BTV; `trace` gives activations too."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = _embedding(config.vocab_size, config.d_model)
        self.positions = _embedding(config.max_positions, config.d_model) if config.max_positions else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = Norm(config.d_model, config.norm, config.norm_eps)
        self.unembed = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.unembed.weight = self.embed.weight

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, std: float = 0.02) -> Decoder:
        """Draw every matrix from N(0, std²), those that write into the residual stream with std/√(2L), as in GPT-2.

        Gains become 1 and biases 0, so all parameters depend on the generator alone. Returns the decoder itself.
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
        masks = self.masks(tokens_BT.shape[1], 0, documents_BT)
        for block, mask in zip(self.blocks, masks, strict=True):
            x_BTD, _ = block(x_BTD, rotary, mask)
        return self.unembed(self.norm(x_BTD))

    def embeddings(self, tokens_BT: Int[Tensor, "B T"], offset: int) -> Float[Tensor, "B T D"]:
        """The input of the first block, for tokens from position `offset` on.

        Raises ValueError if there are more tokens than learned positions.
        """
        x_BTD = self.embed(tokens_BT)
        if self.positions is not None:
            end = offset + tokens_BT.shape[1]
            if end > self.config.max_positions:
                raise ValueError(f"{end} tokens exceed the model's {self.config.max_positions} learned positions")
            x_BTD = x_BTD + self.positions.weight[offset:end]
        return x_BTD

    def rotary(self, length: int, offset: int) -> Rotary | None:
        """cos and sin [T, r] for `length` positions from `offset` on, in float32 for parity with Hugging Face.

        None if the model does not rotate.
        """
        c = self.config
        if not c.rotary_dim:
            return None
        device = self.embed.weight.device
        tables_2Tr = rotary_tables(length, offset, c.rotary_dim, c.rotary_theta, c.rotary_frequencies, device)
        return tables_2Tr[0], tables_2Tr[1]

    def masks(
        self, length: int, offset: int, documents_BT: Int[Tensor, "B T"] | None = None
    ) -> list[Bool[Tensor, "*rows T K"] | None]:
        """For each layer a mask, true where a query may attend: [Q, K], or with documents [B, 1, Q, K].

        There are `length` queries from position `offset` on. A mask is None for plain causal attention, since SDPA is
        faster without one.
        """
        windows = [self.config.window(layer) for layer in range(self.config.num_layers)]
        by_window = {window: self._mask(window, length, offset, documents_BT) for window in set(windows)}
        return [by_window[window] for window in windows]

    def _mask(
        self, window: int | None, length: int, offset: int, documents_BT: Int[Tensor, "B T"] | None
    ) -> Bool[Tensor, "*rows T K"] | None:
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
        """Run the model with interventions and return internals. Differentiable; the model is not changed.

        `sites` at `layers` (default: all) are recorded after the edits. `start=(layer, resid_BTD)` begins with that
        value at the layer's resid_pre and does not read the tokens; with layer L only the final norm and the
        unembedding remain. `logits=None` stops behind the last requested layer; "last" computes only the last
        position's logits, [B, 1, V]. Attention patterns are computed only at layers where they are recorded or edited.
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
        tap = Tap(sites, layers, edits)
        stop = self.config.num_layers if logits else max(layers, default=first - 1) + 1
        length = x_BTD.shape[1]
        rotary, masks = self.rotary(length, 0), self.masks(length, 0, documents_BT)
        for block, mask in zip(self.blocks[first:stop], masks[first:stop], strict=True):
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
    ) -> Int[Tensor, "B T+{steps}"]:
        """Continue greedily by `steps` tokens, with a key/value cache; returns prompt and continuation together.

        Edits act on the prompt. With `edit_steps="every_step"` they also act on every new token, with the value that
        they have at position 0, as a forward hook does that stays active while a cached model decodes (science.md §10).
        Raises ValueError for pattern edits then, since a pattern's key axis grows.
        """
        if edit_steps == "every_step" and any(edit.site == "pattern" for edit in edits):
            raise ValueError("pattern edits cannot act on every decoding step; use edit_steps='prefill'")
        self._check_sites(edit.site for edit in edits)
        self._check_layers(edit.layer for edit in edits)
        later = [first_position(edit) for edit in edits] if edit_steps == "every_step" else []
        past: list[KeysValues | None] = [None] * self.config.num_layers
        offset, step_tokens = 0, tokens_BT
        for step in range(steps):
            tap = Tap((), (), later if step else edits)
            x_BTD = self.embeddings(step_tokens, offset)
            length = step_tokens.shape[1]
            rotary, masks = self.rotary(length, offset), self.masks(length, offset)
            for layer, block in enumerate(self.blocks):
                x_BTD, past[layer] = block(x_BTD, rotary, masks[layer], tap, past[layer])
            offset += length
            step_tokens = self.unembed(self.norm(x_BTD[:, -1:])).argmax(-1)
            tokens_BT = torch.cat((tokens_BT, step_tokens), dim=1)
        return tokens_BT

    def head_weights(self, layer: int) -> HeadWeights:
        """Views of one layer's attention weights by head, without copies; no norm is folded in.

        Query head h reads key/value head h·G//H. Raises ValueError for a layer out of range.
        """
        c, block = self.config, self._block(layer)
        attention = block.attention

        def by_head(linear: nn.Linear, heads: int) -> tuple[Tensor, Tensor | None]:
            bias = None if linear.bias is None else linear.bias.view(heads, c.head_dim)
            return linear.weight.view(heads, c.head_dim, c.d_model).mT, bias

        def gain_by_head(norm: Norm | None, heads: int) -> Tensor | None:
            return None if norm is None else norm.weight.view(-1, c.head_dim).expand(heads, -1)

        q_HDd, q_bias = by_head(attention.q, c.num_heads)
        k_GDd, k_bias = by_head(attention.k, c.num_kv_heads)
        v_GDd, v_bias = by_head(attention.v, c.num_kv_heads)
        return HeadWeights(
            q_HDd=q_HDd,
            k_GDd=k_GDd,
            v_GDd=v_GDd,
            o_HdD=attention.o.weight.view(c.d_model, c.num_heads, c.head_dim).permute(1, 2, 0),
            norm_gain_D=None if c.post_norm else block.norm1.weight,
            norm_bias_D=block.norm1.bias,
            out_gain_D=block.norm1.weight if c.post_norm else None,
            q_gain_Hd=gain_by_head(attention.q_norm, c.num_heads),
            k_gain_Gd=gain_by_head(attention.k_norm, c.num_kv_heads),
            q_bias_Hd=q_bias,
            k_bias_Gd=k_bias,
            v_bias_Gd=v_bias,
            o_bias_D=attention.o.bias,
        )

    @torch.no_grad()
    def permuted(self, layer: int, order: Sequence[int]) -> Decoder:
        """A copy in which head i of `layer` is this model's head order[i]; it computes the same (science.md §14).

        With grouped queries the order must keep every group together, since its heads share one key and value. Raises
        ValueError if it does not, if `order` is no permutation, or for a layer out of range.
        """
        self._check_layers([layer])
        c, order = self.config, list(order)
        if sorted(order) != list(range(c.num_heads)):
            raise ValueError(f"{order} is not a permutation of the {c.num_heads} heads 0..{c.num_heads - 1}")
        size = c.queries_per_group
        groups = [sorted({head // size for head in order[i : i + size]}) for i in range(0, c.num_heads, size)]
        if any(len(group) > 1 for group in groups):
            raise ValueError(
                f"the order {order} breaks key/value groups: every {size} consecutive places must hold the {size} "
                f"heads of one group, but one such range mixes groups {next(g for g in groups if len(g) > 1)}"
            )
        reordered = copy.deepcopy(self)
        attention, kv_order = reordered._block(layer).attention, [group[0] for group in groups]
        orders = {"q": order, "k": kv_order, "v": kv_order}
        if c.qk_norm and c.qk_norm_over == "layer":  # else all heads share the gains
            orders |= {"q_norm": order, "k_norm": kv_order}
        for name, heads in orders.items():
            for parameter in attention.get_submodule(name).parameters():
                parameter.copy_(parameter.unflatten(0, (len(heads), -1))[heads].flatten(0, 1))
        output = attention.o.weight
        output.copy_(output.unflatten(1, (c.num_heads, -1))[:, order].flatten(1))
        return reordered

    def with_config(self, config: DecoderConfig) -> Decoder:
        """A decoder with the same weights, not copied, and other settings of the same shapes (DroPE: no rotation)."""
        return Decoder.from_state(config, self.state_dict())

    @classmethod
    def from_state(cls, config: DecoderConfig, state: Mapping[str, Tensor]) -> Decoder:
        """A decoder of these tensors, used without a copy and in their dtype; names are those of `named_parameters`.

        Raises RuntimeError, which lists the tensors, if names or shapes are not those of the configuration.
        """
        with torch.device("meta"):
            decoder = cls(config)
        if config.tied_embeddings:
            state = {**state, "unembed.weight": state["embed.weight"]}
        decoder.load_state_dict(state, assign=True)
        if config.tied_embeddings:
            decoder.unembed.weight = decoder.embed.weight  # one Parameter again, as an optimizer must see it
        return decoder


def _embedding(rows: int, width: int) -> nn.Embedding:
    """Like `nn.Embedding(rows, width)`, which on the device meta would import torch's compiler (2 s)."""
    return nn.Embedding.from_pretrained(torch.randn(rows, width), freeze=False)
