"""What the next token's law loses when heads are silenced: KL in nats for any set of heads (science.md §13).

Letters as in models/decoder.py; here also C cells (sets of heads), N rows of a group of equal length, U units.

A cell's heads get another value of z in place of their own: zero; the mean over the group's rows, position by position;
or another row's ("resample": what the head does on other inputs, never off its distribution, while a mean or a zero may
be). Cells of a layer are stacked along the batch, and only what lies behind that layer's attention is run again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from headdyn.analysis.interventions.patching import last_block
from headdyn.data.comparisons import Prompts
from headdyn.data.corpus import Corpus
from headdyn.models.decoder import Decoder
from headdyn.models.layers import Block

Kind = Literal["zero", "mean", "resample"]
KINDS: tuple[Kind, ...] = ("zero", "mean", "resample")

MAX_BYTES = 2**28  # of the activations and logits of the cells that run at once


@dataclass(frozen=True, kw_only=True)
class TokenGroup:
    """Rows of equal length, each belonging to a unit."""

    tokens_NT: np.ndarray
    units_N: np.ndarray
    documents_NT: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What a model reads while heads are silenced. `read`: the next token's law at the last position, or at all."""

    groups: tuple[TokenGroup, ...]
    units: int
    unit: str
    read: Literal["last", "all"]

    @classmethod
    def of_prompts(cls, prompts: Prompts, most: int) -> Texts:
        """The corrupted prompts of the first `most` pairs with the tokens that both answers share, read at the end:
        where the answers part."""
        few = prompts.where(np.arange(len(prompts.pairs)) < most)
        groups = [
            TokenGroup(tokens_NT=np.concatenate((group.corrupted_NT, group.shared_NC), axis=1), units_N=group.units_N)
            for group in few.groups
        ]
        return cls(groups=tuple(groups), units=len(few.pairs), unit="pair", read="last")

    @classmethod
    def of_corpus(cls, corpus: Corpus, most: int) -> Texts:
        """The first `most` validation sequences, read at all positions."""
        split = corpus.val
        documents = split.documents_NT if corpus.mask_documents else None
        group = TokenGroup(
            tokens_NT=split.tokens_NT[:most].astype(np.int64),
            units_N=np.arange(min(most, len(split))),
            documents_NT=None if documents is None else documents[:most].astype(np.int64),
        )
        return cls(groups=(group,), units=len(group.units_N), unit="sequence", read="all")

    def by_unit(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Average rows into units: one array a group, [..., N], becomes [..., U]."""
        values = np.concatenate(rows, axis=-1)
        units = np.concatenate([group.units_N for group in self.groups])
        share_NU = (units[:, None] == np.arange(self.units)) / np.bincount(units, minlength=self.units)
        return values @ share_NU


class HeadAblation:
    """Texts read by one model: the plain passes are done here, and every cell starts from them.

    `donors`: how many other rows each row is resampled from, at most; the KL is averaged over them.
    Raises ValueError for a group of one row, whose mean is itself and which no other row can stand in for.
    """

    def __init__(
        self,
        decoder: Decoder,
        texts: Texts,
        generator: np.random.Generator,
        donors: int = 2,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        alone = [group for group in texts.groups if len(group.tokens_NT) < 2]
        if alone:
            raise ValueError(
                f"{len(alone)} of {len(texts.groups)} groups of texts of equal length hold one text, so it has no mean "
                "and no other to resample from; ask for more pairs (data.bug_pairs) or sequences"
            )
        self.decoder, self.texts, self.max_bytes = decoder, texts, max_bytes
        self._groups = [_Group(decoder, group, texts.read, generator, donors) for group in texts.groups]

    def divergences(self, kind: Kind, layer: int, silent_CH: np.ndarray) -> np.ndarray:
        """KL(plain ‖ ablated) in nats of every cell and unit, [C, U]. `silent_CH` marks the heads silenced."""
        assert silent_CH.shape[1] == self.decoder.config.num_heads
        return self.texts.by_unit([group.divergences(kind, layer, silent_CH, self.max_bytes) for group in self._groups])


class _Group:
    """One group's plain pass, and its cells."""

    @torch.no_grad()
    def __init__(
        self, decoder: Decoder, group: TokenGroup, read: str, generator: np.random.Generator, donors: int
    ) -> None:
        device = decoder.embed.weight.device
        self.decoder, self.read = decoder, read
        self.tokens_NT = torch.from_numpy(group.tokens_NT).to(device)
        self.documents_NT = None if group.documents_NT is None else torch.from_numpy(group.documents_NT).to(device)
        sites = ("z", "resid_pre", "attn_out", "resid_post")
        logits: Literal["all", "last"] = "last" if read == "last" else "all"
        trace = decoder.trace(self.tokens_NT, sites=sites, logits=logits, documents_BT=self.documents_NT)
        assert trace.logits is not None
        layers = range(decoder.config.num_layers)
        self.z = [trace["z", layer] for layer in layers]
        self.before_mlp = [
            trace["resid_post", layer]
            if decoder.config.parallel_residual
            else trace["resid_pre", layer] + trace["attn_out", layer]
            for layer in layers
        ]
        self.plain_NAV = trace.logits.double().log_softmax(-1)
        rows = len(self.tokens_NT)
        order = torch.from_numpy(generator.permutation(rows)).to(device)
        self.donors = []  # each row's donor, never itself
        for shift in range(1, 1 + min(donors, rows - 1)):
            donor_N = torch.empty_like(order)
            donor_N[order] = order.roll(shift)
            self.donors.append(donor_N)

    def _values(self, kind: Kind, layer: int) -> Iterator[Tensor]:
        """What stands in for z, [N or 1, T, H, d]; several for resampling, to be averaged over."""
        z_NTHd = self.z[layer]
        if kind == "zero":
            yield torch.zeros_like(z_NTHd[:1])
        elif kind == "mean":
            yield z_NTHd.mean(0, keepdim=True)
        else:
            yield from (z_NTHd[donor_N] for donor_N in self.donors)

    @torch.no_grad()
    def divergences(self, kind: Kind, layer: int, silent_CH: np.ndarray, max_bytes: int) -> np.ndarray:
        c, (rows, length) = self.decoder.config, self.tokens_NT.shape
        read = self.plain_NAV.shape[1]
        itemsize = self.decoder.embed.weight.element_size()
        # A token is widest in the MLP; about eight vectors of width D live beside that. The law is read in float64.
        cell_bytes = rows * (length * (2 * c.d_ff + 8 * c.d_model) * itemsize + read * c.vocab_size * 32)
        at_once = max(1, max_bytes // cell_bytes)
        out_CN = np.zeros((len(silent_CH), rows))
        values = list(self._values(kind, layer))
        for begin in range(0, len(silent_CH), at_once):
            chunk = torch.from_numpy(silent_CH[begin : begin + at_once].astype(bool)).to(self.tokens_NT.device)
            for value in values:
                kl_CN = self._run(layer, chunk, value)
                out_CN[begin : begin + at_once] += kl_CN.cpu().numpy() / len(values)
        return out_CN

    def _run(self, layer: int, silent_CH: Tensor, value: Tensor) -> Tensor:
        """KL of every cell and row, [C, N], averaged over the positions read."""
        c, cells = self.decoder.config, len(silent_CH)
        x_BTD = self._behind(layer, silent_CH, value)
        if self.read == "all":
            documents_BT = None if self.documents_NT is None else self.documents_NT.repeat(cells, 1)
            start = (layer + 1, x_BTD)
            logits_BAV = self.decoder.trace(self.tokens_NT, layers=(), start=start, documents_BT=documents_BT).logits
            assert logits_BAV is not None
        else:
            last = c.num_layers - 1
            if layer + 1 < last:
                site = ("resid_post", last - 1)
                start = (layer + 1, x_BTD)
                trace = self.decoder.trace(self.tokens_NT, sites=site[:1], layers=site[1:], start=start, logits=None)
                x_BTD = trace[site]
            x_BTD = last_block(self.decoder, x_BTD, read=1) if layer < last else x_BTD[:, -1:]
            logits_BAV = self.decoder.unembed(self.decoder.norm(x_BTD))
        log_q_CNAV = logits_BAV.double().log_softmax(-1).unflatten(0, (cells, -1))
        kl_CNA = (self.plain_NAV.exp() * (self.plain_NAV - log_q_CNAV)).sum(-1)
        return kl_CNA.clamp_min(0).mean(-1)  # rounding alone is negative

    def _behind(self, layer: int, silent_CH: Tensor, value: Tensor) -> Tensor:
        """The residual stream behind the layer, [C·N, T, D]: the silenced heads' z changes, W_O adds what it makes of
        that, and an MLP that stands behind the attention runs again."""
        block = cast(Block, self.decoder.blocks[layer])
        change_CNTHd = silent_CH[:, None, None, :, None] * (value - self.z[layer])
        x_CNTD = self.before_mlp[layer] + change_CNTHd.flatten(-2) @ block.attention.o.weight.mT
        x_BTD = x_CNTD.flatten(0, 1)
        return x_BTD if self.decoder.config.parallel_residual else x_BTD + block.mlp(block.norm2(x_BTD))


def head_groups(num_heads: int, size: int, most: int, generator: np.random.Generator) -> np.ndarray:
    """All groups of `size` heads as masks [R, H] where there are at most `most`, else that many different ones."""
    heads, count = np.arange(num_heads), math.comb(num_heads, size)
    if count <= most:
        return np.array([np.isin(heads, members) for members in itertools.combinations(range(num_heads), size)])
    drawn: dict[bytes, np.ndarray] = {}
    while len(drawn) < most:
        mask_H = np.isin(heads, generator.choice(num_heads, size, replace=False))
        drawn.setdefault(mask_H.tobytes(), mask_H)
    return np.array(list(drawn.values()))


def group_rank(value: float, group_H: np.ndarray, groups_RH: np.ndarray, null_R: np.ndarray) -> float:
    """p of one group's value among groups of its size: its rank, exact where all groups are there, itself included.

    A sample counts the group itself once more. Values equal up to rounding count as at least as large.
    """
    others = ~(groups_RH == group_H).all(1)
    hits = (null_R >= value - 1e-9 * abs(value))[others].sum()
    return float((1 + hits) / (1 + others.sum()))
