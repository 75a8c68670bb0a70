"""Activation patching of heads (science.md §10): answers' log-odds when heads are given other values.

Letters as in restart.py; here also P pairs and A answer tokens that are compared. N rows of a prompt group make R rows
of tokens: N, or 2N where the two answers must be read on continuations of their own.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headdyn.analysis.interventions.patch import Dtype, Patch, chosen_layer
from headdyn.analysis.interventions.restart import Restart, slices
from headdyn.data.prompts import PromptGroup, Prompts
from headdyn.models.decoder import Decoder, Edit


class GroupPatching:
    """One group of prompts under one patch: the two plain passes are run at construction, every cell starts from them.

    Answers are read as Δ = log p(right) − log p(wrong) in nats, teacher-forced (see `PromptGroup`): `target_N` is Δ of
    the prompts written into, `source_N` of their partners. Everything is computed in the decoder's dtype on its device.
    `max_bytes` bounds the activations of the cells that run at once.
    Raises ValueError for a layer out of range, slices of a width that H does not divide, or the mean of one prompt.
    """

    @torch.no_grad()
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
        self.decoder, self.patch = decoder, patch
        target_NT, source_NT = self._ids(group.corrupted_NT), self._ids(group.clean_NT)
        if patch.direction == "necessity":
            target_NT, source_NT = source_NT, target_NT
        self.prompt_NT = target_NT
        self.right_NA, self.wrong_NA = self._ids(group.right_NA), self._ids(group.wrong_NA)
        answer = self.right_NA.shape[1]
        # One differing token: both answers are read on the same tokens.
        tails = (self.right_NA,) if answer == 1 else (self.right_NA, self.wrong_NA)
        shared_NC = self._ids(group.shared_NC)
        tokens_RT, source_RT = (
            torch.cat([torch.cat((prompt_NT, shared_NC, tail[:, :-1]), dim=1) for tail in tails])
            for prompt_NT in (target_NT, source_NT)
        )
        self._places_T = self._source_places(group, tokens_RT.shape[1])
        self._restart = Restart(
            decoder, tokens_RT, layers, site=patch.site, read=answer, written_T=self._places_T >= 0, max_bytes=max_bytes
        )
        site, last = "z" if patch.site == "z" else "attn_out", ("resid_post", c.num_layers - 1)
        source = decoder.trace(source_RT, sites=(site, last[0]), layers=range(min(layers), c.num_layers), logits=None)
        self._source = {layer: source[site, layer] for layer in self._restart.layers}
        self.target_N, self.source_N = (
            self._delta(x_RAD[None])[0].double().cpu().numpy()
            for x_RAD in (self._restart.plain_NAD, source[last][:, -answer:])
        )

    def _ids(self, ids: np.ndarray) -> Tensor:
        return torch.from_numpy(ids).to(self.decoder.embed.weight.device)

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
        return places_T.to(self.prompt_NT.device)

    def _written(self, layer: int) -> Tensor:
        """The values that a patch of all heads writes, broadcasting to [R, T, ...]; arbitrary where none is written."""
        own = self._restart.own[layer]
        if self.patch.source == "zero":
            return torch.zeros_like(own[:1])
        if self.patch.source == "mean":
            return own.mean(0, keepdim=True)[:, self._places_T]
        return self._source[layer][:, self._places_T]

    def deltas(self, cells: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Δ in nats of every cell, float64 [C, N], from weights [C, H] for each layer. Raises as `Restart.run` does."""
        return self._restart.run(cells, self._written, self._delta)

    def _delta(self, x_CRAD: Float[Tensor, "C R A D"]) -> Float[Tensor, "C N"]:
        """Δ from the last layer's output at the positions that are read."""
        wide = torch.promote_types(x_CRAD.dtype, torch.float32)
        h_CRAD = self.decoder.norm(x_CRAD)
        if self.right_NA.shape[1] == 1:  # the law's normaliser is the same for both answers and cancels
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
        if self.patch.steps == "every_position":
            raise ValueError("steps=every_position has no values for tokens yet to come; generate with prefill")
        count, length = self.prompt_NT.shape
        if not np.isin(weight_CH, (0, 1)).all():
            raise ValueError("generation writes whole values; give weights of 0 and 1 only")
        chosen_CH = torch.from_numpy(np.asarray(weight_CH) == 1).to(self.prompt_NT.device)
        chosen_BH = chosen_CH.repeat_interleave(count, dim=0)
        written_T = (self._places_T >= 0)[:length]
        if self.patch.site == "z":
            site, where = "z", chosen_BH[:, None, :, None] & written_T[:, None, None]
        else:
            chosen_BD = (chosen_BH[..., None] & slices(self.decoder)).any(1)
            site, where = "attn_out", chosen_BD[:, None] & written_T[:, None]
        value = self._written(layer)[:count, :length]
        if len(value) == count:
            value = value.repeat(len(weight_CH), *[1] * (value.ndim - 1))
        tokens_BT = self.decoder.generate(
            self.prompt_NT.repeat(len(weight_CH), 1),
            steps,
            edits=[Edit(site=site, layer=layer, value=value, where=where)],
            edit_steps=self.patch.steps,
        )
        return tokens_BT[:, length:].unflatten(0, (-1, count)).cpu().numpy()


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
        """Δ in nats of every cell and pair, [C, P], from weights [C, H] for each layer."""
        parts = [group.deltas(cells) for group in self._groups]
        return {layer: self.prompts.by_pair([part[layer] for part in parts]) for layer in cells}


def bug_pairs(prompts: Prompts) -> Prompts:
    """The prompts of the bug pairs, on which repair is measured. Raises ValueError where there are none."""
    bugs = prompts.where(prompts.is_bug_P)
    if not bugs.pairs:
        raise ValueError("the prompts hold no bug pairs, on which repair is measured; set data.bug_pairs")
    return bugs


def in_dtype(decoder: Decoder, dtype: Dtype) -> Decoder:
    """The decoder itself if it has this dtype already, else a copy in it."""
    torch_dtype = getattr(torch, dtype)
    if decoder.embed.weight.dtype == torch_dtype:
        return decoder
    state = {name: tensor.to(torch_dtype) for name, tensor in decoder.state_dict().items()}
    return Decoder.from_state(decoder.config, state)


def heads_as_weights(subsets: Sequence[Sequence[int]], num_heads: int) -> np.ndarray:
    """Cells that replace the heads of each subset whole, [C, H]. Raises ValueError for a head out of range."""
    weight_CH = np.zeros((len(subsets), num_heads))
    for row, heads in zip(weight_CH, subsets, strict=True):
        outside = [head for head in heads if not 0 <= head < num_heads]
        if outside:
            raise ValueError(f"head {outside[0]} is out of range; this model's heads are 0 to {num_heads - 1}")
        row[list(heads)] = 1
    return weight_CH
