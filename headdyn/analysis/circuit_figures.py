"""Pictures of circuits: spectra, similarity and its clusters, and the tokens that heads are about (science.md §8).

Letters as in circuits.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from headdyn.analysis.circuit_readouts import SIDES, by_head
from headdyn.core.figures import Curve, Figure, HeadMap, Tree, curves, head_map, similarity_grid, text_tables, tree_grid
from headdyn.core.records import HeadTable

_TITLES = {"qk": "QK", "ov": "OV"}
_MOST_HEADS = 16  # rows of the readouts' figure


def heads_figure(table: HeadTable, width: int) -> Figure:
    """Effective ranks (of at most `width`) and copying scores by head, the random heads' mean above each map."""
    panels: list[HeadMap] = []
    whole = table.summary()
    for name, title in (
        ("qk_effective_rank", "QK effective rank"),
        ("ov_effective_rank", "OV effective rank"),
        ("copying_score", "copying score"),
    ):
        null = whole[name].get("null")
        copying = name == "copying_score"
        shown: dict[str, Any] = {"centre": 0.0} if copying else {"limits": (1, width)}
        panels.append(
            HeadMap(
                title=title,
                unit="Σλ / Σ|λ|" if copying else "dimensions",
                note="" if null is None else f"random heads {null:.2f}",
                value_LH=table.matrix(name),
                marked_LH=table.matrix(name, "q") < 0.05,
                **shown,
            )
        )
    return head_map(panels)


def spectra_figure(spectra: Mapping[str, Tensor], null: list[dict[str, Tensor]]) -> Figure:
    """Singular values over the root of their summed squares: mean over heads, band from the 10th to 90th percentile."""
    drawn_Nd = torch.cat([values[name] for values in null for name in values])  # both circuits are the same law
    lines = []
    for label, values_Nd in (("QK", spectra["qk"]), ("OV", spectra["ov"]), ("random heads", drawn_Nd)):
        share_Nd = (values_Nd / values_Nd.norm(dim=-1, keepdim=True).clamp_min(1e-300)).cpu().numpy()
        low, high = np.quantile(share_Nd, [0.1, 0.9], axis=0)
        lines.append(Curve(label=label, x=np.arange(1, share_Nd.shape[1] + 1), y=share_Nd.mean(0), low=low, high=high))
    return curves(
        lines,
        xlabel="index of the singular value",
        ylabel="singular value / Frobenius norm",
        title="spectra: mean over heads, 10th to 90th percentile",
        whole_x=True,
    )


def similarity_figure(
    similarity: Mapping[str, np.ndarray], null: Sequence[Mapping[str, np.ndarray]], heads: int
) -> Figure:
    """Cosines between heads in the order of the layers, one matrix a circuit, in the colours of `clusters_figure`."""
    matrices_CNN = np.stack(list(similarity.values()))
    names = [name.replace("qk", "QK").replace("ov", "OV") for name in similarity]
    reach = _reach(similarity, _closest(null))
    return similarity_grid(matrices_CNN, columns=names, reach=reach, boundaries=range(0, matrices_CNN.shape[1], heads))


