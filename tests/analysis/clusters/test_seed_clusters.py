from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import sklearn.cluster
import sklearn.metrics
import torch

from headdyn.analysis.clusters.seed_clusters import METRICS, seed_clusters
from headdyn.analysis.clusters.seed_weights import PARTS, SEED_EPS, misread, packed
from headdyn.analysis.clusters.suite import Recipe
from headdyn.models.decoder import Decoder
from tests.small_models import GQA, NEOX, drawn

RECIPE = Recipe(kmeans_k=(2, 3), ward_k=(2,), eps=SEED_EPS, restarts=10, relative_eps=False)


def model(heads: int = 8) -> Decoder:
    return drawn(dataclasses.replace(NEOX, num_heads=heads, num_kv_heads=heads))


def found(decoder: Decoder, restarts: int = 10):
    recipe = dataclasses.replace(RECIPE, restarts=restarts)
    return seed_clusters(decoder, 1, recipe, 200, 999, np.random.default_rng(0))


def test_the_seeds_figures_by_scikit_learn() -> None:
    """k-means on flattened rows of the matrix read as [3, H, d, D], as the studies' public code does it."""
    decoder = model()
    rows = {row["metric"]: row for row in found(decoder, restarts=100).rows}
    assert set(rows) == set(METRICS)
    for part, pieces_HX in zip(PARTS, misread(packed(decoder, 1), 8).detach().numpy(), strict=True):
        labels_H = sklearn.cluster.KMeans(2, n_init=50, random_state=42).fit_predict(pieces_HX)
        silhouette = sklearn.metrics.silhouette_score(pieces_HX, labels_H)
        assert rows[f"seed_{part}_silhouette"]["value"] == pytest.approx(silhouette, abs=1e-9)
        centres = [pieces_HX[labels_H == k].mean(0) for k in (0, 1)]
        assert rows[f"seed_{part}_centre_distance"]["value"] == pytest.approx(np.linalg.norm(centres[0] - centres[1]))
        within = np.mean([pieces_HX[labels_H == k].var(0).mean() for k in (0, 1)])
        assert rows[f"seed_{part}_within_variance"]["value"] == pytest.approx(within)
        assert rows[f"seed_{part}_smallest_cluster"]["value"] == np.bincount(labels_H).min()
        rand = sklearn.metrics.adjusted_rand_score(np.arange(8) % 2, labels_H)
        assert rows[f"seed_{part}_even_odd_rand"]["value"] == pytest.approx(rand)
        assert rows[f"seed_{part}_silhouette"]["p"] > 1 / 201, "these are random pieces"


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
    clusters = found(decoder)
    (row,) = (row for row in clusters.rows if row["metric"] == "seed_prediction_accuracy")
    assert row["value"] == 1 and row["null"] == pytest.approx(2 / 70)  # of 70 balanced halves, two are even/odd
    for part in PARTS:
        assert clusters.suites[part].split_RH[0].tolist() == [0, 1] * 4
        (silhouette,) = (row for row in clusters.rows if row["metric"] == f"seed_{part}_silhouette")
        assert silhouette["value"] > 0.9 and silhouette["p"] == 1 / 201


def test_grouped_keys_have_no_pieces() -> None:
    clusters = found(drawn(GQA))
    assert {row["metric"] for row in clusters.rows} == set(METRICS) and not clusters.suites
    assert all("no [3, heads, …] matrix" in row["reason"] for row in clusters.rows)
