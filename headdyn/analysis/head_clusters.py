"""Do the heads of a layer fall into groups, by their weights or by what they do, more than chance would give?

Weight and behaviour clusters, science.md §12.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar

from pydantic import Field

from headdyn.analysis.clusters import CIRCUITS, KINDS
from headdyn.analysis.contract import measured_in
from headdyn.analysis.interventions.patch import Dtype, Layer
from headdyn.analysis.metrics import BootstrapDraws, nats, share
from headdyn.core.records import Metric
from headdyn.core.settings import settings

Clusters = Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)]
rand = partial(Metric, low=-1, high=1, digits=2)  # adjusted Rand index
NO_PROMPTS = "effects on answers need prompts; use data=comparisons"

_LABELS = {"qk": "QK circuits", "ov": "OV circuits", "behaviour": "effects of heads"}
_MEASURES: Mapping[str, tuple[str, str, dict[str, Any]]] = {  # label, meaning, other fields
    "silhouette": ("two-cluster silhouette", "mean silhouette of k-means with k = 2", {"low": -1, "high": 1}),
    "best_silhouette": (
        "silhouette",
        "best silhouette of all clusterings, outliers apart",
        {"low": -1, "high": 1, "unit": "best of all clusterings", "outcome": True},
    ),
    "centre_distance": ("distance of centres", "distance between the two k-means centres", {"low": 0}),
    "within_variance": ("spread in clusters", "mean squared distance of heads to their k-means centre", {"low": 0}),
    "separation": ("separation", "centre_distance over the root of within_variance", {"low": 0}),
    "wasserstein": (
        "transport between clusters",
        "earth mover's distance between the two k-means clusters",
        {"low": 0},
    ),
    "smallest_cluster": (
        "smaller cluster",
        "heads in the smaller of two k-means clusters; 1 is an outlier",
        {"low": 1, "unit": "heads", "digits": 0},
    ),
    "first_component": (
        "variance on one axis",
        "share of variance on the first principal component",
        {"low": 0, "high": 1, "unit": "%", "scale": 100, "digits": 1, "difference_unit": "points"},
    ),
}


def _metrics() -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    for kind, words in KINDS.items():
        for name, (label, meaning, bounds) in _MEASURES.items():
            in_nats = kind == "behaviour" and name in ("centre_distance", "wasserstein")
            metrics[f"{kind}_{name}"] = Metric(
                label=f"{label}, {_LABELS[kind]}",
                meaning=f"{meaning}; {words}",
                **bounds | ({"unit": "nats"} if in_nats else {}),
            )
        metrics[f"{kind}_parity_rand"] = rand(
            label=f"agreement with even/odd, {_LABELS[kind]}",
            meaning=f"adjusted Rand index of k-means with k = 2 and even/odd; {words}",
        )
        metrics[f"{kind}_alone"] = share(
            f"outlier, {_LABELS[kind]}", f"share of clusterings in which this head is an outlier; {words}"
        )
    for kind in CIRCUITS:
        words = f"k-means with k = 2 on {KINDS[kind]} and on effects"
        metrics[f"{kind}_behaviour_rand"] = rand(
            label=f"agreement of {_LABELS[kind]} with effects", meaning=f"adjusted Rand index of {words}"
        )
        metrics[f"{kind}_behaviour_information"] = nats(
            f"information of {_LABELS[kind]} on effects", f"mutual information of {words}", low=0
        )
    metrics["effect_nats"] = nats("effect of mean-ablation", "change of mean Δ under mean-ablation of this head")
    metrics["prediction_accuracy"] = share(
        "clusterings that tell repairing heads",
        "share of weight clusterings with no cluster that holds heads which repair and heads which do not",
        outcome=True,
    )
    return metrics


@settings
class HeadClusters:
    """Clusters every layer's heads by QK and OV circuits (cosines free of gauge) and by their effects on the answers.

    k-means, Ward and DBSCAN (radii as shares of the median distance), against `null_draws` layers of random heads put
    through the same steps. A head's effects are the changes of Δ over all pairs when its z is replaced by the mean over
    prompts. Random circuits have the model's shape and the gains of the layer's norm: a small p says that heads do not
    point in random directions, which is true of nearly all trained heads. Random effects are the heads' own, mixed by
    random rotations that keep their mean and covariance over pairs: a profile or an axis that all heads share gives no
    small p, only groups of heads do. Whether groups are substantial is seen from the silhouette (below 0.25 there is no
    structure, Kaufman and Rousseeuw 1990), and whether heads lie along one axis from `first_component`.

    A head alone in its cluster is an outlier. Heads are the unit, so layers' rows carry no interval; q-values run over
    the layers' rows and, separately, over the heads' rows. Heads that repair are those whose clean z, patched alone at
    `layer`, raises Δ on bug pairs with q < 0.05. The model's rows are those of `layer`.

    Given a corpus in place of prompts, heads are clustered by weights alone. Tables: `clusterings`, `coordinates`
    (principal components), `distances` (for clusters/divergence.py), `effect_profiles` (by pair, for head_profiles.py).
    Raises ValueError for a layer out of range, fewer than 4 heads a layer, or prompts without bug pairs.
    """

    layer: Layer = None
    dtype: Dtype = "float32"
    kmeans_k: Clusters = (2, 3, 4, 5)
    ward_k: Clusters = (2, 3, 4)
    dbscan_eps: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.7, 0.9)
    restarts: Annotated[int, Field(ge=1)] = 10
    null_draws: Annotated[int, Field(ge=200)] = 999
    relabellings: Annotated[int, Field(ge=999)] = 9_999
    sign_flips: Annotated[int, Field(ge=999)] = 9_999
    bootstrap_draws: BootstrapDraws = 2_000

    needs: ClassVar[frozenset[str]] = frozenset()
    metrics: ClassVar[Mapping[str, Metric]] = _metrics()

    def __post_init__(self) -> None:
        if 2 not in self.kmeans_k:
            raise ValueError(f"analysis.head_clusters.kmeans_k={self.kmeans_k} must hold 2: most metrics need k = 2")
        for name in ("kmeans_k", "ward_k", "dbscan_eps"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"analysis.head_clusters.{name}={getattr(self, name)} holds a value twice")

    __call__ = measured_in("headdyn.analysis.clusters.measure")
