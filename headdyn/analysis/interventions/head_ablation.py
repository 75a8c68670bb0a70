"""How far silencing any set of heads moves the next token's law: KL in nats (science.md §13).

Letters as in models/decoder.py; here also C cells (sets of heads), N rows of a group of equal length, U units.

A cell's heads get another value of z in place of their own: zero; the mean over the group's rows, position by position;
or another row's value ("resample"), which always lies in the head's distribution, as a zero or a mean may not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from headdyn.analysis.interventions.ablation import Kind
from headdyn.analysis.interventions.restart import Restart
from headdyn.data.corpus import Corpus
from headdyn.data.prompts import Prompts
from headdyn.models.decoder import Decoder

MAX_BYTES = 2**28  # memory for the activations and logits of the cells that run at once


@dataclass(frozen=True, kw_only=True)
class TokenGroup:
    """Rows of equal length, each belonging to a unit."""

    tokens_NT: np.ndarray
    units_N: np.ndarray
    documents_NT: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts that a model reads while heads are silenced, and the positions at which its next-token law is `read`.

    `units` is how many independent units the rows belong to, and `unit` is what one is called.
    """

    groups: tuple[TokenGroup, ...]
    units: int
    unit: str
    read: Literal["last", "all"]

    @classmethod
    def of_prompts(cls, prompts: Prompts, most: int) -> Texts:
        """The corrupted prompts of the first `most` pairs with the tokens that both answers share.

        They are read at the end, where the answers part. A pair with a prompt whose length no other prompt has is left
        out (`Prompts.in_company`).
        """
        few = prompts.where(np.arange(len(prompts.pairs)) < most).in_company()
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
    """Texts read by one model: the plain passes are run at construction, and every cell starts from them.

    `donors` is the largest number of other rows that each row is resampled from; the KL is averaged over them.
    Raises ValueError for a group of one row, which is its own mean and has no other row to resample from.
    """

    def __init__(
        self,
        decoder: Decoder,
        texts: Texts,
        generator: np.random.Generator,
        donors: int = 2,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        singles = [group for group in texts.groups if len(group.tokens_NT) < 2]
        if singles:
            raise ValueError(
                f"{len(singles)} of {len(texts.groups)} groups of texts of equal length hold one text, with no other "
                "to average with or to resample from; ask for more pairs (data.bug_pairs) or sequences"
            )
        self.decoder, self.texts = decoder, texts
        self._groups = [_Group(decoder, group, texts.read, generator, donors, max_bytes) for group in texts.groups]

    def divergences(self, kind: Kind, cells: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """KL(plain ‖ ablated) in nats of every cell and unit, [C, U], from masks [C, H] of heads for each layer."""
        parts = [group.divergences(kind, cells) for group in self._groups]
        return {layer: self.texts.by_unit([part[layer] for part in parts]) for layer in cells}


class _Group:
    """The texts of one length: their plain pass, and the donors that each row is resampled from."""

    def __init__(
        self,
        decoder: Decoder,
        group: TokenGroup,
        read: str,
        generator: np.random.Generator,
        donors: int,
        max_bytes: int,
    ) -> None:
        c, (rows, length) = decoder.config, group.tokens_NT.shape
        device = decoder.embed.weight.device
        self.decoder, positions = decoder, 1 if read == "last" else length
        documents = group.documents_NT
        self._restart = Restart(
            decoder,
            torch.from_numpy(group.tokens_NT).to(device),
            range(c.num_layers),
            read=positions,
            documents_NT=None if documents is None else torch.from_numpy(documents).to(device),
            max_bytes=max_bytes,
            read_bytes=rows * positions * c.vocab_size * 32,  # the law is read in float64
        )
        self._plain_NAV = self._law(self._restart.plain_NAD)
        order = torch.from_numpy(generator.permutation(rows)).to(device)
        self._donors = []  # each entry gives every row another row as its donor
        for shift in range(1, 1 + min(donors, rows - 1)):
            donor_N = torch.empty_like(order)
            donor_N[order] = order.roll(shift)
            self._donors.append(donor_N)

    @torch.no_grad()
    def _law(self, x: Tensor) -> Tensor:
        return self.decoder.unembed(self.decoder.norm(x)).double().log_softmax(-1)

    def divergences(self, kind: Kind, cells: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """KL of every cell and row, [C, N], averaged over the positions read."""
        own = self._restart.own
        ways: dict[Kind, list[Callable[[int], Tensor]]] = {
            "zero": [lambda layer: torch.zeros_like(own[layer][:1])],
            "mean": [lambda layer: own[layer].mean(0, keepdim=True)],
            "resample": [partial(lambda donor_N, layer: own[layer][donor_N], donor_N) for donor_N in self._donors],
        }
        results = [self._restart.run(cells, written, self._divergence) for written in ways[kind]]
        return {layer: np.mean([result[layer] for result in results], axis=0) for layer in cells}

    def _divergence(self, x_CNAD: Tensor) -> Tensor:
        kl_CNA = (self._plain_NAV.exp() * (self._plain_NAV - self._law(x_CNAD))).sum(-1)
        return kl_CNA.clamp_min(0).mean(-1)  # only rounding makes it negative


def group_rank(value: float, group_H: np.ndarray, groups_RH: np.ndarray, null_R: np.ndarray) -> float:
    """One-sided p of a group's value among groups of its size: the share at least as large, counting itself once.

    Exact where `groups_RH` are all groups of the size. Values equal up to rounding count as at least as large.
    """
    others = ~(groups_RH == group_H).all(1)
    hits = (null_R >= value - 1e-9 * abs(value))[others].sum()
    return float((1 + hits) / (1 + others.sum()))
