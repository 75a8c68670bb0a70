"""Tables that analyses of clusters write beside their rows: every clustering, heads in a plane, distances."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from headdyn.analysis.clusters import CIRCUITS, clusterings
from headdyn.analysis.clusters.all_clusterings import AllClusterings, Clouds, against_null, separates
from headdyn.core.statistics import benjamini_hochberg


def clustering_table(kinds: Mapping[str, Clouds], repairs: Mapping[int, np.ndarray | None], first: int = 0) -> pa.Table:
    """One row per layer, kind, method and parameter: labels (−1: in no cluster), sizes, silhouette with null, p, q.

    `repairs` marks by layer the heads that repair the answer, where known; `separates` says whether weight clusters
    keep these apart from the others (`all_clusterings.separates`). Row 0 of the clusterings is layer `first`.
    """
    records: list[dict[str, Any]] = []
    for kind, clouds in kinds.items():
        for row, null in enumerate(clouds.nulls):
            for (method, parameter), labels_RH in clouds.own.labels.items():
                labels_H, layer = labels_RH[row], first + row
                silhouette = clouds.own.silhouette((method, parameter))[row]
                mean, p = against_null(silhouette, null.silhouette((method, parameter)))
                repairs_H, separated = repairs.get(layer), None
                if repairs_H is not None and kind in CIRCUITS and method != "dbscan":
                    separated = bool(separates(labels_H[None], repairs_H[None])[0, 0])
                records.append(
                    {
                        "layer": layer,
                        "kind": kind,
                        "method": method,
                        "parameter": float(parameter),
                        "labels": labels_H.tolist(),
                        "sizes": np.bincount(labels_H[labels_H >= 0], minlength=1).tolist(),
                        "outliers": int((clusterings.singled_out(labels_H[None]) < 0).sum()),
                        "silhouette": silhouette,
                        "null": mean,
                        "p": p,
                        "separates": separated,
                    }
                )
    p_X = np.array([record["p"] for record in records])
    q_X = np.full(len(p_X), np.nan)
    q_X[np.isfinite(p_X)] = benjamini_hochberg(p_X[np.isfinite(p_X)])
    for record, q in zip(records, q_X, strict=True):
        numbers = {name: record[name] for name in ("silhouette", "null", "p")} | {"q": q}
        record |= {name: float(value) if np.isfinite(value) else None for name, value in numbers.items()}
    return pa.Table.from_pylist(records)


def coordinate_table(own: Mapping[str, AllClusterings]) -> pa.Table:
    """Each head's first two principal components, by layer and kind, with their shares of the variance."""
    names, records = ("layer", "kind", "head", "pc_1", "pc_2", "share_1", "share_2"), []
    for kind, layers in own.items():
        for layer, gram_HH in enumerate(layers.gram_RHH):
            points_HX, share_X = clusterings.coordinates(gram_HH)
            for head, point_2 in enumerate(points_HX[:, :2].tolist()):
                records.append(dict(zip(names, (layer, kind, head, *point_2, *share_X[:2]), strict=True)))
    return pa.Table.from_pylist(records)


def distance_table(own: Mapping[str, AllClusterings]) -> pa.Table:
    """The distance of every two heads of a layer, by layer and kind, for comparison with another checkpoint's."""
    parts = []
    for kind, layers in own.items():
        count, heads = layers.split_RH.shape
        first_X, second_X = np.triu_indices(heads, 1)
        columns = {
            "layer": np.arange(count, dtype=np.int32).repeat(len(first_X)),
            "kind": [kind] * (count * len(first_X)),
            "head_a": np.tile(first_X.astype(np.int32), count),
            "head_b": np.tile(second_X.astype(np.int32), count),
            "distance": layers.distance_RHH[:, first_X, second_X].ravel(),
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)
