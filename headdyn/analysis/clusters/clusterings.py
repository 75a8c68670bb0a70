"""Clusters of a few points from their inner products alone, and the clusters' quality (science.md §12).

Letters: R clouds of H points each, k clusters, I restarts. A cloud is given by its Gram matrix, so anything with inner
products can be clustered: flattened weights, circuits free of gauge, effect vectors. Many clouds run at once, since a
null needs hundreds: for 12 points and one k scikit-learn's KMeans takes 16 ms a cloud, this module 0.4 ms. Labels count
from 0 in order of their first point; −1 marks a point that belongs to no cluster.

Quality measures are NaN where they are undefined, such as a silhouette of fewer than two clusters.
"""

from collections.abc import Sequence

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.optimize import linear_sum_assignment


def centred(gram_RHH: np.ndarray) -> np.ndarray:
    """Inner products once each cloud's mean is taken away."""
    rows = gram_RHH - gram_RHH.mean(-1, keepdims=True)
    return rows - rows.mean(-2, keepdims=True)


def distances(gram_RHH: np.ndarray) -> np.ndarray:
    """Euclidean distances, [R, H, H]."""
    return np.sqrt(_squared(gram_RHH))


def _squared(gram_RHH: np.ndarray) -> np.ndarray:
    norm_RH = np.diagonal(gram_RHH, axis1=-2, axis2=-1)
    squared_RHH = norm_RH[..., :, None] + norm_RH[..., None, :] - 2 * gram_RHH
    squared_RHH[..., np.arange(norm_RH.shape[-1]), np.arange(norm_RH.shape[-1])] = 0  # not a rounding error
    return np.maximum(squared_RHH, 0)


def kmeans(gram_RHH: np.ndarray, k: int, generator: np.random.Generator, *, restarts: int = 10) -> np.ndarray:
    """Labels [R, H] of Lloyd's algorithm from k-means++ starts, the best of `restarts`.

    All clouds use the same random numbers. Points are taken in order of their distance from the mean, so that numbering
    them differently changes nothing. Fewer than k distinct points give fewer than k labels.
    """
    gram_RHH = centred(gram_RHH)
    radius_RH = np.diagonal(gram_RHH, axis1=-2, axis2=-1)
    order_RH = np.argsort(-radius_RH, axis=-1, kind="stable")
    rows_R11 = np.arange(len(gram_RHH))[:, None, None]
    gram_RHH = gram_RHH[rows_R11, order_RH[:, :, None], order_RH[:, None, :]]
    labels_RIH = _plus_plus(_squared(gram_RHH), generator.random((restarts, k)))
    norm_R1H1 = np.diagonal(gram_RHH, axis1=-2, axis2=-1)[:, None, :, None]
    while True:
        member_RIHk = labels_RIH[..., None] == np.arange(k)
        size_RI1k = member_RIHk.sum(-2, keepdims=True)
        mean_RIHk = member_RIHk / np.maximum(size_RI1k, 1)
        to_centre_RIHk = gram_RHH[:, None] @ mean_RIHk
        centre_RI1k = (mean_RIHk * to_centre_RIHk).sum(-2, keepdims=True)
        squared_RIHk = np.where(size_RI1k > 0, norm_R1H1 - 2 * to_centre_RIHk + centre_RI1k, np.inf)
        nearest_RIH = squared_RIHk.argmin(-1)
        if (nearest_RIH == labels_RIH).all():
            break
        # A point moves only to a strictly nearer centre, beyond rounding: otherwise ties could alternate for ever.
        own, best = (
            np.take_along_axis(squared_RIHk, labels[..., None], -1)[..., 0] for labels in (labels_RIH, nearest_RIH)
        )
        moved_RIH = best < own - 1e-12 * norm_R1H1[..., 0].max(-1, keepdims=True)
        if not moved_RIH.any():
            break
        labels_RIH = np.where(moved_RIH, nearest_RIH, labels_RIH)
    inertia_RI = np.take_along_axis(squared_RIHk, labels_RIH[..., None], -1).sum((-2, -1))
    inertia_RI = np.where((size_RI1k > 0).all((-2, -1)), inertia_RI, np.inf)
    best_RH = labels_RIH[np.arange(len(labels_RIH)), inertia_RI.argmin(-1)]
    labels_RH = np.empty_like(best_RH)
    np.put_along_axis(labels_RH, order_RH, best_RH, axis=-1)
    return renumbered(labels_RH)


