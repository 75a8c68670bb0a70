"""The records that HeadClusters leaves beside its rows: every clustering, heads in a plane, distances."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from headdyn.analysis.clusters import clusterings
from headdyn.analysis.clusters.geometry import CIRCUITS
from headdyn.analysis.clusters.seed_clusters import SeedClusters
from headdyn.analysis.clusters.suite import Clouds, Suite, against_null, separates
from headdyn.core.statistics import benjamini_hochberg


def clustering_table(
    kinds: Mapping[str, Clouds], pieces: SeedClusters | None, layer: int, repairs_H: np.ndarray | None
) -> pa.Table:
    """One row per layer, kind, method and parameter: labels (−1: in no cluster), sizes, silhouette with null, p, q."""
    records = []
    clouds = [
        (kind, at, cloud.suite, at, cloud.nulls[at]) for kind, cloud in kinds.items() for at in range(len(cloud.nulls))
    ]
    if pieces is not None:
        clouds += [(f"seed_{part}", layer, suite, 0, pieces.nulls[part]) for part, suite in pieces.suites.items()]
    for kind, at, suite, row, null in clouds:
        for key, labels_RH in suite.labels.items():
            labels_H = labels_RH[row]
            silhouette = suite.silhouette(key)[row]
            mean, p = against_null(silhouette, null.silhouette(key))
            split = None
            if repairs_H is not None and kind in CIRCUITS and at == layer and key[0] != "dbscan":
                split = bool(separates(labels_H[None], repairs_H[None])[0, 0])
            records.append(
                {
                    "layer": at,
                    "kind": kind,
                    "method": key[0],
                    "parameter": float(key[1]),
                    "labels": labels_H.tolist(),
                    "sizes": np.bincount(labels_H[labels_H >= 0], minlength=1).tolist(),
                    "outliers": int((clusterings.singled_out(labels_H[None]) < 0).sum()),
                    "silhouette": silhouette,
                    "null": mean,
                    "p": p,
                    "separates": split,
                }
            )
    p_X = np.array([record["p"] for record in records])
    q_X = np.full(len(p_X), np.nan)
    q_X[np.isfinite(p_X)] = benjamini_hochberg(p_X[np.isfinite(p_X)])
    for record, q in zip(records, q_X, strict=True):
        record["q"] = q
        record |= {name: _number(record[name]) for name in ("silhouette", "null", "p", "q")}
    return pa.Table.from_pylist(records)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def coordinate_table(suites: Mapping[str, Suite]) -> pa.Table:
    """Each head's first two principal components, by layer and kind, with their shares of the variance."""
    records = []
    for kind, suite in suites.items():
        for layer, gram_HH in enumerate(suite.gram_RHH):
            points_HX, share_X = clusterings.coordinates(gram_HH)
            shares = {"share_1": share_X[0], "share_2": share_X[1]}
            place = {"layer": layer, "kind": kind}
            records += [
                place | {"head": head, "pc_1": x, "pc_2": y, **shares}
                for head, (x, y) in enumerate(points_HX[:, :2].tolist())
            ]
    return pa.Table.from_pylist(records)


def distance_table(suites: Mapping[str, Suite]) -> pa.Table:
    """The distance of every two heads of a layer, by layer and kind, for comparison with another checkpoint's."""
    parts = []
    for kind, suite in suites.items():
        layers, heads = suite.split_RH.shape
        first_X, second_X = np.triu_indices(heads, 1)
        columns = {
            "layer": np.arange(layers, dtype=np.int32).repeat(len(first_X)),
            "kind": [kind] * (layers * len(first_X)),
            "head_a": np.tile(first_X.astype(np.int32), layers),
            "head_b": np.tile(second_X.astype(np.int32), layers),
            "distance": suite.distance_RHH[:, first_X, second_X].ravel(),
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)
