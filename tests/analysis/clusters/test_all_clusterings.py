from __future__ import annotations

import itertools

import numpy as np
import pytest
import sklearn.metrics

from headdyn.analysis.clusters import clusterings
from headdyn.analysis.clusters.all_clusterings import Recipe, against_null, agreement, separates

RECIPE = Recipe(kmeans_k=(2, 3), ward_k=(2,), eps=(0.5,), restarts=5)


def line(*places: float) -> np.ndarray:
    return np.multiply.outer(places, places)[None]


def test_a_recipe_makes_every_clustering_of_every_cloud() -> None:
    clouds = np.concatenate((line(0, 1, 2, 20, 21, 22), line(0, 1, 2, 3, 4, 50)))
    suite = RECIPE(clouds, np.random.default_rng(0))
    assert set(suite.labels) == {("kmeans", 2), ("kmeans", 3), ("ward", 2), ("dbscan", 0.5)}
    assert suite.split_RH.tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]]
    # Half of the median distance, 9.5 of 19 and 1.5 of 3: two groups, and one with an outlier.
    assert suite.labels["dbscan", 0.5].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, -1]]
    assert suite.silhouette(("ward", 2))[0] == pytest.approx(
        sklearn.metrics.silhouette_score(np.array([[0], [1], [2], [20], [21], [22]]), [0, 0, 0, 1, 1, 1])
    )


def test_radii_can_be_absolute() -> None:
    recipe = Recipe(kmeans_k=(2,), ward_k=(2,), eps=(1.5,), restarts=1, relative_eps=False)
    labels_RH = recipe(line(0, 1, 10, 20), np.random.default_rng(0)).labels["dbscan", 1.5]
    assert labels_RH.tolist() == [[0, 0, -1, -1]]


def test_no_more_clusters_than_leave_two_points_together() -> None:
    recipe = Recipe(kmeans_k=(2, 4), ward_k=(3, 4), eps=(), restarts=1)
    assert set(recipe(line(0, 1, 5, 9), np.random.default_rng(0)).labels) == {("kmeans", 2), ("ward", 3)}


def test_quality_by_hand() -> None:
    """Points 0, 2 | 10, 14: centres 11 apart, squared distances to them 1, 1, 4, 4."""
    suite = RECIPE(line(0, 2, 10, 14), np.random.default_rng(0))
    quality = {name: value[0] for name, value in suite.quality().items()}
    assert quality["centre_distance"] == pytest.approx(11)
    assert quality["within_variance"] == pytest.approx(2.5)
    assert quality["separation"] == pytest.approx(11 / np.sqrt(2.5))
    assert quality["wasserstein"] == pytest.approx(11)
    assert quality["smallest_cluster"] == 2
    assert quality["first_component"] == pytest.approx(1)
    assert quality["silhouette"] == pytest.approx(np.mean([10 / 12, 8 / 10, 5 / 9, 9 / 13]))


def test_an_outlier_makes_no_silhouette_of_clusters() -> None:
    """The seed's own silhouette praises one far point; with outliers apart nothing is left to praise."""
    suite = Recipe(kmeans_k=(2,), ward_k=(2,), eps=(), restarts=5)(line(0, 1, 2, 3, 100), np.random.default_rng(0))
    assert suite.silhouette(("kmeans", 2))[0] > 0.7
    assert np.isnan(suite.best_silhouette_R[0])
    assert suite.alone_RH.tolist() == [[0, 0, 0, 0, 1]]


def test_rank_in_the_null_by_hand() -> None:
    null_R = np.array([0.1, 0.2, 0.3, np.nan])
    assert against_null(0.2, null_R) == (pytest.approx(0.2), 3 / 5)  # a cloud without clusters counts as lower
    assert against_null(0.4, null_R)[1] == 1 / 5
    assert np.isnan(against_null(np.nan, null_R)[1]) and np.isnan(against_null(0.2, null_R, tested=False)[1])


def test_agreement_has_the_exact_p() -> None:
    """Of the 20 ways to deal two labels of three to six heads, 2 agree as well as the same labels do."""
    first_H = np.array([0, 0, 0, 1, 1, 1])
    found = agreement(first_H, first_H, 20_000, np.random.default_rng(0))
    assert found.rand == 1 and found.information_nats == pytest.approx(np.log(2))
    assert found.p_rand == pytest.approx(0.1, abs=0.01) and found.p_information == pytest.approx(0.1, abs=0.01)
    second_H = np.array([0, 0, 1, 1, 1, 1])
    dealt = [np.isin(range(6), zeros) for zeros in itertools.combinations(range(6), 2)]
    rand = [sklearn.metrics.adjusted_rand_score(first_H, ~labels_H) for labels_H in dealt]
    information = [sklearn.metrics.mutual_info_score(first_H, labels_H) for labels_H in dealt]
    found = agreement(first_H, second_H, 20_000, np.random.default_rng(0))
    assert found.rand == pytest.approx(rand[0])
    assert found.p_rand == pytest.approx(np.mean(np.array(rand) >= rand[0] - 1e-9), abs=0.015)
    assert found.null_information_nats == pytest.approx(np.mean(information), abs=0.005)
    assert np.isnan(agreement(first_H, np.zeros(6, dtype=int), 99, np.random.default_rng(0)).rand)


def test_agreement_of_unrelated_labels_is_called_so_at_the_stated_rate() -> None:
    generator = np.random.default_rng(0)
    labels = [np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([0, 0, 0, 1, 1, 1, 2, 2])]
    p = [agreement(labels[0], generator.permutation(labels[1]), 199, generator).p_rand for _ in range(400)]
    for alpha in (0.05, 0.2, 0.5):  # valid, if coarse: few labellings, so ties
        assert np.mean(np.array(p) <= alpha) <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / 400)


def test_what_separates() -> None:
    labels_CH = np.array([[0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 0, 1]])
    property_RH = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=bool)
    assert separates(labels_CH, property_RH).tolist() == [[True, False, False], [False, True, False]]


def test_labels_follow_the_heads() -> None:
    generator = np.random.default_rng(0)
    points_HX, order = generator.normal(size=(8, 5)), generator.permutation(8)
    here, there = (RECIPE((x @ x.T)[None], np.random.default_rng(1)) for x in (points_HX, points_HX[order]))
    for key, labels_RH in here.labels.items():
        assert (clusterings.renumbered(labels_RH[:, order]) == there.labels[key]).all()
    np.testing.assert_allclose(here.alone_RH[:, order], there.alone_RH)
