"""Heads silenced alone and in groups: rows, nulls and pictures. Letters as in head_ablation.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from headdyn.analysis.clusters import clusterings
from headdyn.analysis.clusters.figures import percentiles
from headdyn.analysis.clusters.geometry import circuit_cosines
from headdyn.analysis.estimates import Estimate, means
from headdyn.analysis.head_profiles import profile_table
from headdyn.analysis.interventions.ablation import GROUPS, KINDS, Ablation, Kind
from headdyn.analysis.interventions.head_ablation import HeadAblation, Texts, group_rank
from headdyn.analysis.interventions.patch import chosen_layer
from headdyn.analysis.interventions.patching import heads_as_weights, in_dtype
from headdyn.analysis.interventions.splits import head_groups
from headdyn.core.figures import Figure, HeadMap, head_map
from headdyn.core.records import Findings, HeadTable
from headdyn.core.special_charts import NullRanges, null_ranges
from headdyn.data.corpus import Corpus
from headdyn.data.prompts import Prompts
from headdyn.models.decoder import Decoder


def measure(settings: Ablation, decoder: Decoder, corpus: Prompts | Corpus, generator: np.random.Generator) -> Findings:
    """Everything that `Ablation` reports under these settings."""
    c = decoder.config
    layer = chosen_layer(settings.layer, c.num_layers)
    if c.num_heads < 4:
        raise ValueError(
            f"{c.num_heads} heads a layer make no groups; leave ablation out, or take a model with 4 or more"
        )
    count = settings.texts
    texts = Texts.of_prompts(corpus, count) if isinstance(corpus, Prompts) else Texts.of_corpus(corpus, count)
    runs = HeadAblation(in_dtype(decoder, settings.dtype), texts, generator, settings.donors)
    heads, profiles = _heads(runs, texts, generator, settings.bootstrap_draws)
    clusters = cluster_groups(decoder, layer, generator)
    groups = _groups(runs, layer, clusters, settings.random_groups, generator)
    rows = [group.row(texts, generator, settings.bootstrap_draws) for group in groups]
    tested = HeadTable.concat([*rows, *_energies(decoder, settings.splits, generator)]).with_q()
    return Findings(
        table=HeadTable.concat([heads, tested]),
        figures={"heads": _head_figure(heads), "groups": _group_figure(groups, tested, layer)},
        tables={"groups": _group_table(groups, tested), "ablation_profiles": profiles},
    )


def _heads(runs: HeadAblation, texts: Texts, generator: np.random.Generator, draws: int) -> tuple[HeadTable, pa.Table]:
    """Head rows whose null is the mean of their layer's heads, layer rows, and the table of every unit's KL by head."""
    heads, layers = runs.decoder.config.num_heads, range(runs.decoder.config.num_layers)
    alone_HH = np.eye(heads, dtype=bool)
    tables, by_unit = [], {}

    def divergences(name: str, kind: Kind, cells_CH: np.ndarray) -> Estimate:
        """Mean KL [L, C] with its interval over units."""
        kl = runs.divergences(kind, dict.fromkeys(layers, cells_CH))
        by_unit[name] = np.moveaxis(np.stack([kl[layer] for layer in layers]), -1, 0)
        return means(by_unit[name], generator, draws=draws)

    for name, kind, cells_CH in (*((kind, kind, alone_HH) for kind in KINDS), ("only", "mean", ~alone_HH)):
        kl = divergences(name, kind, cells_CH)
        null_LH = np.broadcast_to(kl.value.mean(-1, keepdims=True), kl.value.shape)
        tables.append(kl.rows(f"{name}_kl_nats", unit=texts.unit, null=null_LH))
    for kind in KINDS:
        kl = divergences("layer", kind, np.ones((1, heads), dtype=bool))
        tables.append(kl[:, 0].rows(f"layer_{kind}_kl_nats", unit=texts.unit))
    return HeadTable.concat(tables), profile_table({kind: by_unit[kind] for kind in KINDS})


@dataclass(frozen=True, kw_only=True)
class Group:
    """One set of heads silenced in one way: its KL by unit, and the mean KL of R random sets of as many heads."""

    name: str
    kind: Kind
    silent_H: np.ndarray
    kl_U: np.ndarray
    random_RH: np.ndarray
    null_R: np.ndarray

    @property
    def metric(self) -> str:
        return f"{self.name}_{self.kind}_kl_nats"

    def row(self, texts: Texts, generator: np.random.Generator, draws: int) -> HeadTable:
        """The model's row, with the interval over units and the rank among random sets."""
        p = group_rank(self.kl_U.mean(), self.silent_H, self.random_RH, self.null_R)
        kl = means(self.kl_U, generator, draws=draws)
        return kl.rows(self.metric, unit=texts.unit, null=self.null_R.mean(), p=p)


