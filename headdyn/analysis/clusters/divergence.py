"""How far a layer's clusters and its heads' mutual distances moved between two checkpoints (science.md §12).

It reads the tables of HeadClusters, so that no two models are in memory at once. A head is followed by its index; where
heads exchange roles, match them by head_matching.py first.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headdyn.analysis.clusters import KINDS
from headdyn.analysis.clusters.all_clusterings import TWO_MEANS, agreement
from headdyn.analysis.clusters.clusterings import relabellings
from headdyn.core.records import HeadTable
from headdyn.core.statistics import at_least_as_high


def head_labels(clusterings: pa.Table, layer: int, kind: str) -> np.ndarray:
    """The labels of one layer's two k-means clusters, [H], from the table `clusterings`.

    Raises KeyError where the table does not hold them.
    """
    method, parameter = TWO_MEANS
    wanted = {"layer": layer, "kind": kind, "method": method, "parameter": float(parameter)}
    rows = [row for row in clusterings.to_pylist() if wanted.items() <= row.items()]
    if len(rows) != 1:
        raise KeyError(f"the table of clusterings has {len(rows)} rows with {wanted}, not one")
    return np.array(rows[0]["labels"])


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

    KIND_label_divergence is 1 − adjusted Rand index of k-means with k = 2, KIND_distance_divergence 1 − correlation of
    the heads' distances; both lie in 0..2, and unrelated checkpoints have 1. A small p says that they are related: it
    counts random relabellings of the heads under which the checkpoints agree at least as well.
    """
    rows: list[HeadTable] = []
    measured = [set(side["distances"]["kind"].to_pylist()) for side in (before, after)]
    for kind in (kind for kind in KINDS if all(kind in kinds for kinds in measured)):
        for layer in sorted(set(after["distances"]["layer"].to_pylist())):
            old_H, new_H = (head_labels(side["clusterings"], layer, kind) for side in (before, after))
            old_HH, new_HH = (head_distances(side["distances"], layer, kind) for side in (before, after))
            match = agreement(old_H, new_H, relabellings, generator)
            for name, (value, p), obstacle in (
                ("label", (match.rand, match.p_rand), "one cluster"),
                ("distance", mantel(old_HH, new_HH, relabellings, generator), "distances that are all alike"),
            ):
                columns = {"p": p, "n": len(new_H), "unit": "head", "reason": f"a checkpoint has {obstacle}"}
                null = np.nan if np.isnan(value) else 1.0
                row = HeadTable.whole(f"{kind}_{name}_divergence", np.clip(1 - value, 0, 2), null=null, **columns)
                rows.append(row.labelled(layer=layer))
    return HeadTable.concat(rows).with_q()


def mantel(
    first_HH: np.ndarray, second_HH: np.ndarray, draws: int, generator: np.random.Generator
) -> tuple[float, float]:
    """Pearson correlation of two distance matrices, and its one-sided p over reorderings of the points (Mantel 1967).

    NaN where all distances of a matrix are equal.
    """
    heads = len(first_HH)
    upper = np.triu_indices(heads, 1)
    first_X, second_X = (distance_HH[upper] - distance_HH[upper].mean() for distance_HH in (first_HH, second_HH))
    scale = np.linalg.norm(first_X) * np.linalg.norm(second_X)
    if scale <= 1e-12 * np.abs(first_HH).max() * np.abs(second_HH).max():
        return np.nan, np.nan
    order_RH = relabellings(np.arange(heads), draws, generator)
    second_RX = second_HH[order_RH[:, upper[0]], order_RH[:, upper[1]]] - second_HH[upper].mean()
    correlation_R = second_RX @ first_X / scale
    return float(correlation_R[0]), at_least_as_high(correlation_R)
