"""How far a layer's clusters and its heads' mutual distances moved between two checkpoints (science.md §12).

Works on the tables that HeadClusters left, so that no two models are in memory at once. A head is followed by its
index; where heads exchange roles, follow them by head_matching.py first.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headdyn.analysis.clusters.rows import KINDS
from headdyn.analysis.clusters.suite import SEED_KEY, Key, agreement
from headdyn.core.records import HeadTable, Metric

METRICS: Mapping[str, Metric] = {
    f"{kind}_label_divergence": Metric(
        meaning=f"1 − adjusted Rand index of k-means with k = 2 at this checkpoint and the one before; {words}; null: "
        "unrelated clusters; small p: they persist",
        low=0,
        high=2,
    )
    for kind, words in KINDS.items()
} | {
    f"{kind}_distance_divergence": Metric(
        meaning=f"1 − correlation of the heads' distances at this checkpoint and the one before; {words}; null: heads "
        "dealt anew; small p: they persist",
        low=0,
        high=2,
    )
    for kind, words in KINDS.items()
}


def head_labels(clusterings: pa.Table, layer: int, kind: str, key: Key = SEED_KEY) -> np.ndarray:
    """The labels of one clustering of one layer, [H], from the table `clusterings`.

    Raises KeyError where the table does not hold it.
    """
    method, parameter = key
    wanted = {"layer": layer, "kind": kind, "method": method, "parameter": float(parameter)}
    rows = clusterings
    for name, value in wanted.items():
        rows = rows.filter(pc.equal(rows[name], value))
    if len(rows) != 1:
        raise KeyError(f"the table of clusterings has {len(rows)} rows with {wanted}, not one")
    return np.array(rows["labels"][0].as_py())


def head_distances(distances: pa.Table, layer: int, kind: str) -> np.ndarray:
    """The heads' distances in one layer, [H, H], from the table `distances`. KeyError where it does not hold them."""
    rows = distances.filter(pc.and_(pc.equal(distances["layer"], layer), pc.equal(distances["kind"], kind)))
    if not len(rows):
        raise KeyError(f"the table of distances has no layer {layer} of {kind!r}")
    first, second = rows["head_a"].to_numpy(), rows["head_b"].to_numpy()
    distance_HH = np.zeros((second.max() + 1,) * 2)
    distance_HH[first, second] = distance_HH[second, first] = rows["distance"].to_numpy()
    return distance_HH


def cluster_divergence(
    before: Mapping[str, pa.Table],
    after: Mapping[str, pa.Table],
    generator: np.random.Generator,
    *,
    relabellings: int = 9_999,
) -> HeadTable:
    """Layer rows of both measures for every kind that both checkpoints' `clusterings` and `distances` hold.

    p counts random relabellings of the heads under which the checkpoints agree at least as well.
    """
    rows = []
    kinds = [
        kind for kind in KINDS if all(kind in set(side["distances"]["kind"].to_pylist()) for side in (before, after))
    ]
    layers = sorted(set(after["distances"]["layer"].to_pylist()))
    for kind in kinds:
        for layer in layers:
            old_H, new_H = (head_labels(side["clusterings"], layer, kind) for side in (before, after))
            match = agreement(old_H, new_H, relabellings, generator)
            place = {"layer": layer, "null": 1.0, "n": len(new_H), "unit": "head"}
            rows.append(
                place | {"metric": f"{kind}_label_divergence"} | _value(1 - match.rand, match.p_rand, "one cluster")
            )
            old_HH, new_HH = (head_distances(side["distances"], layer, kind) for side in (before, after))
            correlation, p = mantel(old_HH, new_HH, relabellings, generator)
            name = {"metric": f"{kind}_distance_divergence"}
            rows.append(place | name | _value(1 - correlation, p, "distances that are all alike"))
    return HeadTable.from_rows(rows).with_q()


def mantel(
    first_HH: np.ndarray, second_HH: np.ndarray, draws: int, generator: np.random.Generator
) -> tuple[float, float]:
    """Pearson correlation of two distance matrices, and its one-sided p over reorderings of the points (Mantel 1967).

    NaN where all distances of a matrix are equal.
    """
    heads = len(first_HH)
    upper = np.triu_indices(heads, 1)
    first_X, second_X = (matrix[upper] - matrix[upper].mean() for matrix in (first_HH, second_HH))
    scale = np.linalg.norm(first_X) * np.linalg.norm(second_X)
    if scale <= 1e-12 * np.abs(first_HH).max() * np.abs(second_HH).max():
        return np.nan, np.nan
    order_RH = np.concatenate(
        (np.arange(heads)[None], generator.permuted(np.tile(np.arange(heads), (draws, 1)), axis=-1))
    )
    dealt_RX = second_HH[order_RH[:, upper[0]], order_RH[:, upper[1]]] - second_HH[upper].mean()
    correlation_R = dealt_RX @ first_X / scale
    return float(correlation_R[0]), float((correlation_R >= correlation_R[0] - 1e-12).mean())


def _value(value: float, p: float, found: str) -> dict[str, float | str | None]:
    if not np.isfinite(value):
        return {"reason": f"a checkpoint has {found}", "null": None}
    return {"value": min(max(float(value), 0.0), 2.0), "p": p}
