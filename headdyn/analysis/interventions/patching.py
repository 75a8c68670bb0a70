"""Activation patching of heads (science.md §10): many cells for little more than the layers behind the patched one.

Letters as in models/decoder.py; here also N rows of a prompt group, P pairs, C cells, A answer tokens compared, and
R rows of tokens: N, or 2N where the two answers must be read on continuations of their own.

A cell is a vector of H weights: head h's value becomes (1 − w_h) · own + w_h · source. So a subset of heads is a vector
of zeros and ones, and a fraction interpolates. Since W_O is linear, the attention's output then moves by Σ_h w_h times
one fixed tensor: cells cost one product with that tensor, and no attention. From there a parallel block only adds it to
its output, a sequential one repeats its MLP, and the later layers run on all cells stacked along the batch, cells of
later layers joining on the way. Positions before the first one written keep their keys and values, and the last layer
answers at the positions that are read only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headdyn.data.comparisons import Alignment, PromptGroup, Prompts
from headdyn.models.decoder import Decoder, Edit
from headdyn.models.layers import Block, KeysValues

Site = Literal["z", "attn_out_slice"]
Source = Literal["prompt", "zero", "mean"]
Steps = Literal["prefill", "every_step", "every_position"]
Direction = Literal["sufficiency", "necessity"]

# Of the activations at once. On a CPU Pythia-160m's 12 × 12 grid at batch 8 took 8 s with 2^26 and 13 to 20 s with 2^28
# to 2^30, which no longer fit its caches; another device has more to keep busy.
_CPU_BYTES, _DEVICE_BYTES = 2**26, 2**30


@dataclass(frozen=True, kw_only=True)
class Patch:
    """What is written, where, and when.

    `site`: "z" is each head's output before W_O, the only site that has heads. "attn_out_slice" is the seed study's:
    the D numbers behind W_O cut into H pieces, each of which mixes all heads.
    `source`: the pair's other "prompt", "zero", or the "mean" over the group's target prompts at each position.
    `direction`: "sufficiency" writes clean values into the corrupted prompt, "necessity" corrupted into clean.
    `alignment`: which positions stand for each other; without a source prompt all of the prompt is written.
    `steps`: "prefill" writes into the prompt; "every_step" also into every token behind it, what the patch has at the
    prompt's first position: a forward hook that goes on firing while a cached model decodes. "every_position" writes
    zero or the mean at the answer's positions too, each its own: what ablating a head means.
    Raises ValueError for a word it does not know, and where a source prompt is to be written at every position.
    """

    site: Site = "z"
    source: Source = "prompt"
    alignment: Alignment = "span"
    steps: Steps = "prefill"
    direction: Direction = "sufficiency"

    def __post_init__(self) -> None:
        kinds = {"site": Site, "source": Source, "alignment": Alignment, "steps": Steps, "direction": Direction}
        for name, kind in kinds.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; it is one of {', '.join(get_args(kind))}")
        if self.steps == "every_position" and self.source == "prompt":
            raise ValueError("steps=every_position needs source=zero or mean: a source prompt has no answer positions")


SEED_PATCH = Patch(site="attn_out_slice", alignment="left", steps="every_step")  # the seed study's, as it was run


class GroupPatching:
    """One group of prompts under one patch: the two plain passes are done here, and every cell starts from them.

    Answers are read as Δ = log p(right) − log p(wrong) in nats, teacher-forced (see `PromptGroup`): `target_N` of the
    prompts written into, `source_N` of their partners. All of it is computed in the decoder's dtype on its device.
    `max_bytes` bounds the activations of the cells that run at once.
    Raises ValueError for a layer out of range, slices of a width that H does not divide, and the mean of one prompt.
    """

    def __init__(
        self, decoder: Decoder, group: PromptGroup, patch: Patch, layers: Sequence[int], max_bytes: int | None = None
    ) -> None:
        c = decoder.config
        for layer in layers:
            chosen_layer(layer, c.num_layers)
        if patch.site == "attn_out_slice" and c.d_model % c.num_heads:
            raise ValueError(f"d_model={c.d_model} cannot be cut into {c.num_heads} equal slices; use site=z")
        if patch.source == "mean" and len(group) < 2:
            raise ValueError(
                f"source=mean averages the prompts of a group, and one of {group.format!r} holds {len(group)}; ask for "
                "more pairs (data.bug_pairs) or use source=zero"
            )
        self.decoder, self.patch, self.layers = decoder, patch, tuple(sorted(set(layers)))
        self._device, self._dtype = decoder.embed.weight.device, decoder.embed.weight.dtype
        self.max_bytes = max_bytes or (_CPU_BYTES if self._device.type == "cpu" else _DEVICE_BYTES)
        target_NT, source_NT = self._ids(group.corrupted_NT), self._ids(group.clean_NT)
        if patch.direction == "necessity":
            target_NT, source_NT = source_NT, target_NT
        self.prompt_NT = target_NT
        self.right_NA, self.wrong_NA = self._ids(group.right_NA), self._ids(group.wrong_NA)
        # One differing token: both answers are read on the same tokens.
        self._tails = (self.right_NA,) if self.right_NA.shape[1] == 1 else (self.right_NA, self.wrong_NA)
        shared_NC = self._ids(group.shared_NC)
        tokens_RT, source_RT = (
            torch.cat([torch.cat((prompt_NT, shared_NC, tail[:, :-1]), dim=1) for tail in self._tails])
            for prompt_NT in (target_NT, source_NT)
        )
        self._places_T = self._source_places(group, tokens_RT.shape[1])
        self._first = int((self._places_T >= 0).nonzero()[0])
        self._run_plain(tokens_RT, source_RT)

    def _ids(self, ids: np.ndarray) -> Tensor:
        return torch.from_numpy(ids).to(self._device)

    def _source_places(self, group: PromptGroup, length: int) -> Int[Tensor, " T"]:
        """For every token of the target, the source's position that is written there, or −1."""
        prompt = self.prompt_NT.shape[1]
        places_T = torch.full((length,), -1)
        if self.patch.source == "prompt":
            block = group.block(self.patch.alignment)
            block = block if self.patch.direction == "sufficiency" else block.reversed()
            places = torch.arange(block.length)
            places_T[block.target_start + places] = block.source_start + places
        else:
            end = length if self.patch.steps == "every_position" else prompt
            places_T[:end] = torch.arange(end)
        if self.patch.steps == "every_step":
            places_T[prompt:] = places_T[0].clone()
        return places_T.to(self._device)

    @torch.no_grad()
    def _run_plain(self, tokens_RT: Tensor, source_RT: Tensor) -> None:
        c, first, answer = self.decoder.config, self._first, self.right_NA.shape[1]
        site = "z" if self.patch.site == "z" else "attn_out"
        layers = range(min(self.layers), c.num_layers)
        last = ("resid_post", c.num_layers - 1)
        sites = {site, "resid_pre", "attn_out", "resid_post", "k", "v"}
        target = self.decoder.trace(tokens_RT, sites=tuple(sites), layers=layers, logits=None)
        source = self.decoder.trace(source_RT, sites=(site, "resid_post"), layers=layers, logits=None)
        self.target_N = self._delta(target[last][:, -answer:])[0].double().cpu().numpy()
        self.source_N = self._delta(source[last][:, -answer:])[0].double().cpu().numpy()
        self._own = {layer: target[site, layer] for layer in self.layers}
        self._source = {layer: source[site, layer] for layer in self.layers}
        self._before_mlp = {
            layer: target["resid_post", layer]
            if c.parallel_residual
            else target["resid_pre", layer] + target["attn_out", layer]
            for layer in self.layers
        }
        self._past = {layer: (target["k", layer][:, :first], target["v", layer][:, :first]) for layer in layers}

    def _values(self, layer: int) -> Tensor:
        """What a full patch of all heads writes at every position, broadcasting to [R, T, ...]; junk where none is."""
        own = self._own[layer]
        if self.patch.source == "zero":
            return torch.zeros_like(own[:1])
        if self.patch.source == "mean":
            return own.mean(0, keepdim=True)[:, self._places_T]
        return self._source[layer][:, self._places_T]

    def _change_by_head(self, layer: int) -> Float[Tensor, "H R T D"]:
        """How a full patch of each head moves the attention's output, from the first written position on."""
        c, written_T = self.decoder.config, (self._places_T >= 0)[self._first :]
        change = (self._values(layer) - self._own[layer])[:, self._first :]
        if self.patch.site == "z":
            change_HRTD = torch.einsum("rthd,hdD->hrtD", change, self.decoder.head_weights(layer).o_HdD)
        else:
            change_HRTD = change * _slices(c.num_heads, c.d_model, self._device)[:, None, None]
        return change_HRTD * written_T[:, None]

    def _patched(self, layer: int, weight_CH: Tensor) -> Float[Tensor, "B T D"]:
        """The residual stream behind the patched layer, from the first written position on, rows cell by cell."""
        change_HRTD = self._change_by_head(layer)
        shift = (weight_CH @ change_HRTD.flatten(1)).view(-1, *change_HRTD.shape[1:])
        x_BTD = (self._before_mlp[layer][:, self._first :] + shift).flatten(0, 1)
        if self.decoder.config.parallel_residual:  # whose MLP does not see the attention
            return x_BTD
        block = self._block(layer)
        return x_BTD + block.mlp(block.norm2(x_BTD))

    def _block(self, layer: int) -> Block:
        return cast(Block, self.decoder.blocks[layer])

    @torch.no_grad()
    def deltas(self, cells: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Δ in nats of every cell: for each layer weights [C, H] in, float64 [C, N] out.

        Raises ValueError where weights do not have one column per head, or for a layer not named at construction.
        """
        for layer, weight_CH in cells.items():
            self._check(layer, weight_CH)
        c, rows, length = self.decoder.config, len(self._tails) * len(self.prompt_NT), len(self._places_T)
        # A token is widest in the MLP; about eight vectors of width D live beside that.
        cell_bytes = rows * (length - self._first) * (2 * c.d_ff + 8 * c.d_model) * self._dtype.itemsize
        at_once = max(1, self.max_bytes // cell_bytes)
        order = [(layer, cell) for layer in sorted(cells) for cell in range(len(cells[layer]))]
        results = {layer: np.empty((len(weight_CH), len(self.prompt_NT))) for layer, weight_CH in cells.items()}
        for begin in range(0, len(order), at_once):
            chunk = order[begin : begin + at_once]
            weights = {
                layer: torch.from_numpy(np.asarray(cells[layer])[[cell for at, cell in chunk if at == layer]])
                for layer in dict.fromkeys(layer for layer, _ in chunk)
            }
            for (layer, cell), delta_N in zip(chunk, self._run(weights).double().cpu().numpy(), strict=True):
                results[layer][cell] = delta_N
        return results

    def _check(self, layer: int, weight_CH: np.ndarray) -> None:
        heads = self.decoder.config.num_heads
        if layer not in self.layers:
            raise ValueError(f"layer {layer} is not among the layers to patch, {list(self.layers)}")
        if np.ndim(weight_CH) != 2 or np.shape(weight_CH)[1] != heads:
            raise ValueError(f"cells of shape {np.shape(weight_CH)} do not hold one weight for each of {heads} heads")

    def _run(self, cells: Mapping[int, Tensor]) -> Float[Tensor, "C N"]:
        """Δ of the cells of a chunk, in the order of their layers."""
        last, answer = self.decoder.config.num_layers - 1, self.right_NA.shape[1]
        x: Tensor | None = None
        for layer in range(min(cells), last + 1):
            if x is not None and layer < last:
                x = self._layer(layer, x)
            elif x is not None:
                x = last_block(self.decoder, x, answer, self._first, self._prefix(last, len(x)))
            if layer in cells:
                joining = self._patched(layer, cells[layer].to(self._device, self._dtype))
                joining = joining if layer < last else joining[:, -answer:]
                x = joining if x is None else torch.cat((x, joining))
        assert x is not None
        return self._delta(x)

    def _layer(self, layer: int, x_BTD: Tensor) -> Tensor:
        length = x_BTD.shape[1]
        rotary, mask = self.decoder.rotary(length, self._first), self.decoder.mask(length, self._first)
        return self._block(layer)(x_BTD, rotary, mask, None, self._prefix(layer, len(x_BTD)))[0]

    def _prefix(self, layer: int, rows: int) -> KeysValues | None:
        """Keys and values of the positions before the first written one, the same in every cell."""
        if not self._first:
            return None
        keys, values = self._past[layer]
        return keys.repeat(rows // len(keys), 1, 1, 1), values.repeat(rows // len(values), 1, 1, 1)

    def _delta(self, x_BAD: Float[Tensor, "B A D"]) -> Float[Tensor, "C N"]:
        """Δ from the last layer's output at the positions that are read, rows standing cell by cell."""
        wide = torch.promote_types(self._dtype, torch.float32)
        h_CRAD = self.decoder.norm(x_BAD).unflatten(0, (-1, len(self._tails) * len(self.prompt_NT)))
        if len(self._tails) == 1:  # the law's normaliser is the same for both answers and cancels
            unembed_VD = self.decoder.unembed.weight
            right_ND, wrong_ND = unembed_VD[self.right_NA[:, 0]].to(wide), unembed_VD[self.wrong_NA[:, 0]].to(wide)
            return (h_CRAD[:, :, 0].to(wide) * (right_ND - wrong_ND)).sum(-1)
        log_p = self.decoder.unembed(h_CRAD).to(wide).log_softmax(-1)
        right, wrong = (
            part.gather(-1, answer_NA[None, ..., None].expand(len(part), -1, -1, -1)).sum((-2, -1))
            for part, answer_NA in zip(log_p.chunk(2, dim=1), (self.right_NA, self.wrong_NA), strict=True)
        )
        return right - wrong

    def generate(self, layer: int, weight_CH: np.ndarray, steps: int) -> np.ndarray:
        """Greedy continuations of `steps` tokens under each cell, int64 [C, N, steps].

        Raises ValueError as `deltas` does, for fractions (a token yet to come has no own value to mix in), and for
        steps=every_position.
        """
        self._check(layer, weight_CH)
        if self.patch.steps == "every_position":
            raise ValueError("steps=every_position has no values for tokens yet to come; generate with prefill")
        c, (count, length) = self.decoder.config, self.prompt_NT.shape
        if not np.isin(weight_CH, (0, 1)).all():
            raise ValueError("generation writes whole values; give weights of 0 and 1 only")
        chosen_BH = torch.from_numpy(np.asarray(weight_CH) == 1).to(self._device).repeat_interleave(count, dim=0)
        written_T = (self._places_T >= 0)[:length]
        if self.patch.site == "z":
            site, where = "z", chosen_BH[:, None, :, None] & written_T[:, None, None]
        else:
            slices_HD = _slices(c.num_heads, c.d_model, self._device)
            chosen_BD = (chosen_BH[..., None] & slices_HD).any(1)
            site, where = "attn_out", chosen_BD[:, None] & written_T[:, None]
        value = self._values(layer)[:count, :length]
        value = value.repeat(len(weight_CH), *[1] * (value.ndim - 1)) if len(value) == count else value
        tokens_BT = self.decoder.generate(
            self.prompt_NT.repeat(len(weight_CH), 1),
            steps,
            edits=[Edit(site=site, layer=layer, value=value, where=where)],
            edit_steps=self.patch.steps,
        )
        return tokens_BT[:, length:].unflatten(0, (-1, count)).cpu().numpy()


def _slices(heads: int, width: int, device: torch.device) -> Tensor:
    """Which of D neighbouring numbers belong to piece h of H, [H, D]."""
    owner_D = torch.arange(width, device=device) // (width // heads)
    return owner_D == torch.arange(heads, device=device)[:, None]


class PromptPatching:
    """A whole prompt family under one patch: rows of all groups, averaged into pairs.

    `target_P` and `source_P` are Δ in nats of the prompts written into and of their partners, unpatched.
    """

    def __init__(
        self, decoder: Decoder, prompts: Prompts, patch: Patch, layers: Sequence[int], max_bytes: int | None = None
    ) -> None:
        self.prompts = prompts
        self._groups = [GroupPatching(decoder, group, patch, layers, max_bytes) for group in prompts.groups]
        self.target_P = prompts.by_pair([group.target_N for group in self._groups])
        self.source_P = prompts.by_pair([group.source_N for group in self._groups])

    def deltas(self, cells: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Δ in nats of every cell and pair: for each layer weights [C, H] in, [C, P] out."""
        parts = [group.deltas(cells) for group in self._groups]
        return {layer: self.prompts.by_pair([part[layer] for part in parts]) for layer in cells}


def last_block(
    decoder: Decoder, x_BTD: Tensor, read: int, first: int = 0, prefix: KeysValues | None = None
) -> Float[Tensor, "B A D"]:
    """The last block where only the `read` last positions ask; the others are only looked at.

    x starts at position `first`; `prefix` holds the keys and values of the positions before it.
    """
    block, seen = cast(Block, decoder.blocks[-1]), x_BTD.shape[1] - read
    keys, values = block.attention.keys_values(block.norm1(x_BTD[:, :seen]), decoder.rotary(seen, first))
    if prefix is not None:
        keys, values = torch.cat((prefix[0], keys), dim=1), torch.cat((prefix[1], values), dim=1)
    rotary, mask = decoder.rotary(read, first + seen), decoder.mask(read, first + seen)
    return block(x_BTD[:, seen:], rotary, mask, None, (keys, values))[0]


def in_dtype(decoder: Decoder, dtype: torch.dtype) -> Decoder:
    """The decoder in a dtype: itself where it is that already, else a copy."""
    if decoder.embed.weight.dtype == dtype:
        return decoder
    return Decoder.from_state(decoder.config, {name: part.to(dtype) for name, part in decoder.state_dict().items()})


def heads_as_weights(subsets: Sequence[Sequence[int]], num_heads: int) -> np.ndarray:
    """Cells that replace the heads of each subset whole, [C, H]. Raises ValueError for a head out of range."""
    weight_CH = np.zeros((len(subsets), num_heads))
    for row, heads in zip(weight_CH, subsets, strict=True):
        outside = [head for head in heads if not 0 <= head < num_heads]
        if outside:
            raise ValueError(f"head {outside[0]} is out of range; this model's are 0 to {num_heads - 1}")
        row[list(heads)] = 1
    return weight_CH


def chosen_layer(layer: int | None, num_layers: int) -> int:
    """The layer asked for, by default the middle one, ⌊L/2⌋: 6 of Pythia-160m's 12, as in the seed studies.

    Raises ValueError for a layer out of range.
    """
    if layer is None:
        return num_layers // 2
    if not 0 <= layer < num_layers:
        raise ValueError(f"layer={layer} is out of range; this model's are 0 to {num_layers - 1}")
    return layer
