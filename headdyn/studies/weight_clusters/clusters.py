"""The study's weight clusters of one layer, with the nulls they lacked (science.md §12).

The pieces are those of pieces.py, which says why none of this is evidence about heads. Rows describe the model, at the
one layer that is analysed; their unit is a piece.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from headdyn.analysis.head_clusters import Clusters, rand
from headdyn.analysis.interventions.patch import Layer, chosen_layer
from headdyn.analysis.metrics import share
from headdyn.core.records import Findings, HeadTable, Metric
from headdyn.core.settings import settings

if TYPE_CHECKING:
    from headdyn.data.corpus import Corpus
    from headdyn.data.prompts import Prompts
    from headdyn.models.decoder import Decoder

PARTS = ("query", "key", "value")
Row = dict[str, Any]

_MEASURES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "silhouette": ("mean silhouette of k-means with k = 2 on", {"low": -1, "high": 1}),
    "centre_distance": ("distance between the two k-means centres of", {"low": 0}),
    "within_variance": ("variance of an entry within a k-means cluster of", {"low": 0}),
    "separation": ("the study's ratio, centre_distance over within_variance, of", {"low": 0}),
    "smallest_cluster": ("pieces in the smaller of two k-means clusters of", {"low": 1, "digits": 0}),
    "first_component": ("share of variance on the first principal component of", {"low": 0, "high": 1}),
    "wasserstein": ("W₁ between the entries of the two k-means clusters of", {"low": 0}),
    "even_odd_rand": ("adjusted Rand index of k-means with k = 2 and even/odd, on", rand.keywords),
}
_OF_SPLITS = ("wasserstein", "even_odd_rand")


@settings
class OriginalClusters:
    """Clusters the misread, flattened weights of one layer as the study did, against random pieces of the same norms.

    The p of a measure is over `null_draws` sets of random pieces, that of an agreement over `relabellings`. Table:
    `original_clusterings`. Rows are absent, with a reason, for a model with grouped keys and values.
    """

    layer: Layer = None
    kmeans_k: Clusters = (2, 3, 4, 5)
    ward_k: Clusters = (2, 3, 4)
    eps: tuple[Annotated[float, Field(gt=0)], ...] = (0.5, 1.0, 1.5, 2.0)  # DBSCAN's radii, in units of the weights
    restarts: Annotated[int, Field(ge=1)] = 10
    null_draws: Annotated[int, Field(ge=200)] = 999
    relabellings: Annotated[int, Field(ge=999)] = 9_999

    needs: ClassVar[frozenset[str]] = frozenset()
    metrics: ClassVar[Mapping[str, Metric]] = {
        **{
            f"original_{part}_{name}": Metric(
                label=f"{name.replace('_', ' ')} of the study's {part} pieces",
                meaning=f"{words} the study's flattened {part} pieces",
                **bounds,
            )
            for part in PARTS
            for name, (words, bounds) in _MEASURES.items()
        },
        "original_prediction_accuracy": share(
            label="the study's clusterings that are even/odd",
            meaning="share of the study's three k = 2 clusterings that are even against odd",
        ),
    }

    def __call__(self, decoder: Decoder, corpus: Prompts | Corpus, generator: np.random.Generator) -> Findings:
        from headdyn.analysis.clusters.all_clusterings import Clouds, Recipe, against_null, agreement
        from headdyn.analysis.clusters.figures import assignment_figure, point_figure
        from headdyn.analysis.clusters.geometry import random_directions
        from headdyn.analysis.clusters.tables import clustering_table
        from headdyn.studies.weight_clusters.pieces import entry_test, misread, no_pieces, original_spread, packed

        layer, heads = chosen_layer(self.layer, decoder.config.num_layers), decoder.config.num_heads
        if reason := no_pieces(decoder):
            return Findings(table=HeadTable.from_rows({"metric": m, "reason": reason} for m in self.metrics))
        recipe = Recipe(
            kmeans_k=self.kmeans_k, ward_k=self.ward_k, eps=self.eps, restarts=self.restarts, relative_eps=False
        )
        rows: list[Row] = []
        clouds, equal, chance = {}, [], []
        for part, pieces_HX in zip(PARTS, misread(packed(decoder, layer), heads).double(), strict=True):
            gram_HH = (pieces_HX @ pieces_HX.T).cpu().numpy()
            own, width = recipe(gram_HH[None], generator), pieces_HX.shape[1]
            random_RHH = random_directions(np.sqrt(np.diagonal(gram_HH)), width, self.null_draws, generator)
            null = recipe(random_RHH, generator)
            clouds[f"original_{part}"] = Clouds(own=own, nulls=[null])
            values, nulls = (s.quality() | original_spread(s.gram_RHH, s.split_RH, width) for s in (own, null))
            for name in (name for name in _MEASURES if name not in _OF_SPLITS):
                value, tested = values[name][0], name in ("silhouette", "first_component")
                rows.append(_row(part, name, value, *against_null(value, nulls[name], tested), heads))
            labels_H = own.split_RH[0]
            wasserstein, _ = entry_test(pieces_HX, labels_H, generator)
            match = agreement(labels_H, np.arange(heads) % 2, self.relabellings, generator)
            rows.append(_row(part, "wasserstein", *wasserstein, heads))
            rows.append(_row(part, "even_odd_rand", match.rand, 0.0, match.p_rand, heads))
            equal.append(match.rand == 1)
            size = int((labels_H == 0).sum())
            chance.append(2 / math.comb(heads, size) if 2 * size == heads else 0.0)
        accuracy = {"value": float(np.mean(equal)), "null": float(np.mean(chance)), "n": 3, "unit": "clustering"}
        rows.append({"metric": "original_prediction_accuracy", **accuracy})
        every = {name: cloud.own for name, cloud in clouds.items()}
        return Findings(
            table=HeadTable.from_rows(rows),
            figures={
                "assignments": assignment_figure(every, layer, 0),
                "points": point_figure(every, layer, 0, seed=int(generator.integers(2**31))),
            },
            tables={"original_clusterings": clustering_table(clouds, {}, first=layer)},
        )


def _row(part: str, name: str, value: float, null: float, p: float, heads: int) -> Row:
    row: Row = {"metric": f"original_{part}_{name}", "n": heads, "unit": "piece"}
    if not math.isfinite(value):
        return row | {"reason": "the pieces do not fall into two clusters"}
    row |= {"value": float(value)}
    return row | {key: float(number) for key, number in (("null", null), ("p", p)) if math.isfinite(number)}
