"""Every clustering of a layer's heads that science.md §12 names, for many clouds at once, and how they compare.

Letters as in clusterings.py. Row 0 may be the heads and the others random ones: they go through the same steps.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from headdyn.analysis.clusters import clusterings
from headdyn.core.statistics import adjusted_rand, at_least_as_high

Key = tuple[str, float]  # method and its parameter: k, or DBSCAN's radius
TWO_MEANS: Key = ("kmeans", 2)


@dataclass(frozen=True, kw_only=True)
class AllClusterings:
    """The labels of every clustering of R clouds, and their quality."""

    gram_RHH: np.ndarray
    labels: Mapping[Key, np.ndarray]

    @functools.cached_property
    def distance_RHH(self) -> np.ndarray:
        """Distances between the points of each cloud."""
        return clusterings.distances(self.gram_RHH)

    @property
    def split_RH(self) -> np.ndarray:
        """Labels of k-means with two clusters."""
        return self.labels[TWO_MEANS]

    def silhouette(self, key: Key) -> np.ndarray:
        """Mean silhouette of one clustering, a point alone in its cluster counting as 0; [R]."""
        return clusterings.silhouette(self.distance_RHH, self.labels[key])

    @functools.cached_property
    def best_silhouette_R(self) -> np.ndarray:
        """The best mean silhouette of all clusterings, [R]; a point alone in its cluster is left out as an outlier.

        NaN where no clustering has two clusters of at least two points each.
        """
        every_RH = [clusterings.singled_out(labels_RH) for labels_RH in self.labels.values()]
        values_RX = np.stack([clusterings.silhouette(self.distance_RHH, labels_RH) for labels_RH in every_RH], axis=-1)
        best_R = np.where(np.isfinite(values_RX), values_RX, -np.inf).max(-1)
        return np.where(np.isfinite(best_R), best_R, np.nan)

    @functools.cached_property
    def alone_RH(self) -> np.ndarray:
        """The share of clusterings in which each point stands alone, 0..1."""
        return np.mean([clusterings.singled_out(labels_RH) < 0 for labels_RH in self.labels.values()], axis=0)

    def quality(self) -> dict[str, np.ndarray]:
        """Measures of the k-means split into two and of the cloud, by name, each [R]."""
        split_RH = self.split_RH
        between_R, within_Rk = clusterings.spread(self.gram_RHH, split_RH)
        size_Rk = (split_RH[..., None] == np.arange(within_Rk.shape[1])).sum(1)
        within_R = (np.where(size_Rk > 0, within_Rk, 0) * size_Rk).sum(-1) / split_RH.shape[1]
        two_R = np.isfinite(between_R)
        return {
            "silhouette": self.silhouette(TWO_MEANS),
            "best_silhouette": self.best_silhouette_R,
            "centre_distance": between_R,
            "within_variance": np.where(two_R, within_R, np.nan),
            "separation": np.divide(
                between_R, np.sqrt(within_R), out=np.full(len(between_R), np.nan), where=two_R & (within_R > 0)
            ),
            "wasserstein": np.array(
                [
                    clusterings.wasserstein(distance_HH, labels_H == 0, labels_H == 1) if two else np.nan
                    for distance_HH, labels_H, two in zip(self.distance_RHH, split_RH, two_R, strict=True)
                ]
            ),
            "smallest_cluster": np.where(two_R, size_Rk.min(-1).astype(float), np.nan),
            "first_component": clusterings.first_component_share(self.gram_RHH),
        }


@dataclass(frozen=True, kw_only=True)
class Clouds:
    """One kind of points: the heads of every layer, and random heads for each layer."""

    own: AllClusterings  # row l: the heads of layer l
    nulls: Sequence[AllClusterings]  # by layer: random heads


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Which clusterings to make; with `relative_eps` DBSCAN's radii are shares of a cloud's median distance."""

    kmeans_k: tuple[int, ...]
    ward_k: tuple[int, ...]
    eps: tuple[float, ...]
    restarts: int
    relative_eps: bool = True

    def __call__(self, gram_RHH: np.ndarray, generator: np.random.Generator) -> AllClusterings:
        """Cluster R clouds; values of k that are not below the number of points are left out."""
        heads = gram_RHH.shape[-1]
        distance_RHH = clusterings.distances(gram_RHH)
        labels: dict[Key, np.ndarray] = {}
        for k in self.kmeans_k:
            if k < heads:
                labels["kmeans", k] = clusterings.kmeans(gram_RHH, k, generator, restarts=self.restarts)
        ward_k = [k for k in self.ward_k if k < heads]
        keys = [("ward", k) for k in ward_k] + [("dbscan", eps) for eps in self.eps]
        scale_R = np.median(distance_RHH[:, *np.triu_indices(heads, 1)], axis=-1) if self.relative_eps else 1.0
        eps_RE = np.broadcast_to(np.multiply.outer(scale_R, self.eps), (len(gram_RHH), len(self.eps)))
        others = [*clusterings.ward(distance_RHH, ward_k), *clusterings.dbscan(distance_RHH, eps_RE)]
        labels |= dict(zip(keys, others, strict=True))
        return AllClusterings(gram_RHH=gram_RHH, labels=labels)


def against_null(value: float, null_R: np.ndarray, tested: bool = True) -> tuple[float, float]:
    """A measure's mean over R random clouds, and p = (1 + clouds with at least that value) / (1 + R).

    NaN stands for a missing value: a random cloud without one (it has no two clusters, say) counts as lower and is left
    out of the mean. The mean is NaN if all are missing; p is NaN then, for a missing `value`, and if not `tested`.
    """
    known_R = np.isfinite(null_R)
    mean = null_R[known_R].mean() if known_R.any() else np.nan
    if not tested or not np.isfinite(value) or not known_R.any():
        return float(mean), np.nan
    return float(mean), float((1 + (null_R[known_R] >= value).sum()) / (1 + len(null_R)))


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two labellings agree, with one-sided p over random relabellings; NaN if one has a single cluster."""

    rand: float = np.nan
    p_rand: float = np.nan
    information_nats: float = np.nan
    p_information: float = np.nan
    null_information_nats: float = np.nan


def agreement(first_H: np.ndarray, second_H: np.ndarray, draws: int, generator: np.random.Generator) -> Agreement:
    """Adjusted Rand index and mutual information of two labellings, against `draws` random relabellings."""
    second_RH = clusterings.relabellings(second_H, draws, generator)
    if min(len(set(first_H.tolist())), len(set(second_H.tolist()))) < 2:
        return Agreement()
    table = clusterings.contingency(first_H, second_RH)
    rand_R, information_R = adjusted_rand(table), clusterings.mutual_information(table)
    p_rand, p_information = map(at_least_as_high, (rand_R, information_R))
    return Agreement(
        rand=float(rand_R[0]),
        p_rand=p_rand,
        information_nats=float(information_R[0]),
        p_information=p_information,
        null_information_nats=float(information_R[1:].mean()),
    )


def separates(labels_CH: np.ndarray, property_RH: np.ndarray) -> np.ndarray:
    """Whether every cluster holds only heads with a property or only others: R properties, C labellings, [R, C]."""
    member_CHk = labels_CH[..., None] == np.arange(labels_CH.max() + 1)
    having_RCk = np.einsum("rh,chk->rck", property_RH.astype(float), member_CHk.astype(float))
    return ((having_RCk == 0) | (having_RCk == member_CHk.sum(1))).all(-1)
