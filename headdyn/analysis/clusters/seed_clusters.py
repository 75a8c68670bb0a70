"""The seed studies' weight clusters of one layer, with the nulls they lacked (science.md §12, protocol=seed).

The pieces are those of seed_weights.py, which says why none of this is evidence about heads. Rows describe the model,
at the one layer that is analysed; their unit is a piece.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headdyn.analysis.clusters.geometry import random_directions
from headdyn.analysis.clusters.seed_weights import PARTS, entry_test, misread, packed, seed_spread
from headdyn.analysis.clusters.suite import Recipe, Suite, against_null, agreement
from headdyn.core.records import Metric
from headdyn.models.decoder import Decoder

Row = dict[str, Any]

_MEASURES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "silhouette": ("mean silhouette of k-means with k = 2 on", {"low": -1, "high": 1}),
    "centre_distance": ("distance between the two k-means centres of", {"low": 0}),
    "within_variance": ("variance of an entry within a k-means cluster of", {"low": 0}),
    "separation": ("the study's ratio, centre_distance over within_variance, of", {"low": 0}),
    "wasserstein": ("W₁ between the entries of the two k-means clusters of", {"low": 0}),
    "smallest_cluster": ("pieces in the smaller of two k-means clusters of", {"low": 1}),
    "first_component": ("share of variance on the first principal component of", {"low": 0, "high": 1}),
    "even_odd_rand": ("adjusted Rand index of k-means with k = 2 and even/odd, on", {"low": -1, "high": 1}),
}
METRICS: Mapping[str, Metric] = {
    f"seed_{part}_{name}": Metric(meaning=f"{words} the seed's flattened {part} pieces", **bounds)
    for part in PARTS
    for name, (words, bounds) in _MEASURES.items()
} | {
    "seed_prediction_accuracy": Metric(
        meaning="share of the seed's three k = 2 clusterings that are even against odd", low=0, high=1
    )
}


@dataclass(frozen=True, kw_only=True)
class SeedClusters:
    """Rows for the table, the pieces' clusterings, and those of random pieces with the same norms, by part.

    Without pieces the rows are absent with a reason and there is no suite.
    """

    rows: Sequence[Row]
    suites: Mapping[str, Suite]
    nulls: Mapping[str, Suite]


def seed_clusters(
    decoder: Decoder, layer: int, recipe: Recipe, draws: int, relabellings: int, generator: np.random.Generator
) -> SeedClusters:
    """Cluster the misread pieces of one layer as the studies did, against `draws` sets of random pieces with the same
    norms."""
    heads = decoder.config.num_heads
    if decoder.config.num_kv_heads != heads:
        reason = f"{heads} query heads share {decoder.config.num_kv_heads} keys: no [3, heads, …] matrix to misread"
        return SeedClusters(rows=[{"metric": name, "reason": reason} for name in METRICS], suites={}, nulls={})
    pieces_3HX = misread(packed(decoder, layer), heads).double()
    rows: list[Row] = []
    suites, nulls, equal, chance = {}, {}, [], []
    even_odd_H = np.arange(heads) % 2
    for part, pieces_HX in zip(PARTS, pieces_3HX, strict=True):
        gram_HH = (pieces_HX @ pieces_HX.T).cpu().numpy()
        width = pieces_HX.shape[1]
        suites[part] = suite = recipe(gram_HH[None], generator)
        random_RHH = random_directions(np.sqrt(np.diagonal(gram_HH)), width, draws, generator)
        nulls[part] = null = recipe(random_RHH, generator)
        own, chances = (s.quality() | seed_spread(s.gram_RHH, s.split_RH, width) for s in (suite, null))
        labels_H = suite.split_RH[0]
        for name in _MEASURES:
            if name in ("wasserstein", "even_odd_rand"):
                continue
            mean, p = against_null(own[name][0], chances[name], tested=name in ("silhouette", "first_component"))
            rows.append(_row(part, name, own[name][0], mean, p, heads))
        entries = entry_test(pieces_HX, labels_H, generator)
        rows.append(
            _row(part, "wasserstein", entries.wasserstein, entries.null_wasserstein, entries.p_wasserstein, heads)
        )
        match = agreement(labels_H, even_odd_H, relabellings, generator)
        rows.append(_row(part, "even_odd_rand", match.rand, 0.0, match.p_rand, heads))
        equal.append(match.rand == 1)
        size = int((labels_H == 0).sum())
        chance.append(2 / math.comb(heads, size) if 2 * size == heads else 0.0)
    accuracy: Row = {"metric": "seed_prediction_accuracy", "value": float(np.mean(equal)), "n": 3, "unit": "clustering"}
    return SeedClusters(rows=[*rows, accuracy | {"null": float(np.mean(chance))}], suites=suites, nulls=nulls)


def _row(part: str, name: str, value: float, null: float, p: float, heads: int) -> Row:
    row: Row = {"metric": f"seed_{part}_{name}", "n": heads, "unit": "piece"}
    if not math.isfinite(value):
        return row | {"reason": "the pieces do not fall into two clusters"}
    row |= {"value": float(value)}
    return row | {key: float(number) for key, number in (("null", null), ("p", p)) if math.isfinite(number)}
