"""HeadTable rows of head clusters, and what each of their metrics means (science.md §12).

Letters as in suite.py; L layers, R random draws. A layer's row has heads as its unit and a null, no interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from headdyn.analysis.clusters import clusterings
from headdyn.analysis.clusters.geometry import CIRCUITS
from headdyn.analysis.clusters.suite import Clouds, against_null, agreement, separates
from headdyn.analysis.interventions.pair_rows import PairRows
from headdyn.core.records import HeadTable, Metric

KINDS: Mapping[str, str] = {
    "qk": "QK circuits",
    "ov": "OV circuits",
    "behaviour": "effects under mean-ablation",
}
NO_PROMPTS = "effects on answers need prompts; use data=comparisons"
_NO_CLUSTERS = "the heads do not fall into two clusters of the kind this needs"


class _Measure(NamedTuple):
    meaning: str
    low: float
    high: float = np.inf
    is_distance: bool = False
    tested: bool = False  # the others say how a split looks, one p is enough for whether there is one


_MEASURES: Mapping[str, _Measure] = {
    "silhouette": _Measure("mean silhouette of k-means with k = 2", low=-1, high=1, tested=True),
    "best_silhouette": _Measure("best silhouette of all clusterings, outliers apart", low=-1, high=1, tested=True),
    "centre_distance": _Measure("distance between the two k-means centres", low=0, is_distance=True),
    "within_variance": _Measure("mean squared distance of heads to their k-means centre", low=0),
    "separation": _Measure("centre_distance over the root of within_variance", low=0),
    "wasserstein": _Measure("earth mover's distance between the two k-means clusters", low=0, is_distance=True),
    "smallest_cluster": _Measure("heads in the smaller of two k-means clusters; 1 is an outlier", low=1),
    "first_component": _Measure("share of variance on the first principal component", low=0, high=1, tested=True),
}


def cluster_metrics() -> dict[str, Metric]:
    """Every metric by name."""
    metrics: dict[str, Metric] = {}

    def add(name: str, meaning: str, low: float, high: float = np.inf, unit: str = "") -> None:
        metrics[name] = Metric(meaning=meaning, low=low, high=high, unit=unit)

    for kind, words in KINDS.items():
        unit = "nats" if kind == "behaviour" else ""
        for name, measure in _MEASURES.items():
            meaning = f"{measure.meaning}; {words}"
            add(f"{kind}_{name}", meaning, measure.low, measure.high, unit if measure.is_distance else "")
        add(f"{kind}_even_odd_rand", f"adjusted Rand index of k-means with k = 2 and even/odd; {words}", -1, 1)
        add(f"{kind}_alone", f"share of clusterings in which this head is an outlier; {words}", 0, 1)
    for kind in CIRCUITS:
        words = f"k-means with k = 2 on {KINDS[kind]} and on effects"
        add(f"{kind}_behaviour_rand", f"adjusted Rand index of {words}", -1, 1)
        add(f"{kind}_behaviour_information", f"mutual information of {words}", 0, unit="nats")
    add("effect_nats", "change of mean Δ under mean-ablation of this head", -np.inf, unit="nats")
    meaning = "share of weight clusterings with no cluster that holds heads which repair and heads which do not"
    add("prediction_accuracy", meaning, 0, 1)
    return metrics


def _layers(metric: str, value_L: np.ndarray, null_p_L2: np.ndarray, heads: int) -> HeadTable:
    null_L, p_L = np.asarray(null_p_L2, dtype=float).T
    return HeadTable.per_layer(metric, value_L, null=null_L, p=p_L, n=heads, unit="head", reason=_NO_CLUSTERS)


def kind_rows(kind: str, clouds: Clouds, relabellings: int, generator: np.random.Generator) -> HeadTable:
    """Layer rows of every measure and of agreement with even/odd, head rows of outliers."""
    layers, heads = clouds.suite.split_RH.shape
    own, tables = clouds.suite.quality(), []
    quality = {id(null): null.quality() for null in clouds.nulls}
    for name, measure in _MEASURES.items():
        nulls = (quality[id(null)][name] for null in clouds.nulls)
        compared = [against_null(value, null_R, measure.tested) for value, null_R in zip(own[name], nulls, strict=True)]
        tables.append(_layers(f"{kind}_{name}", own[name], np.array(compared), heads))
    even_odd_H = np.arange(heads) % 2
    found = [agreement(labels_H, even_odd_H, relabellings, generator) for labels_H in clouds.suite.split_RH]
    rand_L = np.array([each.rand for each in found])
    tables.append(_layers(f"{kind}_even_odd_rand", rand_L, np.array([(0.0, each.p_rand) for each in found]), heads))
    null_LRH = np.stack([null.alone_RH for null in clouds.nulls])
    if clouds.exchangeable:
        null_LRH = np.broadcast_to(null_LRH.reshape(layers, -1, 1), (layers, null_LRH[0].size, heads))
    hits_LH = (null_LRH >= clouds.suite.alone_RH[:, None] - 1e-12).sum(1)
    columns: dict[str, Any] = {"null": null_LRH.mean(1), "p": (1 + hits_LH) / (1 + null_LRH.shape[1])}
    count = len(clouds.suite.labels)
    alone = HeadTable.per_head(f"{kind}_alone", clouds.suite.alone_RH, **columns, n=count, unit="clustering")
    return HeadTable.concat([*tables, alone])


def agreement_rows(kinds: Mapping[str, Clouds], relabellings: int, generator: np.random.Generator) -> HeadTable:
    """Layer rows of how far weight clusters and behaviour clusters agree."""
    tables = []
    for kind in CIRCUITS:
        splits_LH, effects_LH = kinds[kind].suite.split_RH, kinds["behaviour"].suite.split_RH
        found = [agreement(*pair, relabellings, generator) for pair in zip(splits_LH, effects_LH, strict=True)]
        heads = splits_LH.shape[1]
        rand, information = (
            np.array([[getattr(each, name) for name in names] for each in found])
            for names in (("rand", "p_rand"), ("information_nats", "null_information_nats", "p_information"))
        )
        null_p = np.stack((np.zeros(len(found)), rand[:, 1]), axis=-1)
        tables += [
            _layers(f"{kind}_behaviour_rand", rand[:, 0], null_p, heads),
            _layers(f"{kind}_behaviour_information", information[:, 0], information[:, 1:], heads),
        ]
    return HeadTable.concat(tables)


def effect_rows(make: PairRows, effect_LHP: np.ndarray) -> HeadTable:
    """Head rows of mean effects, with intervals over pairs and p by sign flips."""
    layers, heads, pairs = effect_LHP.shape
    rows = make.effects("effect_nats", effect_LHP.reshape(-1, pairs).T)
    places = ({"layer": layer, "head": head} for layer in range(layers) for head in range(heads))
    return HeadTable.from_rows([row | place for row, place in zip(rows, places, strict=True)])


def without_prompts(layers: int, heads: int) -> HeadTable:
    """The rows that need prompts, absent."""
    names = [name for name in cluster_metrics() if "behaviour" in name]
    tables = [
        HeadTable.per_head(name, np.full((layers, heads), np.nan), reason=NO_PROMPTS)
        for name in ("effect_nats", *(name for name in names if name.endswith("alone")))
    ]
    tables += [
        HeadTable.per_layer(name, np.full(layers, np.nan), reason=NO_PROMPTS)
        for name in names
        if not name.endswith("alone")
    ]
    return HeadTable.concat(tables)


def accuracy_row(
    kinds: Mapping[str, Clouds],
    repairs_H: np.ndarray | None,
    layer: int,
    relabellings: int,
    generator: np.random.Generator,
) -> dict[str, Any]:
    """The model's row of prediction accuracy at one layer, against repair dealt out to the heads at random.

    Weight clusterings are those by k-means and Ward of both circuits; DBSCAN leaves heads without a label.
    """
    row: dict[str, Any] = {"metric": "prediction_accuracy", "unit": "clustering"}
    if repairs_H is None:
        return row | {"reason": NO_PROMPTS}
    if repairs_H.all() or not repairs_H.any():
        found = "every head" if repairs_H.all() else "no head"
        return row | {"reason": f"{found} of layer {layer} repairs the answer when patched alone: nothing to split"}
    labels_CH = np.stack(
        [
            labels_LH[layer]
            for kind in CIRCUITS
            for (method, _), labels_LH in kinds[kind].suite.labels.items()
            if method != "dbscan"
        ]
    )
    dealt_RH = clusterings.relabellings(repairs_H, relabellings, generator)
    accuracy_R = separates(labels_CH, np.concatenate((repairs_H[None], dealt_RH))).mean(-1)
    p = float((accuracy_R >= accuracy_R[0] - 1e-12).mean())
    return row | {"value": float(accuracy_R[0]), "null": float(accuracy_R[1:].mean()), "p": p, "n": len(labels_CH)}