def _plus_plus(squared_RHH: np.ndarray, uniform_Ik: np.ndarray) -> np.ndarray:
    """Each point's nearest of k starts, [R, I, H] (k-means++, Arthur & Vassilvitskii 2007).

    Each start is drawn with odds proportional to the squared distance to the nearest start before it.
    """
    points = squared_RHH.shape[-1]
    first_I = (uniform_Ik[:, 0] * points).astype(int)
    nearest_RIH = squared_RHH[:, first_I]
    labels_RIH = np.zeros(nearest_RIH.shape, dtype=int)
    for j, uniform_I in enumerate(uniform_Ik.T[1:], start=1):
        odds_RIH = nearest_RIH.cumsum(-1)
        start_RI = (odds_RIH <= uniform_I[:, None] * odds_RIH[..., -1:]).sum(-1).clip(max=points - 1)
        squared_RIH = squared_RHH[np.arange(len(squared_RHH))[:, None], start_RI]
        labels_RIH = np.where(squared_RIH < nearest_RIH, j, labels_RIH)
        nearest_RIH = np.minimum(squared_RIH, nearest_RIH)
    return labels_RIH


def ward(distance_RHH: np.ndarray, ks: Sequence[int]) -> list[np.ndarray]:
    """Labels [R, H] of Ward's hierarchical clustering, cut into each number of clusters of `ks`."""
    clouds, heads, _ = distance_RHH.shape
    upper = np.triu_indices(heads, 1)
    joined_RJ2 = np.stack([linkage(distance_HH[upper], "ward")[:, :2] for distance_HH in distance_RHH]).astype(int)
    labels_RH = np.tile(np.arange(heads), (clouds, 1))
    cuts = {heads: labels_RH}
    for j, pair_R2 in enumerate(joined_RJ2.swapaxes(0, 1)):
        labels_RH = np.where((labels_RH[..., None] == pair_R2[:, None]).any(-1), heads + j, labels_RH)
        cuts[heads - 1 - j] = labels_RH
    return [renumbered(cuts[k]) for k in ks]


def dbscan(distance_RHH: np.ndarray, eps_RE: np.ndarray) -> list[np.ndarray]:
    """Labels [R, H] of DBSCAN with min_samples = 2, for each of a cloud's E radii; −1 is noise.

    With min_samples = 2 every point that has a neighbour within eps is a core point, so clusters are the connected
    components of the graph of neighbours, and a component of one point is noise.
    """
    results = []
    for eps_R in np.transpose(eps_RE):
        reached_RHH = distance_RHH <= eps_R[:, None, None]
        for _ in range(distance_RHH.shape[-1].bit_length()):  # each product doubles the path length
            reached_RHH = reached_RHH.astype(np.float32) @ reached_RHH.astype(np.float32) > 0
        results.append(singled_out(reached_RHH.argmax(-1)))
    return results


def renumbered(labels_RH: np.ndarray) -> np.ndarray:
    """Labels counted from 0 in order of each label's first point; −1 stays."""
    same_RHH = labels_RH[..., :, None] == labels_RH[..., None, :]
    first_RH = same_RHH.argmax(-1)
    is_first_RH = (first_RH == np.arange(labels_RH.shape[-1])) & (labels_RH >= 0)
    number_RH = np.take_along_axis(is_first_RH.cumsum(-1) - 1, first_RH, -1)
    return np.where(labels_RH < 0, -1, number_RH)


def singled_out(labels_RH: np.ndarray) -> np.ndarray:
    """The labels, with −1 for every outlier: a point that is alone in its cluster."""
    alone_RH = (labels_RH[..., :, None] == labels_RH[..., None, :]).sum(-1) == 1
    return renumbered(np.where(alone_RH, -1, labels_RH))


def smaller(labels_H: np.ndarray) -> np.ndarray:
    """The smaller of two clusters as a mask [H]; of two of equal size, the one with the first point."""
    first_H = labels_H == labels_H[0]
    return first_H if 2 * first_H.sum() <= len(labels_H) else ~first_H


def _members(labels_RH: np.ndarray) -> np.ndarray:
    """Whether each point belongs to each cluster, [R, H, k]; a point with label −1 belongs to none."""
    return labels_RH[..., None] == np.arange(max(labels_RH.max(initial=0) + 1, 1))


def silhouettes(distance_RHH: np.ndarray, labels_RH: np.ndarray) -> np.ndarray:
    """(b − a) / max(a, b) of every point, [R, H] in −1..1 (Rousseeuw 1987).

    a is a point's mean distance to its own cluster, b that to the nearest other one. 0 for a point alone in its
    cluster; NaN for a point with label −1, and where there are fewer than two clusters.
    """
    member_RHk = _members(labels_RH)
    size_R1k = member_RHk.sum(-2, keepdims=True)
    total_RHk = distance_RHH @ member_RHk
    own_size_RH = (member_RHk * size_R1k).sum(-1)
    within_RH = (total_RHk * member_RHk).sum(-1) / np.maximum(own_size_RH - 1, 1)
    outside_RHk = np.where(member_RHk | (size_R1k == 0), np.inf, total_RHk / np.maximum(size_R1k, 1))
    nearest_RH = outside_RHk.min(-1)
    larger_RH = np.maximum(within_RH, nearest_RH)
    known_RH = (labels_RH >= 0) & np.isfinite(nearest_RH)
    value_RH = np.divide(
        nearest_RH - within_RH, larger_RH, out=np.zeros_like(within_RH), where=known_RH & (larger_RH > 0)
    )
    return np.where(known_RH, np.where(own_size_RH == 1, 0.0, value_RH), np.nan)