def _closest(null: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """The cosine of the most alike two of as many random heads, on average over draws, by circuit."""
    return {name: float(np.mean([_between(draw[name]).max(initial=0) for draw in null])) for name in _TITLES}


def _reach(similarity: Mapping[str, np.ndarray], closest: Mapping[str, float]) -> float:
    """How far colours go: to the furthest pair, and twice as far as random heads at least: noise looks faint."""
    furthest = max(np.abs(_between(cosine_NN)).max(initial=1e-3) for cosine_NN in similarity.values())
    return float(max(furthest, *(2 * cosine for cosine in closest.values())))


def _between(cosine_NN: np.ndarray) -> np.ndarray:
    """The cosines of different heads; a circuit of zeros is like nothing."""
    return np.nan_to_num(cosine_NN)[~np.eye(len(cosine_NN), dtype=bool)]


def clusters_figure(
    similarity: Mapping[str, np.ndarray], null: Sequence[Mapping[str, np.ndarray]], heads: int
) -> Figure:
    """The heads by average linkage of 1 − cosine: the tree, and the cosines in its order, QK beside OV.

    The dashed line is where the most alike two of as many random heads join, on average over draws: joins below it are
    closer than chance brings any pair. Colours reach at least twice as far as that pair, so that noise looks faint.
    A circuit of zeros is like nothing (cosine 0). Labels are layer.head.
    """
    closest = _closest(null)
    panels = []
    for name, title in _TITLES.items():
        cosine_NN = np.where(np.eye(len(similarity[name]), dtype=bool), 1, np.nan_to_num(similarity[name]))
        order, place_J4, height_J4 = _tree(cosine_NN)
        panels.append(
            Tree(
                title=title,
                labels=[f"{n // heads}.{n % heads}" for n in order],
                cosine_NN=cosine_NN[np.ix_(order, order)],
                place_J4=place_J4,
                height_J4=height_J4,
                chance=1 - closest[name],
            )
        )
    reach = _reach({name: similarity[name] for name in _TITLES}, closest)
    return tree_grid(panels, reach=reach, title="Heads whose circuits are alike stand side by side (layer.head)")


def _tree(cosine_NN: np.ndarray) -> tuple[list[int], np.ndarray, np.ndarray]:
    """The heads in the order of the tree's leaves, and the corners of its joins: places and heights, [J, 4] each."""
    if len(cosine_NN) < 2:
        return list(range(len(cosine_NN))), np.empty((0, 4)), np.empty((0, 4))
    distance_NN = np.clip(1 - (cosine_NN + cosine_NN.T) / 2, 0, None)
    np.fill_diagonal(distance_NN, 0)
    tree = dendrogram(linkage(squareform(distance_NN, checks=False), "average"), no_plot=True)
    return [int(leaf) for leaf in tree["leaves"]], (np.array(tree["icoord"]) - 5) / 10, np.array(tree["dcoord"])


def readouts_figure(readouts: Mapping[str, pa.Table], by_chance: Mapping[str, float]) -> Figure:
    """The first singular direction of the heads that lean on it most, as the tokens furthest along it on each side.

    At most 16 heads a circuit. In brackets how far the first token lies, in standard deviations over the vocabulary;
    what random heads give stands above.
    """
    tables: dict[str, list[list[str]]] = {}
    for name, table in readouts.items():
        by_share = sorted(by_head(table).items(), key=lambda item: -next(iter(item[1].values()))["share"])
        rows = [["head", "share of σ²", *SIDES[name]]]
        for (layer, head), sides in by_share[:_MOST_HEADS]:
            share = next(iter(sides.values()))["share"]
            spelled = [_spelled(sides[side]) for side in SIDES[name]]
            rows.append([f"{layer}.{head}", f"{100 * share:.0f} %", *spelled])
        tables[f"{_TITLES[name]}: random heads reach {by_chance[name]:.1f} sd"] = rows
    return text_tables(tables, widths=(40, 75, 200, 200))


def _spelled(side: Mapping[str, Any]) -> str:
    """`(3.1) 12 7 40 …`: how far the first token lies, then the tokens; the figure cuts what has no room."""
    texts = [token.replace("\n", "\u21b5").replace(" ", "\u2423") or "\u2205" for token in side["texts"]]
    # Fonts for print lack the glyphs of most scripts; a code point says more than an empty box.
    texts = ["".join(c if _has_glyph(c) else f"U+{ord(c):04X}" for c in text) for text in texts]
    return f"({side['deviations'][0]:.1f})  {' '.join(texts)}"


def _has_glyph(character: str) -> bool:
    return character in "\u21b5\u2423\u2205" or (" " < character < "\u0530" and character.isprintable())
