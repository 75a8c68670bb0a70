"""Do the heads of a layer fall into groups, by their weights or by what they do, and is that more than chance gives?

Weight and behaviour clusters, science.md §12. Letters as in models/decoder.py; P pairs, R random draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow.compute as pc
import torch

from headdyn.analysis.clusters import seed_clusters
from headdyn.analysis.clusters.figures import assignment_figure, point_figure, silhouette_figure
from headdyn.analysis.clusters.geometry import (
    CIRCUITS,
    behind_gains,
    circuit_cosines,
    random_circuit_cosines,
    random_directions,
)
from headdyn.analysis.clusters.rows import (
    KINDS,
    accuracy_row,
    agreement_rows,
    cluster_metrics,
    effect_rows,
    kind_rows,
    without_prompts,
)
from headdyn.analysis.clusters.seed_weights import SEED_EPS
from headdyn.analysis.clusters.suite import Clouds, Recipe
from headdyn.analysis.clusters.tables import clustering_table, coordinate_table, distance_table
from headdyn.analysis.contract import chosen_layer
from headdyn.analysis.interventions.pair_rows import PairRows
from headdyn.analysis.interventions.patching import Patch, PromptPatching, in_dtype
from headdyn.core.records import Findings, HeadTable, Metric
from headdyn.core.statistics import benjamini_hochberg
from headdyn.data.comparisons import Prompts
from headdyn.data.corpus import Corpus
from headdyn.models.decoder import Decoder

ABLATE = Patch(source="mean", steps="every_position")


@dataclass(frozen=True, kw_only=True)
class HeadClusters:
    """Clusters every layer's heads by QK and OV circuits (cosines free of gauge) and by their effects on the answers.

    k-means, Ward and DBSCAN (radii as shares of the median distance), against `null_draws` layers of random heads put
    through the same steps: for circuits of the model's shape behind the layer's norm, for effects of the same norms. A
    head's effects are the changes of Δ over all pairs when its z is replaced by the mean over prompts. A small p says
    that heads point in no random directions, as trained ones hardly do; whether they form groups is told by the height
    of the silhouette (below 0.25 is no substantial structure, Kaufman and Rousseeuw 1990), whether along one axis by
    `first_component`. A head alone in its cluster is an outlier. Heads are the unit, so layers' rows carry no interval;
    q-values run over the layers' rows and over the heads'. Heads that repair are those whose clean z, patched alone at
    `layer` (default: ⌊L/2⌋), raises Δ on bug pairs with q < 0.05. The model's rows are those of `layer`.
    `protocol="seed"` adds the studies' clusters there (see clusters/seed_weights.py).

    Given a corpus in place of prompts, weights alone are clustered. Tables: `clusterings`, `coordinates` (principal
    components), `distances` (for clusters/divergence.py).
    Raises ValueError for a layer out of range, fewer than 4 heads a layer, or prompts without bug pairs.
    """

    layer: int | None = None
    dtype: str = "float32"
    kmeans_k: tuple[int, ...] = (2, 3, 4, 5)
    ward_k: tuple[int, ...] = (2, 3, 4)
    dbscan_eps: tuple[float, ...] = (0.5, 0.7, 0.9)
    restarts: int = 10
    null_draws: int = 999
    relabellings: int = 9_999
    sign_flips: int = 9_999
    bootstrap_draws: int = 2_000
    protocol: str = "corrected"

    rows: ClassVar[Literal["head"]] = "head"
    needs: ClassVar[frozenset[str]] = frozenset()
    metrics: ClassVar[Mapping[str, Metric]] = {**cluster_metrics(), **seed_clusters.METRICS}

    def __post_init__(self) -> None:
        for name, known in (
            ("dtype", ("float64", "float32", "bfloat16", "float16")),
            ("protocol", ("corrected", "seed")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"analysis.head_clusters.{name}={getattr(self, name)!r} is unknown; choose one of "
                    f"{', '.join(known)}"
                )
        least = {"restarts": 1, "null_draws": 200, "relabellings": 999, "sign_flips": 999, "bootstrap_draws": 100}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"analysis.head_clusters.{name}={getattr(self, name)} must be at least {low}")
        if 2 not in self.kmeans_k:
            raise ValueError(f"analysis.head_clusters.kmeans_k={self.kmeans_k} must hold 2, which most metrics are of")
        for name in ("kmeans_k", "ward_k"):
            if any(k < 2 for k in getattr(self, name)):
                raise ValueError(f"analysis.head_clusters.{name}={getattr(self, name)} must be 2 clusters or more")
        if any(not 0 < eps < 1 for eps in self.dbscan_eps):
            raise ValueError(
                f"analysis.head_clusters.dbscan_eps={self.dbscan_eps} are shares of the median distance: give numbers "
                "between 0 and 1"
            )
        for name in ("kmeans_k", "ward_k", "dbscan_eps"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"analysis.head_clusters.{name}={getattr(self, name)} holds a value twice")

    def __call__(self, decoder: Decoder, corpus: Prompts | Corpus, generator: np.random.Generator) -> Findings:
        """Head, layer and model rows as `metrics` names them, three tables, three figures."""
        c = decoder.config
        layer = chosen_layer(self.layer, c.num_layers)
        if c.num_heads < 4:
            raise ValueError(f"{c.num_heads} heads a layer cannot form clusters; this analysis needs 4 or more")
        kinds = self._circuits(decoder, generator)
        tables, repairs_H = [], None
        if isinstance(corpus, Prompts):
            model = in_dtype(decoder, getattr(torch, self.dtype))
            make = PairRows(generator=generator, bootstrap_draws=self.bootstrap_draws, sign_flips=self.sign_flips)
            effect_LHP = _effects(model, corpus, ABLATE, range(c.num_layers))
            kinds["behaviour"] = self._behaviour(effect_LHP, generator)
            repairs_H = _repairs(model, corpus, layer, make)
            tables += [effect_rows(make, effect_LHP), agreement_rows(kinds, self.relabellings, generator)]
        else:
            tables.append(without_prompts(c.num_layers, c.num_heads))
        tables += [kind_rows(kind, clouds, self.relabellings, generator) for kind, clouds in kinds.items()]
        table = HeadTable.concat(tables)
        # Two families: whether layers fall into groups, and what single heads do.
        heads = HeadTable(table.table.filter(pc.is_valid(table.table["head"]))).with_q()
        table = table.where(head=None).with_q()
        rows = [row | {"layer": None} for row in table.where(layer=layer).rows()]
        rows.append(accuracy_row(kinds, repairs_H, layer, self.relabellings, generator))
        pieces = None
        if self.protocol == "seed":
            recipe = self._recipe(SEED_EPS, relative_eps=False)
            pieces = seed_clusters.seed_clusters(decoder, layer, recipe, self.null_draws, self.relabellings, generator)
            rows += pieces.rows
        suites = {kind: clouds.suite for kind, clouds in kinds.items()}
        return Findings(
            table=HeadTable.concat([heads, table, HeadTable.from_rows(rows)]),
            figures={
                "silhouettes": silhouette_figure(kinds, table, KINDS),
                "assignments": assignment_figure(suites, pieces, layer, repairs_H),
                "points": point_figure(suites, pieces, layer, seed=int(generator.integers(2**31))),
            },
            tables={
                "clusterings": clustering_table(kinds, pieces, layer, repairs_H),
                "coordinates": coordinate_table(suites),
                "distances": distance_table(suites),
            },
        )

    def _recipe(self, eps: tuple[float, ...], relative_eps: bool = True) -> Recipe:
        return Recipe(
            kmeans_k=self.kmeans_k, ward_k=self.ward_k, eps=eps, restarts=self.restarts, relative_eps=relative_eps
        )

    def _circuits(self, decoder: Decoder, generator: np.random.Generator) -> dict[str, Clouds]:
        recipe, layers = self._recipe(self.dbscan_eps), range(decoder.config.num_layers)
        random_RHH = random_circuit_cosines(decoder, self.null_draws, generator)
        own = [circuit_cosines(decoder, layer) for layer in layers]
        random = [behind_gains(random_RHH, decoder, layer) for layer in layers]
        return {
            kind: Clouds(
                suite=recipe(np.stack([cosines[kind] for cosines in own]), generator),
                nulls=[recipe(cosines[kind], generator) for cosines in random],
                exchangeable=True,
            )
            for kind in CIRCUITS
        }

    def _behaviour(self, effect_LHP: np.ndarray, generator: np.random.Generator) -> Clouds:
        recipe, pairs = self._recipe(self.dbscan_eps), effect_LHP.shape[-1]
        gram_LHH = effect_LHP @ effect_LHP.swapaxes(-1, -2) / pairs  # distances: root mean square over pairs, in nats
        norm_LH = np.sqrt(np.diagonal(gram_LHH, axis1=-2, axis2=-1))
        nulls = [recipe(random_directions(norm_H, pairs, self.null_draws, generator), generator) for norm_H in norm_LH]
        return Clouds(suite=recipe(gram_LHH, generator), nulls=nulls, exchangeable=False)


def _effects(model: Decoder, prompts: Prompts, patch: Patch, layers: Sequence[int]) -> np.ndarray:
    """Change of Δ in nats when each head alone is patched, [L, H, P]."""
    patching = PromptPatching(model, prompts, patch, layers)
    deltas = patching.deltas(dict.fromkeys(layers, np.eye(model.config.num_heads)))
    return np.stack([deltas[layer] for layer in layers]) - patching.target_P


def _repairs(model: Decoder, prompts: Prompts, layer: int, make: PairRows) -> np.ndarray:
    """Which heads of the layer repair the answer when patched alone, [H]."""
    bugs = prompts.where(prompts.is_bug_P)
    if not bugs.pairs:
        raise ValueError("the prompts hold no bug pairs, on which repair is measured; set data.bug_pairs")
    rows = make.effects("repair", _effects(model, bugs, Patch(), [layer])[0].T)
    value_H, p_H = (np.array([row[column] for row in rows]) for column in ("value", "p"))
    return (benjamini_hochberg(p_H) < 0.05) & (value_H > 0)
