"""A scan over groups of heads of any size, with a null of the whole scan. Letters: S groups, P pairs, H heads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from headdyn.analysis.interventions.group_scan import GroupScan
from headdyn.analysis.interventions.pair_rows import PairRows
from headdyn.analysis.interventions.patch import chosen_layer
from headdyn.analysis.interventions.patching import PromptPatching, bug_pairs, heads_as_weights, in_dtype
from headdyn.analysis.interventions.splits import head_groups
from headdyn.core.figures import Curve, Figure, curves
from headdyn.core.records import Findings, HeadTable
from headdyn.core.statistics import at_least_as_high
from headdyn.data.prompts import Prompts
from headdyn.models.decoder import Decoder


def measure(settings: GroupScan, decoder: Decoder, prompts: Prompts, generator: np.random.Generator) -> Findings:
    """Everything that `GroupScan` reports under these settings."""
    heads = decoder.config.num_heads
    layer = chosen_layer(settings.layer, decoder.config.num_layers)
    groups = scanned_groups(heads, min(settings.largest or heads // 2, heads - 1), settings.groups_per_size, generator)
    model, patch = in_dtype(decoder, settings.dtype), settings.patch(settings.direction)
    kinds = [bug_pairs(prompts), prompts.where(~prompts.is_bug_P)]
    kinds = [kind for kind in kinds if kind.pairs]
    deltas = [
        PromptPatching(model, kind, patch, [layer]).deltas({layer: groups.member_SH.astype(float)})[layer]
        for kind in kinds
    ]
    weight_P = np.concatenate([np.full(delta_SP.shape[1], 1 / delta_SP.shape[1]) for delta_SP in deltas]) / len(kinds)
    scan = Scan.of(groups, np.concatenate(deltas, axis=1), weight_P)
    null_R = scan.null(settings.relabellings, generator)
    p, limit = at_least_as_high(null_R), np.quantile(null_R, 0.95).item()
    pairs = len(weight_P)
    common: dict[str, Any] = {"n": pairs, "unit": "pair"}
    maximum = HeadTable.whole("scan_maximum", null_R[0], null=limit, p=p, **common)
    if pairs > 1:
        pair_rows = PairRows(generator=generator, bootstrap_draws=settings.bootstrap_draws)
        best = pair_rows.mean("best_group_nats", pairs * weight_P * scan.held_out_P(), null=0.0, p=p)
    else:
        reason = "one pair leaves none to choose the group on"
        best = HeadTable.whole("best_group_nats", None, reason=reason, **common)
    return Findings(
        table=HeadTable.concat([maximum, best]),
        figures={"scan": _figure(scan, limit, layer)},
        tables={
            "group_scan": pa.table(
                {
                    "heads": [np.flatnonzero(member_H).tolist() for member_H in groups.member_SH],
                    "size": groups.size_S,
                    "excess_nats": scan.excess_SP @ weight_P,
                    "standardised": scan.standardised_S,
                }
            )
        },
    )


@dataclass(frozen=True, kw_only=True)
class Groups:
    """A set of groups that relabelling the heads maps onto itself; `member_SH` marks the heads of each group.

    `order_H` is None if the set has every group of each of its sizes. Else it is an order of the heads, and only
    rotations of that order map the set onto itself.
    """

    member_SH: np.ndarray  # bool
    order_H: np.ndarray | None

    @property
    def size_S(self) -> np.ndarray:
        return self.member_SH.sum(1)

    def relabellings(self, pairs: int, draws: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
        """Relabellings of the heads in each pair, as the index of the group that takes each group's place, [S, P].

        The first changes nothing. Relabelling all pairs alike changes no maximum, so the first pair can stay as it is:
        if there are at most `draws` such relabellings, all of these are yielded. Else `draws` random ones follow.
        """
        if pairs == 1:
            yield np.arange(len(self.member_SH))[:, None]
            return
        heads = self.member_SH.shape[1]
        count = math.factorial(heads) if self.order_H is None else heads
        if count ** (pairs - 1) <= draws:
            images = self._image(self._labels())
            for choice in itertools.product(range(count), repeat=pairs - 1):
                yield images[:, [0, *choice]]
            return
        yield np.repeat(np.arange(len(self.member_SH))[:, None], pairs, axis=1)
        if self.order_H is None:
            for _ in range(draws):
                yield self._image(generator.permuted(np.tile(np.arange(heads), (pairs, 1)), axis=1))
            return
        images = self._image(self._labels())
        for _ in range(draws):
            yield images[:, generator.integers(heads, size=pairs)]

    def _labels(self) -> np.ndarray:
        """All X relabellings, [X, H]: head h becomes label[h]; the first changes nothing."""
        heads = self.member_SH.shape[1]
        if self.order_H is None:
            return np.array(list(itertools.permutations(range(heads))))
        label_XH = np.empty((heads, heads), dtype=int)
        for turn, label_H in enumerate(label_XH):
            label_H[self.order_H] = np.roll(self.order_H, turn)
        return label_XH

    def _image(self, label_XH: np.ndarray) -> np.ndarray:
        """The index of the group that each group becomes under X relabellings, [S, X]."""
        place = 2.0 ** np.arange(self.member_SH.shape[1])  # exact up to 53 heads, the most that a scan takes
        bits_S = self.member_SH @ place
        order_S = np.argsort(bits_S)
        return order_S[np.searchsorted(bits_S[order_S], self.member_SH @ place[label_XH].T)]


def scanned_groups(heads: int, largest: int, most: int, generator: np.random.Generator) -> Groups:
    """All groups of 1 to `largest` heads; if a size has more than `most`, at most `most`, in families of rotations.

    Raises ValueError for fewer than 2 or more than 53 heads, and for a `most` below the number of heads.
    """
    if not 2 <= heads <= 53:
        raise ValueError(
            f"analysis=group_scan compares groups of 2 to 53 heads of a layer, and this model has {heads}; leave it out"
        )
    if most < heads:
        raise ValueError(
            f"analysis.group_scan.groups_per_size={most} must be at least the {heads} heads of a layer: groups of a "
            "size are drawn as whole families of rotations"
        )
    sizes = range(1, largest + 1)
    complete = all(math.comb(heads, size) <= most for size in sizes)
    order_H = None if complete else generator.permutation(heads)
    groups: dict[tuple[int, ...], None] = {}
    for size in sizes:
        if order_H is None or math.comb(heads, size) <= most:
            groups |= dict.fromkeys(head_groups(range(heads), size, most, generator))
            continue
        for places in head_groups(range(heads), size, most // heads, generator):
            for turn in range(heads):
                groups.setdefault(tuple(sorted(order_H[(np.array(places) + turn) % heads].tolist())))
    return Groups(member_SH=heads_as_weights(list(groups), heads) == 1, order_H=order_H)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Every group's excess in every pair, its variance under the null, and the pairs' weights, whose sum is 1."""

    groups: Groups
    excess_SP: np.ndarray  # Δ less its mean over groups of that size, nats
    variance_SP: np.ndarray  # variance of Δ over groups of that size
    weight_P: np.ndarray

    @classmethod
    def of(cls, groups: Groups, delta_SP: np.ndarray, weight_P: np.ndarray) -> Scan:
        """From Δ in nats of every group and pair."""
        excess_SP, variance_SP = np.array(delta_SP, dtype=float), np.empty(delta_SP.shape)
        for size in np.unique(groups.size_S):
            at_S = groups.size_S == size
            excess_SP[at_S] -= excess_SP[at_S].mean(0)
            variance_SP[at_S] = excess_SP[at_S].var(0)
        return cls(groups=groups, excess_SP=excess_SP, variance_SP=variance_SP, weight_P=weight_P)

    @property
    def standardised_SP(self) -> np.ndarray:
        """Each pair's part of a group's standardised excess (the row's sum)."""
        spread_S = np.sqrt(self.variance_SP @ self.weight_P**2)[:, None]
        return _ratio(self.weight_P * self.excess_SP, spread_S)

    @property
    def standardised_S(self) -> np.ndarray:
        return self.standardised_SP.sum(1)

    def null(self, draws: int, generator: np.random.Generator) -> np.ndarray:
        """The largest standardised excess of any group under each relabelling, [R]; the first is the measured one."""
        part_SP = self.standardised_SP
        pairs = np.arange(part_SP.shape[1])
        images = self.groups.relabellings(len(pairs), draws, generator)
        return np.array([part_SP[image_SP, pairs].sum(1).max() for image_SP in images])

    def held_out_P(self) -> np.ndarray:
        """For each pair, the excess of the group that stands out most in the other pairs, [P] in nats."""
        part_SP, weight_P = self.weight_P * self.excess_SP, self.weight_P**2
        others_SP = part_SP.sum(1, keepdims=True) - part_SP
        spread_SP = np.sqrt(np.maximum((self.variance_SP @ weight_P)[:, None] - self.variance_SP * weight_P, 0))
        return self.excess_SP[_ratio(others_SP, spread_SP).argmax(0), np.arange(len(weight_P))]


def _ratio(excess_SP: np.ndarray, spread_SP: np.ndarray) -> np.ndarray:
    """Excess over spread; 0 where the spread is 0 to within rounding, because all groups of a size have the same Δ."""
    spread_SP = np.broadcast_to(spread_SP, excess_SP.shape)
    return np.divide(
        excess_SP, spread_SP, out=np.zeros(excess_SP.shape), where=spread_SP > 1e-9 * spread_SP.max(initial=0)
    )


def _figure(scan: Scan, limit: float, layer: int) -> Figure:
    sizes = np.unique(scan.groups.size_S)
    highest = [scan.standardised_S[scan.groups.size_S == size].max() for size in sizes]
    kind = "every group" if scan.groups.order_H is None else "a sample of groups"
    return curves(
        [Curve(label="the group of the size that stands out most", x=sizes, y=highest)],
        xlabel="heads in the group",
        ylabel="excess (standard deviations)",
        title=f"Groups of any size, layer {layer}",
        references={"95 % of relabelled scans stay below": limit},
        whole_x=True,
        caption=f"How far the best group of a size, of {kind} of the layer's heads, lies above the mean of its size. "
        "The line is exceeded by the best of all groups in 5 % of scans with heads relabelled in each pair.",
    )
