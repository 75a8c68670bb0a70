from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import sklearn.cluster
import sklearn.metrics
import torch

from headdyn.models.decoder import Decoder
from headdyn.studies.weight_clusters.clusters import PARTS, OriginalClusters
from headdyn.studies.weight_clusters.pieces import misread, packed
from tests.analysis import tiny
from tests.analysis.test_head_clusters import two_kinds_of_heads
from tests.small_models import GQA, NEOX, drawn


def model(heads: int = 8) -> Decoder:
    return drawn(dataclasses.replace(NEOX, num_heads=heads, num_kv_heads=heads))


def findings_of(decoder: Decoder, restarts: int = 10):
    chosen = OriginalClusters(
        layer=1, kmeans_k=(2, 3), ward_k=(2,), restarts=restarts, null_draws=200, relabellings=999
    )
    return chosen(decoder, tiny.corpus(), np.random.default_rng(0))


def test_the_studys_figures_by_scikit_learn() -> None:
    """k-means on flattened rows of the matrix read as [3, H, d, D], as the studies' public code does it."""
    decoder = model()
    rows = findings_of(decoder, restarts=100).table.summary()
    assert set(rows) == set(OriginalClusters.metrics)
    for part, pieces_HX in zip(PARTS, misread(packed(decoder, 1), 8).detach().numpy(), strict=True):
        labels_H = sklearn.cluster.KMeans(2, n_init=50, random_state=42).fit_predict(pieces_HX)
        silhouette = sklearn.metrics.silhouette_score(pieces_HX, labels_H)
        assert rows[f"original_{part}_silhouette"]["value"] == pytest.approx(silhouette, abs=1e-9)
        centres = [pieces_HX[labels_H == k].mean(0) for k in (0, 1)]
        assert rows[f"original_{part}_centre_distance"]["value"] == pytest.approx(
            np.linalg.norm(centres[0] - centres[1])
        )
        within = np.mean([pieces_HX[labels_H == k].var(0).mean() for k in (0, 1)])
        assert rows[f"original_{part}_within_variance"]["value"] == pytest.approx(within)
        assert rows[f"original_{part}_smallest_cluster"]["value"] == np.bincount(labels_H).min()
        rand = sklearn.metrics.adjusted_rand_score(np.arange(8) % 2, labels_H)
        assert rows[f"original_{part}_even_odd_rand"]["value"] == pytest.approx(rand)
        assert rows[f"original_{part}_silhouette"]["p"] > 1 / 201, "these are random pieces"


@torch.no_grad()
def test_pieces_that_alternate_predict_even_against_odd() -> None:
    """Blocks of the matrix alternate between two matrices, so each of the three clusterings is even against odd."""
    decoder = model().permuted(1, range(8))
    w = decoder.head_weights(1)
    two = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for i, weight_HDd in enumerate((w.q_HDd, w.k_GDd, w.v_GDd)):
        number_H = 3 * torch.arange(8) + i
        noise = 0.01 * torch.randn(8, 16, 8, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        weight_HDd.copy_(two[number_H % 2] + noise)
    clusters = findings_of(decoder)
    rows = clusters.table.summary()
    row = rows["original_prediction_accuracy"]
    assert row["value"] == 1 and row["null"] == pytest.approx(2 / 70)  # of 70 balanced halves, two are even/odd
    for part in PARTS:
        (labels,) = (
            entry["labels"]
            for entry in clusters.tables["original_clusterings"].to_pylist()
            if (entry["kind"], entry["method"], entry["parameter"]) == (f"original_{part}", "kmeans", 2)
        )
        assert labels == [0, 1] * 4
        silhouette = rows[f"original_{part}_silhouette"]
        assert silhouette["value"] > 0.9 and silhouette["p"] == 1 / 201


def test_grouped_keys_have_no_pieces() -> None:
    clusters = findings_of(drawn(GQA))
    rows = clusters.table.summary()
    assert set(rows) == set(OriginalClusters.metrics) and not clusters.tables
    assert all("no [3, heads, …] matrix" in row["reason"] for row in rows.values())


def test_the_pieces_do_not_show_heads_that_are_as_different_as_can_be() -> None:
    """Even and odd heads of two kinds, planted: every right reading finds them (tests/analysis/test_head_clusters.py)."""
    findings = findings_of(two_kinds_of_heads())
    assert findings.table.summary()["original_prediction_accuracy"]["value"] == 0
    kinds = set(findings.tables["original_clusterings"]["kind"].to_pylist())
    assert kinds == {f"original_{part}" for part in PARTS} and set(findings.figures) == {"assignments", "points"}
