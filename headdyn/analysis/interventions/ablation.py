"""What breaks when heads are silenced, one by one and in groups, and is it more than any group of that size breaks?

Mechanistic checks, science.md §13. Letters as in models/decoder.py; U units (pairs of prompts, or sequences), R groups
drawn at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch

from headdyn.analysis.clusters import clusterings
from headdyn.analysis.clusters.figures import percentiles
from headdyn.analysis.clusters.geometry import CIRCUITS, circuit_cosines
from headdyn.analysis.contract import chosen_layer
from headdyn.analysis.interventions.head_ablation import KINDS, HeadAblation, Kind, Texts, group_rank, head_groups
from headdyn.analysis.interventions.patching import in_dtype
from headdyn.analysis.interventions.seed_ablation import METRICS as SEED_METRICS
from headdyn.analysis.interventions.seed_ablation import seed_ablation, smaller
from headdyn.core.figures import Figure, HeadMap, NullRanges, head_map, null_ranges
from headdyn.core.records import Findings, HeadTable, Metric
from headdyn.core.statistics import bootstrap_interval
from headdyn.data.comparisons import Prompts
from headdyn.data.corpus import Corpus
from headdyn.models.decoder import Decoder

Row = dict[str, Any]

_HOW: Mapping[str, str] = {
    "zero": "z set to 0",
    "mean": "z set to its mean over texts",
    "resample": "z taken from another text",
}
GROUPS: Mapping[str, str] = {
    "even": "the even heads",
    "odd": "the odd heads",  # so that only the even ones are left
    **{
        f"{circuit}_cluster": f"the smaller of two k-means clusters of {circuit.upper()} circuits"
        for circuit in CIRCUITS
    },
    **{
        f"only_{circuit}_cluster": f"all heads but the smaller cluster of {circuit.upper()} circuits"
        for circuit in CIRCUITS
    },
}


def _metrics() -> dict[str, Metric]:
    def kl(what: str) -> Metric:
        return Metric(meaning=f"KL of the next token's law, {what}", low=0, unit="nats")

    metrics = {f"{kind}_kl_nats": kl(f"this head's {how}") for kind, how in _HOW.items()}
    metrics["only_kl_nats"] = kl("this head alone left in its layer, the others' z set to their means")
    for kind, how in _HOW.items():
        metrics[f"layer_{kind}_kl_nats"] = kl(f"all heads of the layer with {how}")
        for group, words in GROUPS.items():
            metrics[f"{group}_{kind}_kl_nats"] = kl(f"{words} with {how}")
    for circuit in CIRCUITS:
        metrics[f"{circuit}_even_odd_energy"] = Metric(
            meaning=f"energy distance of even and odd heads by {circuit.upper()} circuits: twice the mean distance "
            "between less those within; p over splits of the heads",
            low=0,
        )
    return metrics


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Silences every head, every layer's heads together, and groups of heads of `layer` (default: ⌊L/2⌋).

    The measure is KL(plain ‖ silenced) in nats: for prompts of the law of the token where the answers part, averaged
    over pairs; for a corpus of every next token, averaged over sequences. Intervals (95 %, BCa) take those as units. A
    group's null is `random_groups` groups of its size, or all there are; one head's null is the mean of its layer's
    heads, without a p: that would be its rank among the very heads tested. q-values run over the model's rows, which
    are those of `layer`, and the energies of all layers. `protocol="seed"` adds the study's cluster swap, "only these
    heads" run and KS tests (see seed_ablation.py), with nulls.

    Tables: `groups`, one row per group and way of silencing it.
    Raises ValueError for a layer out of range, fewer than 4 heads a layer, and a single text of some length.
    """

    layer: int | None = None
    dtype: str = "float32"
    texts: int = 32
    donors: int = 2
    random_groups: int = 199
    splits: int = 1_000
    swaps: int = 50
    bootstrap_draws: int = 2_000
    protocol: str = "corrected"

    rows: ClassVar[Literal["head"]] = "head"
    needs: ClassVar[frozenset[str]] = frozenset()
    metrics: ClassVar[Mapping[str, Metric]] = {**_metrics(), **SEED_METRICS}

    def __post_init__(self) -> None:
        for name, known in (
            ("dtype", ("float64", "float32", "bfloat16", "float16")),
            ("protocol", ("corrected", "seed")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"analysis.ablation.{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(known)}"
                )
        least = {"texts": 2, "donors": 1, "random_groups": 20, "splits": 100, "swaps": 19, "bootstrap_draws": 100}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"analysis.ablation.{name}={getattr(self, name)} must be at least {low}")

    def __call__(self, decoder: Decoder, corpus: Prompts | Corpus, generator: np.random.Generator) -> Findings:
        """Head, layer and model rows as `metrics` names them, a table of groups, two figures."""
        c = decoder.config
        layer = chosen_layer(self.layer, c.num_layers)
        if c.num_heads < 4:
            raise ValueError(f"{c.num_heads} heads a layer make no groups; this analysis needs 4 or more")
        model = in_dtype(decoder, getattr(torch, self.dtype))
        prompts = corpus if isinstance(corpus, Prompts) else None
        if isinstance(corpus, Prompts):
            texts = Texts.of_prompts(corpus, self.texts)
        else:
            texts = Texts.of_corpus(corpus, self.texts)
        runs = HeadAblation(model, texts, generator, self.donors)
        heads = self._heads(runs, texts, generator)
        groups = self._groups(runs, layer, cluster_groups(decoder, layer, generator), generator)
        rows = [group.row(texts, generator, self.bootstrap_draws) for group in groups]
        rows += self._energies(decoder, generator)
        if self.protocol == "seed":
            prompt = None if prompts is None else prompts.seed_prompt
            rows += seed_ablation(decoder, model, prompt, layer, self.swaps, generator)
        tested = HeadTable.from_rows(rows).with_q()
        figures = {"heads": _head_figure(heads), "groups": _group_figure(groups, tested, layer)}
        tables = {"groups": _group_table(groups, tested)}
        return Findings(table=HeadTable.concat([heads, tested]), figures=figures, tables=tables)

    def _heads(self, runs: HeadAblation, texts: Texts, generator: np.random.Generator) -> HeadTable:
        """Head rows beside the mean of their layer's heads, and rows of whole layers."""
        c, layers = runs.decoder.config, range(runs.decoder.config.num_layers)
        alone_HH, others_HH = np.eye(c.num_heads, dtype=bool), ~np.eye(c.num_heads, dtype=bool)
        tables = []
        for name, kind, cells_CH in (*((kind, kind, alone_HH) for kind in KINDS), ("only", "mean", others_HH)):
            kl = runs.divergences(kind, dict.fromkeys(layers, cells_CH))
            kl_LHU = np.stack([kl[layer] for layer in layers])
            value_LH = kl_LHU.mean(-1)
            low, high = bootstrap_interval(np.moveaxis(kl_LHU, -1, 0), generator, draws=self.bootstrap_draws)
            null_LH = np.broadcast_to(value_LH.mean(-1, keepdims=True), value_LH.shape)
            columns: Row = {"ci_low": low, "ci_high": high, "null": null_LH}
            tables.append(HeadTable.per_head(f"{name}_kl_nats", value_LH, **columns, n=texts.units, unit=texts.unit))
        for kind in KINDS:
            kl = runs.divergences(kind, dict.fromkeys(layers, np.ones((1, c.num_heads), dtype=bool)))
            kl_LU = np.concatenate([kl[layer] for layer in layers])
            low, high = bootstrap_interval(kl_LU.T, generator, draws=self.bootstrap_draws)
            columns = {"ci_low": low, "ci_high": high, "n": texts.units, "unit": texts.unit}
            tables.append(HeadTable.per_layer(f"layer_{kind}_kl_nats", kl_LU.mean(-1), **columns))
        return HeadTable.concat(tables)

    def _groups(
        self, runs: HeadAblation, layer: int, clusters: Mapping[str, np.ndarray], generator: np.random.Generator
    ) -> list[Group]:
        """Every group silenced in every way, each with random groups of the same number."""
        heads = np.arange(runs.decoder.config.num_heads)
        silent = {"even": heads % 2 == 0, "odd": heads % 2 == 1, **clusters}
        silent |= {f"only_{name}": ~mask_H for name, mask_H in clusters.items()}
        assert set(silent) == set(GROUPS)
        random = {
            size: head_groups(len(heads), size, self.random_groups, generator)
            for size in sorted({int(mask_H.sum()) for mask_H in silent.values()})
        }
        found = []
        for kind in KINDS:
            null = {s: runs.divergences(kind, {layer: masks_RH})[layer].mean(-1) for s, masks_RH in random.items()}
            kl_CU = runs.divergences(kind, {layer: np.stack(list(silent.values()))})[layer]
            for (name, mask_H), kl_U in zip(silent.items(), kl_CU, strict=True):
                size = int(mask_H.sum())
                found.append(
                    Group(
                        name=name,
                        kind=kind,
                        silent_H=mask_H,
                        kl_U=kl_U,
                        random_RH=random[size],
                        null_R=null[size],
                    )
                )
        return found

    def _energies(self, decoder: Decoder, generator: np.random.Generator) -> list[Row]:
        """Even against odd heads by their weights, at every layer; heads are the unit."""
        heads = decoder.config.num_heads
        even_H = np.arange(heads) % 2 == 0
        splits_RH = head_groups(heads, int(even_H.sum()), self.splits, generator)
        rows = []
        for layer in range(decoder.config.num_layers):
            for circuit, cosine_HH in circuit_cosines(decoder, layer).items():
                distance_HH = clusterings.distances(cosine_HH[None])[0]
                value, null_R = energy(distance_HH, even_H[None])[0], energy(distance_HH, splits_RH)
                row = {"metric": f"{circuit}_even_odd_energy", "layer": layer, "value": float(value)}
                p = group_rank(value, even_H, splits_RH, null_R)
                rows.append(row | {"null": float(null_R.mean()), "p": p, "n": heads, "unit": "head"})
        return rows


