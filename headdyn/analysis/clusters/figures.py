"""Pictures of head clusters: silhouettes against their null, every clustering, heads as points in a plane."""

from collections.abc import Mapping

import numpy as np

from headdyn.analysis.clusters import KINDS, clusterings
from headdyn.analysis.clusters.all_clusterings import TWO_MEANS, AllClusterings, Clouds
from headdyn.core.figures import Figure
from headdyn.core.records import HeadTable
from headdyn.core.special_charts import NullRanges, Scatter, label_strips, null_ranges, scatter_panels


def percentiles(null_RX: np.ndarray) -> np.ndarray:
    """5th percentile, mean and 95th percentile of each column, [X, 3]; NaN where a column has no number."""
    out = np.full((null_RX.shape[1], 3), np.nan)
    for x, column_R in enumerate(null_RX.T):
        known_R = column_R[np.isfinite(column_R)]
        if len(known_R):
            low, high = np.quantile(known_R, (0.05, 0.95))
            out[x] = low, known_R.mean(), high
    return out


def silhouette_figure(kinds: Mapping[str, Clouds], table: HeadTable) -> Figure:
    """Silhouettes at every layer against those of random heads: k-means with k = 2, and the best of all clusterings.

    0.25 is Kaufman and Rousseeuw's rule of thumb (1990): heads that are not random need not be in groups.
    """
    panels = []
    for measure, title in (("silhouette", "k-means, k = 2"), ("best_silhouette", "best of all, outliers apart")):
        for kind, clouds in kinds.items():
            null_LR = [
                null.silhouette(TWO_MEANS) if measure == "silhouette" else null.best_silhouette_R
                for null in clouds.nulls
            ]
            panels.append(
                NullRanges(
                    title=f"{KINDS[kind]}\n{title}",
                    labels=[str(layer) for layer in range(len(null_LR))],
                    value_X=table.layer_series(f"{kind}_{measure}"),
                    null_X3=percentiles(np.stack(null_LR, axis=1)),
                    marked_X=table.layer_series(f"{kind}_{measure}", "q") < 0.05,
                    ylabel="silhouette",
                    xlabel="layer",
                )
            )
    caption = "Below 0.25 a silhouette is no substantial structure. Grey: the same steps on random heads."
    title = "Do the heads of a layer form clusters?"
    return null_ranges(panels, columns=len(kinds), title=title, caption=caption)


def assignment_figure(
    own: Mapping[str, AllClusterings], layer: int, row: int, repairs_H: np.ndarray | None = None
) -> Figure:
    """Every clustering of one layer as a strip over heads, with even/odd on top; `row` is the layer's row in `own`.

    DBSCAN is drawn where it gives at least two clusters, or one cluster and outliers.
    """
    heads = next(iter(own.values())).split_RH.shape[1]
    strips = [("even / odd", np.arange(heads) % 2)]
    if repairs_H is not None:
        strips.append(("1: repairs the answer alone", repairs_H.astype(int)))
    for name, layers in own.items():
        for (method, parameter), labels_RH in layers.labels.items():
            labels_H = clusterings.singled_out(labels_RH)[row]
            if method != "dbscan" or len(set(labels_H.tolist())) > 1:
                strips.append((f"{name}: {method} {'ε' if method == 'dbscan' else 'k'} = {parameter:g}", labels_H))
    caption = "Strips are clusterings, cells are heads: cells of one colour are one cluster, hollow cells are in none."
    return label_strips([strips], title=f"Clusters of the heads of layer {layer}", caption=caption)


def point_figure(own: Mapping[str, AllClusterings], layer: int, row: int, seed: int) -> Figure:
    """The heads of one layer, row `row` of `own`, by principal components and by t-SNE, coloured by k-means cluster."""
    component_panels, tsne_panels = [], []
    for name, layers in own.items():
        points_HX, share_X = clusterings.coordinates(layers.gram_RHH[row])
        labels_H = clusterings.singled_out(layers.split_RH)[row]
        component_panels.append(
            Scatter(
                title=f"{name}: principal components",
                points_H2=points_HX[:, :2],
                labels_H=labels_H,
                xlabel=f"1 ({share_X[0]:.0%} of variance)",
                ylabel=f"2 ({share_X[1]:.0%})",
            )
        )
        points_H2 = tsne(points_HX, tsne_perplexity(len(labels_H)), seed)
        tsne_panels.append(Scatter(title=f"{name}: t-SNE", points_H2=points_H2, labels_H=labels_H))
    caption = (
        "Every number is a head; colours are k-means clusters with k = 2 (hollow: alone). t-SNE at perplexity "
        f"{tsne_perplexity(len(labels_H)):.2g} draws groups even of random points."
    )
    return scatter_panels(
        [*component_panels, *tsne_panels], columns=len(own), title=f"Heads of layer {layer}", caption=caption
    )


def tsne_perplexity(heads: int) -> float:
    """5, or a third of the other heads where there are fewer: it must stay below their number."""
    return min(5.0, max(1.0, (heads - 1) / 3))


def tsne(points_HX: np.ndarray, perplexity: float, seed: int) -> np.ndarray:
    """Two coordinates for each head by t-SNE; neither axes nor distances between groups mean anything.

    Where all points coincide they stay at 0, since t-SNE has no distances to draw.
    """
    from sklearn.manifold import TSNE  # takes 1 s, and only pictures need it

    if not points_HX.any():
        return np.zeros((len(points_HX), 2))
    scaled_HX = points_HX / np.abs(points_HX).max()  # t-SNE is free of scale, its stopping rule is not
    fit = TSNE(perplexity=perplexity, init="random", method="exact", random_state=seed, learning_rate="auto")
    return fit.fit_transform(scaled_HX)