def silhouette(distance_RHH: np.ndarray, labels_RH: np.ndarray) -> np.ndarray:
    """Mean silhouette of the points that have one, [R]."""
    value_RH = silhouettes(distance_RHH, labels_RH)
    known_RH = np.isfinite(value_RH)
    total_R = np.where(known_RH, value_RH, 0).sum(-1)
    return np.divide(total_R, known_RH.sum(-1), out=np.full(len(value_RH), np.nan), where=known_RH.any(-1))


def spread(gram_RHH: np.ndarray, labels_RH: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest distance between two centres, [R], and each cluster's mean squared distance to its centre, [R, k].

    NaN for fewer than two centres, and for a cluster without points. Points with label −1 are left out.
    """
    member_RHk = _members(labels_RH)
    size_Rk = member_RHk.sum(-2)
    mean_RHk = member_RHk / np.maximum(size_Rk, 1)[:, None]
    centre_Rkk = mean_RHk.swapaxes(-1, -2) @ gram_RHH @ mean_RHk
    occupied_Rk = size_Rk > 0
    between_Rkk = np.where(occupied_Rk[:, :, None] & occupied_Rk[:, None, :], distances(centre_Rkk), 0.0)
    # A cluster's mean of |x|², less |mean of x|²
    squares_Rk = (np.diagonal(gram_RHH, axis1=-2, axis2=-1)[:, None] @ mean_RHk)[:, 0]
    within_Rk = np.maximum(squares_Rk - np.diagonal(centre_Rkk, axis1=-2, axis2=-1), 0)
    within_Rk = np.where(size_Rk == 1, 0.0, within_Rk)  # not a rounding error
    several_R = occupied_Rk.sum(-1) > 1
    return np.where(several_R, between_Rkk.max((-2, -1)), np.nan), np.where(occupied_Rk, within_Rk, np.nan)


def wasserstein(distance_HH: np.ndarray, first_H: np.ndarray, second_H: np.ndarray) -> float:
    """Earth mover's distance W₁ between two sets of points (masks), each of total mass 1 spread evenly.

    Multiplied by the least common multiple of the sizes, all masses are whole numbers: an assignment problem.
    """
    between = distance_HH[np.ix_(first_H, second_H)]
    whole = np.lcm(*between.shape)
    cost = between.repeat(whole // between.shape[0], axis=0).repeat(whole // between.shape[1], axis=1)
    return float(cost[linear_sum_assignment(cost)].mean())


def first_component_share(gram_RHH: np.ndarray) -> np.ndarray:
    """Share of the points' variance on their first principal component, [R] in 0..1; NaN where all points coincide."""
    values_RH = np.maximum(np.linalg.eigvalsh(centred(gram_RHH)), 0)
    total_R = values_RH.sum(-1)
    return np.divide(values_RH[:, -1], total_R, out=np.full(len(total_R), np.nan), where=total_R > 0)


def coordinates(gram_HH: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [H, H] of the points on their principal components, and each component's share of variance.

    A component's sign is arbitrary; here its largest coordinate is positive. All shares are 0 if all points coincide.
    """
    values_H, vectors_HH = np.linalg.eigh(centred(gram_HH))
    values_H, vectors_HH = np.maximum(values_H[::-1], 0), vectors_HH[:, ::-1]
    largest_H = np.take_along_axis(vectors_HH, np.abs(vectors_HH).argmax(0)[None], 0)[0]
    points_HX = vectors_HH * np.where(largest_H < 0, -1, 1) * np.sqrt(values_H)
    return points_HX, values_H / max(values_H.sum(), np.finfo(float).tiny)


def contingency(first_H: np.ndarray, second_RH: np.ndarray) -> np.ndarray:
    """How many points have each pair of labels, [R, a, b]."""
    return _members(first_H).T.astype(float) @ _members(second_RH)


def mutual_information(table_Rab: np.ndarray) -> np.ndarray:
    """Mutual information of the two labels in nats, [R]."""
    share_Rab = table_Rab / table_Rab.sum((-2, -1), keepdims=True)
    independent_Rab = share_Rab.sum(-1, keepdims=True) * share_Rab.sum(-2, keepdims=True)
    ratio_Rab = np.divide(share_Rab, independent_Rab, out=np.ones_like(share_Rab), where=share_Rab > 0)
    return np.maximum((share_Rab * np.log(ratio_Rab)).sum((-2, -1)), 0)


def relabellings(labels_H: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """The null of a comparison, [1 + draws, H]: the labels as they are, then dealt out to the points at random."""
    dealt_RH = generator.permuted(np.broadcast_to(labels_H, (draws, len(labels_H))), axis=-1)
    return np.concatenate((labels_H[None], dealt_RH))
