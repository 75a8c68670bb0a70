"""Run a decoder once as it is, then run again only what follows a change of its heads, for many changes at once.

Activation patching (science.md §10) and ablation (§13) are both such changes. Letters as in models/decoder.py; here
also C cells, N rows of tokens, and A positions at the end of every row whose output is read.

A cell is a vector of H weights: head h's value becomes (1 − w_h) · own + w_h · written. So a set of heads is a vector
of zeros and ones, and a fraction interpolates. Since W_O is linear, the attention's output moves by Σ_h w_h times one
fixed tensor per head: a cell costs one product with that tensor, and no attention. After that a parallel block only
adds the change to its output, a sequential one repeats its MLP, and the later layers run on all cells stacked along the
batch; cells of later layers join on the way. Positions before the first one written keep their keys and values, and the
last layer is computed only at the positions that are read.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headdyn.analysis.interventions.patch import Site
from headdyn.core.kept_parts import parts
from headdyn.models.decoder import Decoder
from headdyn.models.layers import Block, KeysValues

# Memory of all activations at once. On a CPU Pythia-160m's 12 × 12 grid at batch 8 took 8 s with 2^26 and 13 to 20 s
# with 2^28 to 2^30, which no longer fit its caches; other devices need larger batches to be busy.
_CPU_BYTES, _DEVICE_BYTES = 2**26, 2**30


class Restart:
    """Rows of equal length: their plain pass is run at construction, and every cell starts from it.

    `layers` are those whose heads may change, at `site` (see `Patch`). `written_T` marks the positions that change
    (all, if None), `read` is how many positions at the end are read, `documents_NT` confines attention to documents.
    `max_bytes` bounds the memory of the cells that run at once, of which `measure` (see `run`) takes `read_bytes` for
    each cell.

    `own[layer]` holds the site's plain values, `plain_NAD` the last layer's output at the positions that are read.
    """

    @torch.no_grad()
    def __init__(
        self,
        decoder: Decoder,
        tokens_NT: Int[Tensor, "N T"],
        layers: Sequence[int],
        *,
        site: Site = "z",
        read: int = 1,
        written_T: Bool[Tensor, " T"] | None = None,
        documents_NT: Int[Tensor, "N T"] | None = None,
        max_bytes: int | None = None,
        read_bytes: int = 0,
    ) -> None:
        c, (rows, length) = decoder.config, tokens_NT.shape
        weight, value_site = decoder.embed.weight, "z" if site == "z" else "attn_out"
        self.decoder, self.site, self.read, self.documents_NT = decoder, site, read, documents_NT
        self.layers = tuple(sorted(set(layers)))
        self._written_T = torch.ones(length, dtype=torch.bool) if written_T is None else written_T
        self._written_T = self._written_T.to(weight.device)
        self._first = int(self._written_T.nonzero()[0])
        # A token is widest in the MLP; about eight vectors of width D live beside that.
        tokens_bytes = rows * (length - self._first) * (2 * c.d_ff + 8 * c.d_model) * weight.dtype.itemsize
        max_bytes = max_bytes or (_CPU_BYTES if weight.device.type == "cpu" else _DEVICE_BYTES)
        self._at_once = max(1, max_bytes // (tokens_bytes + read_bytes))

        later = range(self.layers[0], c.num_layers)
        sites = {value_site, "resid_pre", "attn_out", "resid_post"} | ({"k", "v"} if self._first else set())
        trace = decoder.trace(tokens_NT, sites=tuple(sites), layers=later, logits=None, documents_BT=documents_NT)
        self.own = {layer: trace[value_site, layer] for layer in self.layers}
        self.plain_NAD = trace["resid_post", c.num_layers - 1][:, -read:]
        self._before_mlp = {
            layer: trace["resid_post", layer]
            if c.parallel_residual
            else trace["resid_pre", layer] + trace["attn_out", layer]
            for layer in self.layers
        }
        # Under post_norm attn_out is not linear in a head's change: the changed sum goes through the norm again.
        self._unnormed = {
            layer: self._block(layer).attention.o(self.own[layer].flatten(-2))[:, self._first :]
            for layer in (self.layers if c.post_norm and site == "z" else ())
        }
        self._before_attention = {layer: trace["resid_pre", layer][:, self._first :] for layer in self._unnormed}
        self._past = {
            layer: (trace["k", layer][:, : self._first], trace["v", layer][:, : self._first])
            for layer in later
            if self._first
        }

    @torch.no_grad()
    def run(
        self,
        cells: Mapping[int, np.ndarray],
        written: Callable[[int], Tensor],
        measure: Callable[[Float[Tensor, "C N A D"]], Tensor],
    ) -> dict[int, np.ndarray]:
        """The result of `measure` for every cell, float64 [C, ...], from weights [C, H] for each layer.

        `written` gives the values that a weight of 1 puts at every position of a layer, in the site's shape or
        broadcasting to it along N; `measure` is given the last layer's output at the positions that are read.
        Raises ValueError where weights do not have one column per head, or for a layer not named at construction.
        """
        heads = self.decoder.config.num_heads
        for layer, weight_CH in cells.items():
            if layer not in self.layers:
                raise ValueError(f"layer {layer} is not among the layers to change, {list(self.layers)}")
            if np.ndim(weight_CH) != 2 or np.shape(weight_CH)[1] != heads:
                raise ValueError(
                    f"cells of shape {np.shape(weight_CH)} do not hold one weight for each of {heads} heads"
                )
        counts = {layer: len(cells[layer]) for layer in sorted(cells)}
        layer_C = np.repeat(list(counts), list(counts.values()))
        stacked_CH = np.concatenate([np.asarray(cells[layer], dtype=float) for layer in counts])
        all_CH = torch.from_numpy(stacked_CH).to(self.plain_NAD)

        def compute(chunk: slice) -> dict[str, np.ndarray]:
            of_cell = layer_C[chunk]
            weights = {at: all_CH[chunk][torch.from_numpy(of_cell == at)] for at in np.unique(of_cell).tolist()}
            return {"value": measure(self._chunk(weights, written)).double().cpu().numpy()}

        inputs = [layer_C, stacked_CH, self.plain_NAD.float().cpu().numpy()]
        done = parts("changing heads", "sets of heads", len(layer_C), self._at_once, compute, inputs)
        value_CX = np.concatenate([part["value"] for _, part in done])
        return dict(zip(counts, np.split(value_CX, np.cumsum([*counts.values()])[:-1]), strict=True))

    def _chunk(self, weights: Mapping[int, Tensor], written: Callable[[int], Tensor]) -> Float[Tensor, "C N A D"]:
        """The last layer's output at the positions read, cell by cell in the order of their layers."""
        last = self.decoder.config.num_layers - 1
        x: Tensor | None = None
        for layer in range(min(weights), last + 1):
            if x is not None:
                x = self._block_again(layer, x)
            if layer in weights:
                joining = self._changed(layer, weights[layer], written(layer))
                joining = joining if layer < last else joining[:, -self.read :]
                x = joining if x is None else torch.cat((x, joining))
        assert x is not None
        return x.unflatten(0, (-1, len(self.plain_NAD)))

    def _changed(self, layer: int, weight_CH: Tensor, value: Tensor) -> Float[Tensor, "B T D"]:
        """The residual stream behind the layer whose heads change, from the first written position on."""
        change_HNTD = self._change_by_head(layer, value)
        shift = (weight_CH @ change_HNTD.flatten(1)).view(-1, *change_HNTD.shape[1:])
        block = self._block(layer)
        if layer in self._unnormed:
            x_BTD = (self._before_attention[layer] + block.norm1(self._unnormed[layer] + shift)).flatten(0, 1)
        else:
            x_BTD = (self._before_mlp[layer][:, self._first :] + shift).flatten(0, 1)
        if self.decoder.config.parallel_residual:  # whose MLP does not see the attention
            return x_BTD
        return x_BTD + block.mlp_out(x_BTD)

    def _change_by_head(self, layer: int, value: Tensor) -> Float[Tensor, "H N T D"]:
        """How far a weight of 1 on each head moves W_O's output, from the first written position on."""
        change = (value - self.own[layer])[:, self._first :]
        if self.site == "z":
            change_HNTD = torch.einsum("nthd,hdD->hntD", change, self.decoder.head_weights(layer).o_HdD)
        else:
            change_HNTD = change * slices(self.decoder)[:, None, None]
        return change_HNTD * self._written_T[self._first :, None]

    def _block(self, layer: int) -> Block:
        return cast(Block, self.decoder.blocks[layer])

    def _block_again(self, layer: int, x_BTD: Tensor) -> Tensor:
        """A later block on all cells; the last block's output is computed only at the positions that are read."""
        decoder, block, (rows, length) = self.decoder, self._block(layer), x_BTD.shape[:2]
        copies = rows // len(self.plain_NAD)
        past: KeysValues | None = None
        if self._first:  # the same in every cell
            keys, values = self._past[layer]
            past = keys.repeat(copies, 1, 1, 1), values.repeat(copies, 1, 1, 1)
        documents_BT = None if self.documents_NT is None else self.documents_NT.repeat(copies, 1)
        is_last = layer == decoder.config.num_layers - 1
        unread = length - self.read if is_last and documents_BT is None else 0  # positions that are only attended to
        if unread:
            reads_BTD = block.reads(block.norm1, x_BTD[:, :unread])
            keys, values = block.attention.keys_values(reads_BTD, decoder.rotary(unread, self._first))
            past = (keys, values) if past is None else (torch.cat((past[0], keys), 1), torch.cat((past[1], values), 1))
        start, count = self._first + unread, length - unread
        rotary, mask = decoder.rotary(count, start), decoder.masks(count, start, documents_BT)[layer]
        x_BTD = block(x_BTD[:, unread:], rotary, mask, None, past)[0]
        return x_BTD[:, -self.read :] if is_last else x_BTD


def slices(decoder: Decoder) -> Bool[Tensor, "H D"]:
    """Masks of the H pieces of D/H neighbouring numbers into which W_O's output is cut."""
    c, device = decoder.config, decoder.embed.weight.device
    owner_D = torch.arange(c.d_model, device=device) // (c.d_model // c.num_heads)
    return owner_D == torch.arange(c.num_heads, device=device)[:, None]
