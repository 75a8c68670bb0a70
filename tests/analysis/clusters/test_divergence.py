from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest

from headdyn.analysis.clusters import KINDS
from headdyn.analysis.clusters.all_clusterings import Recipe
from headdyn.analysis.clusters.divergence import cluster_divergence, head_distances, head_labels, mantel
from headdyn.analysis.clusters.tables import distance_table


def checkpoint(*places: float, kind: str = "qk") -> dict[str, pa.Table]:
    """The tables that HeadClusters would leave of one layer whose heads stand on a line."""
    gram_HH = np.multiply.outer(places, places)
    suite = Recipe(kmeans_k=(2,), ward_k=(), eps=(), restarts=5)(gram_HH[None], np.random.default_rng(0))
    row = {"layer": 0, "kind": kind, "method": "kmeans", "parameter": 2.0, "labels": suite.split_RH[0].tolist()}
    return {"clusterings": pa.Table.from_pylist([row]), "distances": distance_table({kind: suite})}


def compared(before: dict[str, pa.Table], after: dict[str, pa.Table]) -> dict[str, dict]:
    rows = cluster_divergence(before, after, np.random.default_rng(0), relabellings=999).rows()
    assert {row["metric"] for row in rows} <= {
        f"{kind}_{what}_divergence" for kind in KINDS for what in ("label", "distance")
    }
    return {row["metric"]: row for row in rows}


def test_tables_give_back_what_was_put_in() -> None:
    tables = checkpoint(0, 1, 10, 12)
    assert head_labels(tables["clusterings"], 0, "qk").tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(
        head_distances(tables["distances"], 0, "qk"), np.abs(np.subtract.outer([0, 1, 10, 12], [0, 1, 10, 12]))
    )
    with pytest.raises(KeyError, match="0 rows"):
        head_labels(tables["clusterings"], 0, "ov")
    with pytest.raises(KeyError, match="no layer 3"):
        head_distances(tables["distances"], 3, "qk")


def test_nothing_moved() -> None:
    rows = compared(checkpoint(0, 1, 2, 10, 11, 12), checkpoint(0, 2, 4, 20, 22, 24))
    assert rows["qk_label_divergence"]["value"] == 0 and rows["qk_distance_divergence"]["value"] == pytest.approx(0)
    assert rows["qk_label_divergence"]["p"] == pytest.approx(0.1, abs=0.03)  # 2 of 20 ways
    assert rows["qk_distance_divergence"]["p"] < 0.05
    assert rows["qk_label_divergence"]["null"] == 1 and rows["qk_label_divergence"]["n"] == 6


def test_heads_that_changed_sides() -> None:
    """{01|23} becomes {02|13}: no pair that was together still is, an adjusted Rand index of −1/2."""
    rows = compared(checkpoint(0, 1, 10, 11), checkpoint(0, 10, 1, 11))
    assert rows["qk_label_divergence"]["value"] == pytest.approx(1.5)
    assert rows["qk_distance_divergence"]["value"] > 1 and rows["qk_distance_divergence"]["p"] > 0.3


def test_only_kinds_that_both_kept_are_compared() -> None:
    assert not len(
        cluster_divergence(checkpoint(0, 1, 5, 6), checkpoint(0, 1, 5, 6, kind="ov"), np.random.default_rng(0))
    )


def test_heads_that_coincide_say_nothing() -> None:
    rows = compared(checkpoint(0, 1, 10, 11), checkpoint(3, 3, 3, 3))
    assert all(row["value"] is None and row["reason"].startswith("a checkpoint has") for row in rows.values())


def test_mantels_test_by_enumeration() -> None:
    generator = np.random.default_rng(0)
    first_HH, second_HH = (np.abs(np.subtract.outer(x, x)) for x in generator.normal(size=(2, 5)))
    upper = np.triu_indices(5, 1)

    def correlation(order: tuple[int, ...]) -> float:
        return np.corrcoef(first_HH[upper], second_HH[np.ix_(order, order)][upper])[0, 1]

    every = np.array([correlation(order) for order in itertools.permutations(range(5))])
    value, p = mantel(first_HH, second_HH, 20_000, np.random.default_rng(1))
    assert value == pytest.approx(every[0])
    assert p == pytest.approx(np.mean(every >= every[0] - 1e-12), abs=0.015)
