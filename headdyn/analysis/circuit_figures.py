"""Pictures of circuits: spectra, similarity and its clusters, and the tokens that heads are about (science.md §8).

Letters as in circuits.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from headdyn.analysis.circuit_readouts import SIDES, by_head
from headdyn.core.figures import Curve, HeadMap, curves, head_map, similarity_grid
from headdyn.core.records import HeadTable

_TITLES = {"qk": "QK", "ov": "OV"}
_MOST_HEADS = 16  # rows of the readouts' figure
_MOST_LABELLED = 64  # heads whose names fit beside a matrix
_COLUMN_POINTS = 135.0  # of a readout's tokens; the column has 167, of which the number behind them takes 30
_GREY = "0.35"


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
    count = len(similarity["qk"])
    side = min(7.0, max(3.2, 0.17 * count))
    figure = Figure(figsize=(2 * side + 1.4, 1.35 * side + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, 2, height_ratios=(0.3, 1), squeeze=False)
    own_NN = np.eye(count, dtype=bool)
    closest = _closest(null)
    reach = _reach({name: similarity[name] for name in _TITLES}, closest)
    image = None
    for column, name in enumerate(_TITLES):
        cosine_NN = np.where(own_NN, 1, np.nan_to_num(similarity[name]))
        order = _tree(grid[0, column], cosine_NN, 1 - closest[name])
        shown_NN = np.where(own_NN, np.nan, cosine_NN)[np.ix_(order, order)]
        axes = grid[1, column]
        image = axes.imshow(shown_NN, cmap="PuOr_r", vmin=-reach, vmax=reach, interpolation="nearest", aspect="auto")
        names = [f"{n // heads}.{n % heads}" for n in order]
        size = 7 if count <= 32 else 5
        labelled = count <= _MOST_LABELLED
        axes.set_xticks(range(count) if labelled else [], names if labelled else [], fontsize=size, rotation=90)
        axes.set_yticks(range(count) if labelled else [], names if labelled else [], fontsize=size)
        axes.set_xlabel("layer.head" if labelled else f"{count} heads in the tree's order", fontsize=8)
        grid[0, column].set_title(f"{_TITLES[name]} (dashed: the closest random heads)", fontsize=9)
    assert image is not None
    bar = figure.colorbar(image, ax=grid[1, :].tolist(), shrink=0.8, pad=0.01)
    bar.set_label(f"cosine of circuits (colours reach ±{reach:.2g})", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _tree(axes: Axes, cosine_NN: np.ndarray, chance: float) -> list[int]:
    """Draw the tree; the heads in the order of its leaves."""
    axes.set_ylabel("1 − cosine", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    if len(cosine_NN) < 2:
        axes.set_axis_off()
        return list(range(len(cosine_NN)))
    distance_NN = np.clip(1 - (cosine_NN + cosine_NN.T) / 2, 0, None)
    np.fill_diagonal(distance_NN, 0)
    joins = linkage(squareform(distance_NN, checks=False), "average")
    tree = dendrogram(joins, ax=axes, no_labels=True, link_color_func=lambda _: _GREY)
    axes.axhline(chance, color="#D55E00", ls="--", lw=1)
    low, high = min(joins[:, 2].min(), chance), max(joins[:, 2].max(), chance)
    axes.set_ylim(max(0, low - 0.15 * (high - low + 0.01)), high + 0.05 * (high - low + 0.01))
    return [int(leaf) for leaf in tree["leaves"]]


def readouts_figure(readouts: Mapping[str, pa.Table], by_chance: Mapping[str, float]) -> Figure:
    """The first singular direction of the heads that lean on it most, as the tokens furthest along it on each side.

    At most 16 heads a circuit. In brackets how far the first token lies, in standard deviations over the vocabulary;
    what random heads give stands above.
    """
    tables = {name: by_head(table) for name, table in readouts.items()}
    rows = min(_MOST_HEADS, max(len(heads) for heads in tables.values()))
    figure = Figure(figsize=(13, 0.27 * rows + 1.0))
    FigureCanvasAgg(figure)
    for column, (name, heads) in enumerate(tables.items()):
        axes = figure.add_axes((0.01 + 0.5 * column, 0.02, 0.48, 0.96))
        axes.set_axis_off()
        axes.set_xlim(0, 1)
        axes.set_ylim(rows + 1.6, -0.6)
        axes.text(0, -0.3, f"{_TITLES[name]}: random heads reach {by_chance[name]:.1f} sd", fontsize=9, weight="bold")
        for x, title in zip((0, 0.1, 0.22, 0.62), ("head", "share of σ²", *SIDES[name]), strict=True):
            axes.text(x, 0.8, title, fontsize=8, color=_GREY)
        axes.axhline(1.05, color=_GREY, lw=0.6)
        ranked = sorted(heads.items(), key=lambda item: -next(iter(item[1].values()))["share"])[:_MOST_HEADS]
        for row, ((layer, head), sides) in enumerate(ranked):
            share = next(iter(sides.values()))["share"]
            axes.text(0, row + 1.8, f"{layer}.{head}", fontsize=8)
            axes.text(0.1, row + 1.8, f"{100 * share:.0f} %", fontsize=8)
            for x, side in zip((0.22, 0.62), SIDES[name], strict=True):
                axes.text(x, row + 1.8, _spelled(sides[side]), fontsize=8)
    return figure


def _spelled(side: Mapping[str, Any]) -> str:
    """`12 7 40 … (3.1)`: as many tokens as fit into the column, then how far the first one lies."""
    shown: list[str] = []
    left = _COLUMN_POINTS
    for token in side["texts"]:
        text = token.replace("\n", "\u21b5").replace(" ", "\u2423").replace("$", r"\$") or "\u2205"
        # The figures' font has no glyphs of most scripts; a code point says more than an empty box.
        text = "".join(c if _has_glyph(c) else f"U+{ord(c):04X}" for c in text)
        if not shown:
            while _points(text) > left:
                text = text[:-1]
        left -= _points(text) + _points(" ")
        if left < 0 and shown:
            break
        shown.append(text)
    return f"{' '.join(shown)}  ({side['deviations'][0]:.1f})"


def _has_glyph(character: str) -> bool:
    return character in "\u21b5\u2423\u2205" or (" " < character < "\u0530" and character.isprintable())


@lru_cache(maxsize=4096)
def _points(text: str) -> float:
    """How wide a text is in the size of the readouts, in points."""
    return float(text_to_path.get_text_width_height_descent(text, FontProperties(size=8), False)[0])
