"""Heads of every layer clustered by weights and by effects, against random heads (science.md §12).

Letters as in clusterings.py; L layers, P pairs. A layer's row has heads as its unit and a null, no interval.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow.compute as pc

from headdyn.analysis.clusters import CIRCUITS, all_clusterings, clusterings
from headdyn.analysis.clusters.all_clusterings import AllClusterings, Clouds, Key, Recipe
from headdyn.analysis.clusters.figures import assignment_figure, point_figure, silhouette_figure
from headdyn.analysis.clusters.geometry import behind_gains, circuit_cosines, random_circuit_cosines, rotated_heads
from headdyn.analysis.clusters.tables import clustering_table, coordinate_table, distance_table
from headdyn.analysis.head_clusters import NO_PROMPTS, HeadClusters
from headdyn.analysis.head_profiles import profile_table
from headdyn.analysis.interventions.pair_rows import PairRows
from headdyn.analysis.interventions.patch import Patch, chosen_layer
from headdyn.analysis.interventions.patching import PromptPatching, bug_pairs, in_dtype
from headdyn.core.kept_parts import Part, parts
from headdyn.core.records import Findings, HeadTable
from headdyn.core.statistics import at_least_as_high, benjamini_hochberg
from headdyn.data.corpus import Corpus
from headdyn.data.prompts import Prompts
from headdyn.models.decoder import Decoder

ABLATE = Patch(source="mean", steps="every_position")
# Measures with a p. The others only describe the split: whether there is one needs no further tests.
TESTED = ("silhouette", "best_silhouette", "first_component")
# The null of behaviour keeps the heads' covariance, and with it the share of variance on one axis. The null column of
# that share is therefore the even share 1/(H−1), without a p: H centred heads vary along H−1 axes.
EVEN_SHARE = ("behaviour_first_component",)


def measure(
    settings: HeadClusters, decoder: Decoder, corpus: Prompts | Corpus, generator: np.random.Generator
) -> Findings:
    """Everything that `HeadClusters` reports under these settings."""
    c = decoder.config
    layer = chosen_layer(settings.layer, c.num_layers)
    if c.num_heads < 4:
        raise ValueError(f"{c.num_heads} heads a layer cannot form clusters; head_clusters needs 4 or more")
    recipe = Recipe(
        kmeans_k=settings.kmeans_k, ward_k=settings.ward_k, eps=settings.dbscan_eps, restarts=settings.restarts
    )
    kinds = _circuits(recipe, decoder, settings.null_draws, generator)
    tables, repairs_H, profiles = [], None, {}
    if isinstance(corpus, Prompts):
        model = in_dtype(decoder, settings.dtype)
        pair_rows = PairRows(
            generator=generator, bootstrap_draws=settings.bootstrap_draws, sign_flips=settings.sign_flips
        )
        effect_LHP = _effects(model, corpus.in_company(), ABLATE, range(c.num_layers))
        profiles = {"effect_profiles": profile_table({"effect_nats": np.moveaxis(effect_LHP, -1, 0)})}
        gram_LHH = effect_LHP @ effect_LHP.swapaxes(-1, -2) / effect_LHP.shape[-1]  # distances: rms over pairs, nats
        rotated = [rotated_heads(gram_HH, settings.null_draws, generator) for gram_HH in gram_LHH]
        kinds["behaviour"] = _clouds(recipe, gram_LHH, rotated, generator)
        repair_H = pair_rows.effects(_effects(model, bug_pairs(corpus), Patch(), [layer])[0].T)
        repairs_H = (benjamini_hochberg(repair_H.p) < 0.05) & (repair_H.value > 0)
        effect_X = pair_rows.effects(effect_LHP.reshape(-1, effect_LHP.shape[-1]).T)
        effect_LH = effect_X[np.arange(c.num_layers * c.num_heads).reshape(c.num_layers, -1)]
        tables.append(effect_LH.rows("effect_nats", unit="pair", null=0.0))
        tables.append(_agreement_rows(kinds, settings.relabellings, generator))
    else:
        tables.append(_without_prompts(settings, c.num_layers, c.num_heads))
    tables += [_kind_rows(kind, clouds, settings.relabellings, generator) for kind, clouds in kinds.items()]
    table = HeadTable.concat(tables)
    # Two families: whether layers fall into groups, and what single heads do.
    heads = HeadTable(table.table.filter(pc.is_valid(table.table["head"]))).with_q()
    table = table.where(head=None).with_q()
    accuracy = _accuracy_row(kinds, repairs_H, layer, settings.relabellings, generator)
    own = {kind: clouds.own for kind, clouds in kinds.items()}
    return Findings(
        table=HeadTable.concat([heads, table, table.where(layer=layer).labelled(layer=None), accuracy]),
        figures={
            "silhouettes": silhouette_figure(kinds, table),
            "assignments": assignment_figure(own, layer, layer, repairs_H),
            "points": point_figure(own, layer, layer, seed=int(generator.integers(2**31))),
        },
        tables={
            "clusterings": clustering_table(kinds, {layer: repairs_H}),
            "coordinates": coordinate_table(own),
            "distances": distance_table(own),
            **profiles,
        },
    )


def _circuits(recipe: Recipe, decoder: Decoder, draws: int, generator: np.random.Generator) -> dict[str, Clouds]:
    random_RHH = random_circuit_cosines(decoder, draws, generator)
    layers = range(decoder.config.num_layers)
    own = [circuit_cosines(decoder, layer) for layer in layers]
    random = [behind_gains(random_RHH, decoder, layer) for layer in layers]
    return {
        kind: _clouds(recipe, [layer[kind] for layer in own], [layer[kind] for layer in random], generator)
        for kind in CIRCUITS
    }


def _clouds(
    recipe: Recipe, own: Sequence[np.ndarray], nulls: Sequence[np.ndarray], generator: np.random.Generator
) -> Clouds:
    """Each layer's heads, [H, H], and its random heads, [R, H, H], clustered from the same random starts.

    With different starts, a null could have better or worse ones than the heads, and p would not hold its level.
    """
    seed, clouds = int(generator.integers(2**63)), (np.stack(own), *nulls)

    def cluster(at: slice) -> Part:
        labels = recipe(clouds[at.start], np.random.default_rng(seed)).labels
        return {f"{method} {parameter}": labels_RH for (method, parameter), labels_RH in labels.items()}

    done = [part for _, part in parts("clustering heads", "layers", len(clouds), 1, cluster, clouds)]
    own_and_nulls = [
        AllClusterings(gram_RHH=gram_RHH, labels={_key(name): labels_RH for name, labels_RH in part.items()})
        for gram_RHH, part in zip(clouds, done, strict=True)
    ]
    return Clouds(own=own_and_nulls[0], nulls=own_and_nulls[1:])


def _key(name: str) -> Key:
    method, parameter = name.split()
    return method, float(parameter)


def _effects(model: Decoder, prompts: Prompts, patch: Patch, layers: Sequence[int]) -> np.ndarray:
    """Change of Δ in nats when each head alone is patched, [L, H, P]."""
    patching = PromptPatching(model, prompts, patch, layers)
    deltas = patching.deltas(dict.fromkeys(layers, np.eye(model.config.num_heads)))
    return np.stack([deltas[layer] for layer in layers]) - patching.target_P


# -- rows -------------------------------------------------------------------------------------------------------------


def _layers(metric: str, value_L: Any, null_L: Any, p_L: Any, heads: int) -> HeadTable:
    value_L, null_L, p_L = (np.asarray(x, dtype=float) for x in (value_L, null_L, p_L))
    reason = "the heads do not fall into two clusters of the kind this needs"
    return HeadTable.per_layer(metric, value_L, null=null_L, p=p_L, n=heads, unit="head", reason=reason)


def _kind_rows(kind: str, clouds: Clouds, relabellings: int, generator: np.random.Generator) -> HeadTable:
    """Layer rows of every measure and of agreement with even/odd, head rows of outliers."""
    layers, heads = clouds.own.split_RH.shape
    tables = []
    null_quality = [null.quality() for null in clouds.nulls]
    for name, value_L in clouds.own.quality().items():
        compared = zip(value_L, (null[name] for null in null_quality), strict=True)
        null_L, p_L = zip(
            *(all_clusterings.against_null(value, null_R, name in TESTED) for value, null_R in compared), strict=True
        )
        if f"{kind}_{name}" in EVEN_SHARE:
            null_L, p_L = (1 / (heads - 1),) * layers, (np.nan,) * layers
        tables.append(_layers(f"{kind}_{name}", value_L, null_L, p_L, heads))
    parity_H = np.arange(heads) % 2
    matches = [
        all_clusterings.agreement(labels_H, parity_H, relabellings, generator) for labels_H in clouds.own.split_RH
    ]
    rand_L, p_rand_L = [match.rand for match in matches], [match.p_rand for match in matches]
    tables.append(_layers(f"{kind}_parity_rand", rand_L, np.zeros(layers), p_rand_L, heads))
    # Random heads are exchangeable, so that each of them is a draw for every head.
    null_LX = np.stack([null.alone_RH.ravel() for null in clouds.nulls])
    hits_LH = (null_LX[:, :, None] >= clouds.own.alone_RH[:, None] - 1e-12).sum(1)
    null_LH = np.broadcast_to(null_LX.mean(1, keepdims=True), hits_LH.shape)
    columns: dict[str, Any] = {"null": null_LH, "p": (1 + hits_LH) / (1 + null_LX.shape[1])}
    count = len(clouds.own.labels)
    alone = HeadTable.per_head(f"{kind}_alone", clouds.own.alone_RH, **columns, n=count, unit="clustering")
    return HeadTable.concat([*tables, alone])


def _agreement_rows(kinds: Mapping[str, Clouds], relabellings: int, generator: np.random.Generator) -> HeadTable:
    """Layer rows of how far weight clusters and behaviour clusters agree."""
    tables, effects_LH = [], kinds["behaviour"].own.split_RH
    for kind in CIRCUITS:
        pairs = zip(kinds[kind].own.split_RH, effects_LH, strict=True)
        matches = [all_clusterings.agreement(*pair, relabellings, generator) for pair in pairs]
        rand, p_rand, information, null, p_information = (
            [getattr(match, name) for match in matches]
            for name in ("rand", "p_rand", "information_nats", "null_information_nats", "p_information")
        )
        heads = effects_LH.shape[1]
        tables.append(_layers(f"{kind}_behaviour_rand", rand, np.zeros(len(rand)), p_rand, heads))
        tables.append(_layers(f"{kind}_behaviour_information", information, null, p_information, heads))
    return HeadTable.concat(tables)


def _without_prompts(settings: HeadClusters, layers: int, heads: int) -> HeadTable:
    tables = []
    for name in settings.metrics:
        if name == "effect_nats" or name == "behaviour_alone":
            tables.append(HeadTable.per_head(name, np.full((layers, heads), np.nan), reason=NO_PROMPTS))
        elif "behaviour" in name:
            tables.append(HeadTable.per_layer(name, np.full(layers, np.nan), reason=NO_PROMPTS))
    return HeadTable.concat(tables)


def _accuracy_row(
    kinds: Mapping[str, Clouds],
    repairs_H: np.ndarray | None,
    layer: int,
    relabellings: int,
    generator: np.random.Generator,
) -> HeadTable:
    """The model's row of prediction accuracy at one layer, against as many repairing heads placed at random.

    Clusterings are those of both circuits by k-means and Ward; DBSCAN is not used: it leaves heads without a label.
    """
    row = partial(HeadTable.whole, "prediction_accuracy", unit="clustering")
    if repairs_H is None:
        return row(None, reason=NO_PROMPTS)
    if repairs_H.all() or not repairs_H.any():
        number = "every head" if repairs_H.all() else "no head"
        return row(None, reason=f"{number} of layer {layer} repairs the answer when patched alone: nothing to split")
    labels = [item for kind in CIRCUITS for item in kinds[kind].own.labels.items()]
    labels_CH = np.stack([labels_LH[layer] for (method, _), labels_LH in labels if method != "dbscan"])
    property_RH = clusterings.relabellings(repairs_H, relabellings, generator)
    accuracy_R = all_clusterings.separates(labels_CH, property_RH).mean(-1)
    return row(accuracy_R[0], null=accuracy_R[1:].mean(), p=at_least_as_high(accuracy_R), n=len(labels_CH))
