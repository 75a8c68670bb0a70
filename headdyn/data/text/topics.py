"""Topics of documents: k-means on their embeddings, and how reliable the clusters are.

Letters: D documents, E embedding width, S topics, G given topics, R draws of a null.
"""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import random_table
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import silhouette_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from headdyn.core.randomness import generator
from headdyn.core.statistics import adjusted_rand, draws_test
from headdyn.data.text.embedding import fit_terms

SILHOUETTE_DOCUMENTS = 2000
_NULL_DRAWS, _STABILITY_SEEDS, _PERMUTATIONS = 39, 5, 999
_TOP_TERMS = 10
_BATCH = 4096
_ROWS_AT_ONCE = 1 << 15


def cluster(sample_DE: np.ndarray, num_topics: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """k-means on a sample, the best of ten starts: centres [S, E], largest cluster first, and labels [D] uint8.

    Raises ValueError where the sample has fewer distinct points than topics.
    """
    state = int(rng.integers(2**31))
    if len(sample_DE) > _BATCH:
        means = MiniBatchKMeans(num_topics, n_init=10, batch_size=_BATCH, random_state=state)
    else:  # a batch would hold all points; full k-means then leaves no cluster empty
        means = KMeans(num_topics, n_init=10, random_state=state)
    # One thread: a batch is a millisecond's work, and sums split among threads would depend on their number.
    with threadpool_limits(1), warnings.catch_warnings(action="ignore"):
        sizes_S = np.bincount(means.fit_predict(sample_DE), minlength=num_topics)
    if not sizes_S.all():  # of which scikit-learn only warns
        raise ValueError(
            f"data.num_topics={num_topics}, but {len(sample_DE)} documents fall into {np.count_nonzero(sizes_S)} "
            "distinct clusters at most; lower data.num_topics"
        )
    order_S = np.argsort(-sizes_S, kind="stable")
    return means.cluster_centers_[order_S], np.argsort(order_S).astype(np.uint8)[means.labels_]


def assign(centres_SE: np.ndarray, file: Path, count: int) -> np.ndarray:
    """The nearest centre [D] uint8 of every embedding in `file`, read some rows at a time."""
    topics_D, width = np.empty(count, np.uint8), centres_SE.shape[1]
    for first in range(0, count, _ROWS_AT_ONCE):
        # Read and not mapped, since mapped pages would count as this process's memory.
        rows_DE = np.fromfile(file, np.float32, _ROWS_AT_ONCE * width, offset=4 * first * width).reshape(-1, width)
        distance_DS = (centres_SE**2).sum(1) - 2 * rows_DE @ centres_SE.T
        topics_D[first : first + len(rows_DE)] = distance_DS.argmin(1)
    return topics_D


def quality(sample_DE: np.ndarray, topics_D: np.ndarray, num_topics: int, seed: int) -> Mapping[str, Any]:
    """Silhouette with its null, and stability over seeds, on the sample that the clusters were fitted to.

    For the null, points without structure are clustered in the same way: as many draws from the Gaussian with the
    embeddings' mean and covariance, scaled to unit length. Stability is the adjusted Rand index between clusterings
    from different seeds.
    """
    rng = generator(seed, "text/cluster quality")
    repeats = [cluster(sample_DE, num_topics, rng)[1] for _ in range(_STABILITY_SEEDS)]
    pairs = [adjusted_rand(contingency_matrix(a, b)) for a, b in itertools.combinations(repeats, 2)]
    facts: dict[str, Any] = {
        "stability_adjusted_rand": float(np.mean(pairs)),
        "stability_adjusted_rand_least": float(np.min(pairs)),
        "stability_adjusted_rand_most": float(np.max(pairs)),
        "stability_seeds": _STABILITY_SEEDS,
    }
    observed = _silhouette(sample_DE, topics_D)
    variance_E, axes_EE = np.linalg.eigh(np.cov(sample_DE, rowvar=False))
    root_EE = (np.sqrt(np.maximum(variance_E, 0)) * axes_EE).T.astype(np.float32)
    null: list[float | None] = []
    for _ in range(_NULL_DRAWS):
        normal_DE = rng.standard_normal(sample_DE.shape, dtype=np.float32)
        points_DE = normalize(sample_DE.mean(0) + normal_DE @ root_EE)
        null.append(_silhouette(points_DE, cluster(points_DE, num_topics, rng)[1]))
    if observed is None or None in null:
        return facts | {
            "silhouette_absent": f"{len(sample_DE)} documents in {num_topics} clusters leave nothing to compare"
        }
    null_R = np.array(null, float)
    return facts | {
        "silhouette": observed,
        "silhouette_null": float(null_R.mean()),
        "silhouette_null_p95": float(np.quantile(null_R, 0.95)),
        "silhouette_p": float(draws_test(np.array(observed), null_R, alternative="greater")),
        "silhouette_documents": min(len(sample_DE), SILHOUETTE_DOCUMENTS),
    }


def _silhouette(points_DE: np.ndarray, topics_D: np.ndarray) -> float | None:
    """Mean silhouette of the first points; None where it is undefined: one cluster, or clusters of one point each."""
    points_DE, topics_D = points_DE[:SILHOUETTE_DOCUMENTS], topics_D[:SILHOUETTE_DOCUMENTS]
    defined = 2 <= len(np.unique(topics_D)) < len(topics_D)
    return float(silhouette_score(points_DE, topics_D)) if defined else None


def agreement(topics_D: np.ndarray, given_D: np.ndarray, seed: int) -> Mapping[str, Any]:
    """Adjusted Rand index between clusters and given topics, with its permutation null.

    The null permutes the given topics over the documents. The index depends on the table of counts alone, so tables
    with the same margins are drawn in place of permutations; their law is the same.
    """
    table_SG = contingency_matrix(topics_D, given_D)
    observed = float(adjusted_rand(table_SG))
    law, rng = random_table(table_SG.sum(1), table_SG.sum(0)), generator(seed, "text/agreement null")
    null_R = adjusted_rand(law.rvs(_PERMUTATIONS, random_state=rng))
    return {
        "given_adjusted_rand": observed,
        "given_adjusted_rand_null": float(null_R.mean()),
        "given_adjusted_rand_null_p95": float(np.quantile(null_R, 0.95)),
        "given_adjusted_rand_null_most": float(null_R.max()),
        "given_adjusted_rand_p": float(draws_test(np.array(observed), null_R, alternative="greater")),
        "given_topics": table_SG.shape[1],
        "given_documents": len(topics_D),
    }


def top_terms(texts: Sequence[str], topics_D: np.ndarray, num_topics: int) -> list[list[str]]:
    """The ten terms of every topic whose mean TF-IDF weight in it most exceeds that in all documents.

    A topic without documents has none. The terms are those of `embedding.fit_terms`, whatever the embedding.
    """
    vectorizer, weights = fit_terms(list(texts))
    names = vectorizer.get_feature_names_out()
    overall = np.asarray(weights.mean(0)).ravel()
    terms = []
    for topic in range(num_topics):
        chosen = np.flatnonzero(topics_D == topic)
        above = np.asarray(weights[chosen].mean(0)).ravel() - overall if len(chosen) else np.zeros(0)
        best = np.argsort(-above, kind="stable")[:_TOP_TERMS]
        terms.append([str(names[term]) for term in best if above[term] > 0])
    return terms
