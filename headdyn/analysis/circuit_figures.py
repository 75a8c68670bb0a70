"""Pictures of circuits: spectra, similarity and its clusters, and the tokens that heads are about (science.md §8).

Letters as in circuits_measure.py.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from headdyn.analysis.circuit_readouts import SIDES, by_head
from headdyn.analysis.circuits import Circuits
from headdyn.analysis.figure_parts import drawable, head_panel
from headdyn.core.figures import Curve, Figure, curves, head_map
from headdyn.core.pictures import Tree, similarity_grid, tree_grid
from headdyn.core.records import HeadTable
from headdyn.core.special_charts import text_tables

_TITLES = {"qk": "QK", "ov": "OV"}
_MOST_HEADS = 16  # in each table of readouts


def heads_figure(table: HeadTable, width: int) -> Figure:
    """Effective ranks (of at most `width`) and copying scores by head, the random heads' mean above each map."""
    summary = table.summary()
    panels = []
    for name in ("qk_effective_rank", "ov_effective_rank", "copying_score"):
        scale = {"centre": 0.0} if name == "copying_score" else {"limits": (1.0, float(width))}
        note = f"random heads {summary[name]['null']:.2f}" if "null" in summary[name] else ""
        panels.append(head_panel(Circuits.metrics, table, name, tested=name, note=note, **scale))
    return head_map(
        panels,
        caption=f"How many of its {width} directions each head's weights use, and whether its OV circuit raises the "
        "logit of the token that it reads (copying score above 0). The mean of random heads is above each map; a star "
        "marks a head that is further from it than chance allows.",
    )


def spectra_figure(spectra: Mapping[str, np.ndarray], null: Sequence[Mapping[str, np.ndarray]]) -> Figure:
    """Singular values over the root of their summed squares: mean over heads, band from the 10th to 90th percentile."""
    random_Nd = np.concatenate([values[name] for values in null for name in values])  # QK and OV are drawn alike
    lines = []
    for label, values_Nd in (("QK", spectra["qk"]), ("OV", spectra["ov"]), ("random heads", random_Nd)):
        share_Nd = values_Nd / np.linalg.norm(values_Nd, axis=-1, keepdims=True).clip(1e-300)
        low, high = np.quantile(share_Nd, [0.1, 0.9], axis=0)
        lines.append(Curve(label=label, x=np.arange(1, share_Nd.shape[1] + 1), y=share_Nd.mean(0), low=low, high=high))
    return curves(
        lines,
        xlabel="index of the singular value",
        ylabel="singular value / Frobenius norm",
        title="spectra: mean over heads, 10th to 90th percentile",
        whole_x=True,
        caption="The strength of every direction of the heads' circuits, strongest first. A steeper line than the "
        "random heads' means that heads have settled on few directions.",
    )


def similarity_figures(
    similarity: Mapping[str, np.ndarray], null: Sequence[Mapping[str, np.ndarray]], heads: int
) -> dict[str, Figure]:
    """Cosines between heads on one colour scale, as two figures, "similarity" and "clusters".

    "similarity" has one matrix per circuit, with the heads in the order of the layers; "clusters" has QK beside OV, in
    the order of the tree by average linkage of 1 − cosine. The cosine with a circuit of zeros is 0. `heads` is the
    number of heads per layer; labels are layer.head.
    """
    closest = {name: float(np.mean([_between(draw[name]).max(initial=0) for draw in null])) for name in _TITLES}
    furthest = max(np.abs(_between(cosine_NN)).max(initial=1e-3) for cosine_NN in similarity.values())
    reach = float(max(furthest, *(2 * cosine for cosine in closest.values())))
    trees = []
    for name, title in _TITLES.items():
        cosine_NN = np.where(np.eye(len(similarity[name]), dtype=bool), 1, np.nan_to_num(similarity[name]))
        order, place_J4, height_J4 = _tree(cosine_NN)
        trees.append(
            Tree(
                title=title,
                labels=[f"{n // heads}.{n % heads}" for n in order],
                cosine_NN=cosine_NN[np.ix_(order, order)],
                place_J4=place_J4,
                height_J4=height_J4,
                chance=1 - closest[name],
            )
        )
    chance = "The most alike two of as many random heads have a cosine of " + " and ".join(
        f"{closest[name]:.2f} ({title})" for name, title in _TITLES.items()
    )
    matrices_CNN = np.stack(list(similarity.values()))
    return {
        "similarity": similarity_grid(
            matrices_CNN,
            columns=[name.replace("qk", "QK").replace("ov", "OV") for name in similarity],
            reach=reach,
            boundaries=range(0, matrices_CNN.shape[1], heads),
            caption="How alike the circuits of two heads are, heads in the order of the layers: 1 is the same up to "
            f"scale, 0 unrelated. {chance}; colours reach at least twice as far, so that noise looks faint.",
        ),
        "clusters": tree_grid(
            trees,
            reach=reach,
            title="Heads whose circuits are alike stand side by side (layer.head)",
            caption="Heads joined by how alike their circuits are, and the cosines in the tree's order. Joins below "
            f"the dashed line are closer than chance brings any pair. {chance}.",
        ),
    }


def _between(cosine_NN: np.ndarray) -> np.ndarray:
    """The cosines of different heads; 0 if a circuit is zero."""
    return np.nan_to_num(cosine_NN)[~np.eye(len(cosine_NN), dtype=bool)]


def _tree(cosine_NN: np.ndarray) -> tuple[list[int], np.ndarray, np.ndarray]:
    """The heads in the order of the tree's leaves, and the corners of its joins: places and heights, [J, 4] each."""
    if len(cosine_NN) < 2:
        return list(range(len(cosine_NN))), np.empty((0, 4)), np.empty((0, 4))
    distance_NN = np.clip(1 - (cosine_NN + cosine_NN.T) / 2, 0, None)
    np.fill_diagonal(distance_NN, 0)
    tree = dendrogram(linkage(squareform(distance_NN, checks=False), "average"), no_plot=True)
    return [int(leaf) for leaf in tree["leaves"]], (np.array(tree["icoord"]) - 5) / 10, np.array(tree["dcoord"])


def readouts_figure(readouts: Mapping[str, pa.Table], by_chance: Mapping[str, float]) -> Figure:
    """For the heads whose first singular direction has the largest share: the tokens furthest along its two sides.

    `by_chance` is how far the furthest token of random heads lies, in standard deviations, by circuit.
    """
    tables: dict[str, list[list[str]]] = {}
    for name, table in readouts.items():
        by_share = sorted(by_head(table).items(), key=lambda item: -next(iter(item[1].values()))["share"])
        rows = [["head", "share of σ²", *SIDES[name]]]
        for (layer, head), sides in by_share[:_MOST_HEADS]:
            share = next(iter(sides.values()))["share"]
            readings = [sides[side] for side in SIDES[name]]
            texts = (f"({side['deviations'][0]:.1f})  {' '.join(map(drawable, side['texts']))}" for side in readings)
            rows.append([f"{layer}.{head}", f"{100 * share:.0f} %", *texts])
        tables[f"{_TITLES[name]}: random heads reach {by_chance[name]:.1f} sd"] = rows
    return text_tables(
        tables,
        widths=(40, 75, 200, 200),
        caption=f"The tokens furthest along the strongest direction of each circuit, for the {_MOST_HEADS} heads that "
        "lean on it most. In brackets how far the first token lies, in standard deviations over the vocabulary; "
        "random heads reach the number above the table.",
    )