@dataclass(frozen=True, kw_only=True)
class Group:
    """One set of heads silenced in one way: its KL by unit, and the mean KL of R other sets of the same number."""

    name: str
    kind: Kind
    silent_H: np.ndarray
    kl_U: np.ndarray
    random_RH: np.ndarray
    null_R: np.ndarray

    @property
    def metric(self) -> str:
        """The metric's name."""
        return f"{self.name}_{self.kind}_kl_nats"

    def row(self, texts: Texts, generator: np.random.Generator, draws: int) -> Row:
        """The model's row, with the interval over units and the rank among random sets."""
        low, high = (bound.item() for bound in bootstrap_interval(self.kl_U, generator, draws=draws))
        return {
            "metric": self.metric,
            "value": float(self.kl_U.mean()),
            "ci_low": low,
            "ci_high": high,
            "null": float(self.null_R.mean()),
            "p": group_rank(self.kl_U.mean(), self.silent_H, self.random_RH, self.null_R),
            "n": texts.units,
            "unit": texts.unit,
        }


def cluster_groups(decoder: Decoder, layer: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """The smaller of the two k-means clusters of the layer's QK and of its OV circuits, as masks [H]."""
    return {
        f"{circuit}_cluster": smaller(clusterings.kmeans(cosine_HH[None], 2, generator)[0])
        for circuit, cosine_HH in circuit_cosines(decoder, layer).items()
    }


def energy(distance_HH: np.ndarray, first_RH: np.ndarray) -> np.ndarray:
    """Energy distance between the points of a mask and all others (Székely & Rizzo 2004), for each of R masks, [R].

    Twice the mean distance between the two less the mean distances within each, a point's to itself included: 0 or
    more, and 0 only where both sets lie alike.
    """
    share_RH = first_RH / first_RH.sum(-1, keepdims=True) - ~first_RH / (~first_RH).sum(-1, keepdims=True)
    return np.maximum(-np.einsum("rh,hk,rk->r", share_RH, distance_HH, share_RH), 0)


def _group_table(groups: Sequence[Group], tested: HeadTable) -> pa.Table:
    """One row per group and way of silencing it: the heads silenced, KL, and the random groups' range."""
    by_metric, records = tested.summary(), []
    for group in groups:
        row = by_metric[group.metric]
        low, mean, high = percentiles(group.null_R[:, None])[0].tolist()
        records.append(
            {
                "group": group.name,
                "kind": group.kind,
                "silenced": np.flatnonzero(group.silent_H).tolist(),
                "kl_nats": row["value"],
                "null_5_percent": low,
                "null_mean": mean,
                "null_95_percent": high,
                "random_groups": len(group.null_R),
                "p": row["p"],
                "q": row["q"],
            }
        )
    return pa.Table.from_pylist(records)


def _head_figure(heads: HeadTable) -> Figure:
    panels = []
    for name, title in (*((kind, f"{kind}-ablation of one head") for kind in KINDS), ("only", "only this head left")):
        value_LH = heads.matrix(f"{name}_kl_nats")
        small = value_LH.max() < 0.05  # cells and scale have room for three digits
        value_LH, unit = (1e3 * value_LH, "KL, millinats") if small else (value_LH, "KL, nats")
        panels.append(HeadMap(title=title, value_LH=value_LH, unit=unit, limits=(0, value_LH.max())))
    return head_map(panels)


def _group_figure(groups: Sequence[Group], tested: HeadTable, layer: int) -> Figure:
    by_metric = tested.summary()
    panels = []
    for kind in KINDS:
        shown = [group for group in groups if group.kind == kind]
        of = [by_metric[group.metric] for group in shown]
        panels.append(
            NullRanges(
                title=f"{kind}-ablation",
                labels=[group.name.replace("_", " ") for group in shown],
                value_X=np.array([row["value"] for row in of]),
                low_X=np.array([row["ci_low"] for row in of]),
                high_X=np.array([row["ci_high"] for row in of]),
                null_X3=np.concatenate([percentiles(group.null_R[:, None]) for group in shown]),
                marked_X=np.array([row["q"] < 0.05 for row in of]),
                ylabel="KL (nats)",
            )
        )
    title = f"Groups of heads of layer {layer} silenced (only …: all others silenced); chance: random groups as large"
    return null_ranges(panels, columns=len(KINDS), title=title, mark="q < 0.05, one-sided")