def _groups(
    runs: HeadAblation,
    layer: int,
    clusters: Mapping[str, np.ndarray],
    random_groups: int,
    generator: np.random.Generator,
) -> list[Group]:
    """Every group silenced in every way, each with random groups of as many heads."""
    heads = np.arange(runs.decoder.config.num_heads)
    silent = {"even": heads % 2 == 0, "odd": heads % 2 == 1, **clusters}
    silent |= {f"only_{name}": ~mask_H for name, mask_H in clusters.items()}
    assert set(silent) == set(GROUPS)
    sizes = sorted({int(mask_H.sum()) for mask_H in silent.values()})
    random = {size: group_masks(len(heads), size, random_groups, generator) for size in sizes}
    groups = []
    for kind in KINDS:
        null = {size: runs.divergences(kind, {layer: masks_RH})[layer].mean(-1) for size, masks_RH in random.items()}
        kl_CU = runs.divergences(kind, {layer: np.stack(list(silent.values()))})[layer]
        for (name, mask_H), kl_U in zip(silent.items(), kl_CU, strict=True):
            size = int(mask_H.sum())
            groups.append(
                Group(name=name, kind=kind, silent_H=mask_H, kl_U=kl_U, random_RH=random[size], null_R=null[size])
            )
    return groups


def _energies(decoder: Decoder, splits: int, generator: np.random.Generator) -> list[HeadTable]:
    """Even against odd heads by their weights, at every layer; heads are the unit."""
    heads = decoder.config.num_heads
    even_H = np.arange(heads) % 2 == 0
    splits_RH = group_masks(heads, int(even_H.sum()), splits, generator)
    rows = []
    for layer in range(decoder.config.num_layers):
        for circuit, cosine_HH in circuit_cosines(decoder, layer).items():
            distance_HH = clusterings.distances(cosine_HH[None])[0]
            value, null_R = energy(distance_HH, even_H[None])[0], energy(distance_HH, splits_RH)
            columns = {"null": null_R.mean(), "p": group_rank(value, even_H, splits_RH, null_R), "n": heads}
            row = HeadTable.whole(f"{circuit}_parity_energy", value, **columns, unit="head")
            rows.append(row.labelled(layer=layer))
    return rows


def group_masks(heads: int, size: int, most: int, generator: np.random.Generator) -> np.ndarray:
    """Groups of `size` of a layer's heads as masks [R, H]: all there are, or `most` different ones."""
    return heads_as_weights(head_groups(range(heads), size, most, generator), heads) == 1


def cluster_groups(decoder: Decoder, layer: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """The smaller of the two k-means clusters of the layer's QK and of its OV circuits, as masks [H]."""
    return {
        f"{circuit}_cluster": clusterings.smaller(clusterings.kmeans(cosine_HH[None], 2, generator)[0])
        for circuit, cosine_HH in circuit_cosines(decoder, layer).items()
    }


def energy(distance_HH: np.ndarray, first_RH: np.ndarray) -> np.ndarray:
    """Energy distance between the points of a mask and all others (Székely & Rizzo 2004), for each of R masks, [R].

    Twice the mean distance between the two sets less the mean distances within each, where each point's distance to
    itself counts too. At least 0, and 0 only where both sets have the same distribution.
    """
    share_RH = first_RH / first_RH.sum(-1, keepdims=True) - ~first_RH / (~first_RH).sum(-1, keepdims=True)
    return np.maximum(-np.einsum("rh,hk,rk->r", share_RH, distance_HH, share_RH), 0)


def _group_table(groups: Sequence[Group], tested: HeadTable) -> pa.Table:
    """One row per group and way of silencing it: the heads silenced, KL, and the random groups' range."""
    summary, records = tested.summary(), []
    for group in groups:
        row = summary[group.metric]
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
    caption = "How far the next token's law moves when a head is silenced; 0 is a head that the output does not need."
    return head_map(panels, caption=caption)


def _group_figure(groups: Sequence[Group], tested: HeadTable, layer: int) -> Figure:
    summary = tested.summary()
    panels = []
    for kind in KINDS:
        kind_groups = [group for group in groups if group.kind == kind]
        rows = [summary[group.metric] for group in kind_groups]
        columns = {name: np.array([row[name] for row in rows]) for name in ("value", "ci_low", "ci_high", "q")}
        panels.append(
            NullRanges(
                title=f"{kind}-ablation",
                labels=[group.name.replace("_", " ") for group in kind_groups],
                value_X=columns["value"],
                low_X=columns["ci_low"],
                high_X=columns["ci_high"],
                null_X3=np.concatenate([percentiles(group.null_R[:, None]) for group in kind_groups]),
                marked_X=columns["q"] < 0.05,
                ylabel="KL (nats)",
            )
        )
    return null_ranges(
        panels,
        columns=len(KINDS),
        title=f"Groups of heads of layer {layer} silenced",
        mark="q < 0.05, one-sided",
        caption="“only …” silences all other heads. Grey: random groups of as many heads, the level of chance.",
    )
