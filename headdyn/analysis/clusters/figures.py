"""Pictures of head clusters: silhouettes before their null, who stands with whom, heads as points in a plane."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from headdyn.analysis.clusters import clusterings
from headdyn.analysis.clusters.seed_clusters import SeedClusters
from headdyn.analysis.clusters.suite import SEED_KEY, Clouds, Suite
from headdyn.core.figures import Figure, NullRanges, Scatter, label_strips, null_ranges, scatter_panels
from headdyn.core.records import HeadTable


def percentiles(null_RX: np.ndarray) -> np.ndarray:
    """5th percentile, mean and 95th percentile of each column, [X, 3]; NaN where a column has no number."""
    out = np.full((null_RX.shape[1], 3), np.nan)
    for x, column_R in enumerate(null_RX.T):
        known_R = column_R[np.isfinite(column_R)]
        if len(known_R):
            low, high = np.quantile(known_R, (0.05, 0.95))
            out[x] = low, known_R.mean(), high
    return out


def silhouette_figure(kinds: Mapping[str, Clouds], table: HeadTable, words: Mapping[str, str]) -> Figure:
    """Silhouettes at every layer before those of random heads: k-means with k = 2, and the best of all clusterings.

    0.25 is Kaufman and Rousseeuw's rule of thumb (1990): heads that are not random need not be in groups.
    """
    panels = []
    for measure, title in (("silhouette", "k-means, k = 2"), ("best_silhouette", "best of all, outliers apart")):
        for kind, clouds in kinds.items():
            own_L = table.layer_series(f"{kind}_{measure}")
            null_RL = np.stack(
                [
                    null.silhouette(SEED_KEY) if measure == "silhouette" else null.best_silhouette_R
                    for null in clouds.nulls
                ],
                axis=1,
            )
            panels.append(
                NullRanges(
                    title=f"{words[kind]}\n{title}",
                    labels=[str(layer) for layer in range(len(own_L))],
                    value_X=own_L,
                    null_X3=percentiles(null_RL),
                    marked_X=table.layer_series(f"{kind}_{measure}", "q") < 0.05,
                    ylabel="silhouette",
                    xlabel="layer",
                )
            )
    title = "Do the heads of a layer form clusters? Below 0.25 is no substantial structure. Chance: random heads"
    return null_ranges(panels, columns=len(kinds), title=title)


def assignment_figure(
    suites: Mapping[str, Suite], pieces: SeedClusters | None, layer: int, repairs_H: np.ndarray | None
) -> Figure:
    """Every clustering of one layer as a strip over heads, with even/odd and the heads that repair on top.

    DBSCAN is shown where it finds at least two clusters, or one and outliers.
    """
    heads = next(iter(suites.values())).split_RH.shape[1]
    rows = [("even / odd", np.arange(heads) % 2)]
    if repairs_H is not None:
        rows.append(("1: repairs the answer alone", repairs_H.astype(int)))
    rows += [row for kind, suite in suites.items() for row in _strips(kind, suite, layer)]
    columns = [rows]
    if pieces is not None and pieces.suites:
        columns.append([row for part, suite in pieces.suites.items() for row in _strips(f"seed {part}", suite, 0)])
    return label_strips(columns, title=f"Clusters of the heads of layer {layer} (hollow: in none)")


def _strips(name: str, suite: Suite, row: int) -> list[tuple[str, np.ndarray]]:
    strips = []
    for (method, parameter), labels_RH in suite.labels.items():
        labels_H = clusterings.singled_out(labels_RH)[row]
        if method != "dbscan" or len(set(labels_H.tolist())) > 1:
            strips.append((f"{name}: {method} {'ε' if method == 'dbscan' else 'k'} = {parameter:g}", labels_H))
    return strips


def point_figure(suites: Mapping[str, Suite], pieces: SeedClusters | None, layer: int, seed: int) -> Figure:
    """The heads of one layer by principal components and by t-SNE, coloured by k-means with k = 2."""
    shown = [(kind, suite, layer) for kind, suite in suites.items()]
    if pieces is not None:
        shown += [(f"seed {part}", suite, 0) for part, suite in pieces.suites.items()]
    plain, bent = [], []
    for name, suite, row in shown:
        points_HX, share_X = clusterings.coordinates(suite.gram_RHH[row])
        labels_H = clusterings.singled_out(suite.split_RH)[row]
        plain.append(
            Scatter(
                title=f"{name}: principal components",
                points_H2=points_HX[:, :2],
                labels_H=labels_H,
                xlabel=f"1 ({share_X[0]:.0%} of variance)",
                ylabel=f"2 ({share_X[1]:.0%})",
            )
        )
        points_H2 = tsne(points_HX, tsne_perplexity(len(labels_H)), seed)
        bent.append(Scatter(title=f"{name}: t-SNE", points_H2=points_H2, labels_H=labels_H))
    perplexity = f"t-SNE at perplexity {tsne_perplexity(len(labels_H)):.2g}"
    title = f"Heads of layer {layer}, coloured by k-means with k = 2 (hollow: alone); {perplexity}"
    return scatter_panels([*plain, *bent], columns=len(shown), title=title)


def tsne_perplexity(heads: int) -> float:
    """5 as the seed's, or a third of the other heads where there are fewer: it must stay below their number."""
    return min(5.0, max(1.0, (heads - 1) / 3))


def tsne(points_HX: np.ndarray, perplexity: float, seed: int) -> np.ndarray:
    """Two coordinates for each head by t-SNE; neither axes nor distances between groups mean anything.

    Coinciding points stay together at 0: t-SNE has nothing to go by.
    """
    from sklearn.manifold import TSNE  # 1 s to import, and pictures alone need it

    if not points_HX.any():
        return np.zeros((len(points_HX), 2))
    scaled_HX = points_HX / np.abs(points_HX).max()  # t-SNE is free of scale, its stopping rule is not
    fit = TSNE(perplexity=perplexity, init="random", method="exact", random_state=seed, learning_rate="auto")
    return fit.fit_transform(scaled_HX)
