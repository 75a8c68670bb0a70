"""Topics of documents: mini-batch k-means on their embeddings, and how far to believe the clusters (science.md §0).

Letters: D documents, E embedding width, S topics, G given topics, R draws of a null.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import random_table
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import silhouette_score
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from headdyn.core.randomness import generator
from headdyn.core.statistics import draws_test
from headdyn.data.text.embedding import fit_terms

SILHOUETTE_DOCUMENTS = 2000
_NULL_DRAWS, _STABILITY_SEEDS, _PERMUTATIONS = 39, 5, 999
_TOP_TERMS = 10
_BATCH = 4096
_ROWS_AT_ONCE = 1 << 15


def cluster(sample_DE: np.ndarray, num_topics: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """k-means fitted to a sample, the best start of ten: centres [S, E], largest cluster first, and labels [D] uint8.

    Raises ValueError where the sample has fewer distinct points than topics.
    """
    state = int(rng.integers(2**31))
    if len(sample_DE) > _BATCH:
        means = MiniBatchKMeans(num_topics, n_init=10, batch_size=_BATCH, random_state=state)
    else:  # a batch would hold all points; Lloyd's steps then leave no cluster empty
        means = KMeans(num_topics, n_init=10, random_state=state)
    # One thread: a batch is a millisecond's work, and sums split among more depend on how many there are.
    with threadpool_limits(1), warnings.catch_warnings(action="ignore"):
        sizes_S = np.bincount(means.fit_predict(sample_DE), minlength=num_topics)
    if not sizes_S.all():  # scikit-learn only warns
        raise ValueError(
            f"data.num_topics={num_topics}, but {len(sample_DE)} documents fall into {np.count_nonzero(sizes_S)} "
            "distinct clusters at most; lower data.num_topics"
        )
    order_S = np.argsort(-sizes_S, kind="stable")
    return means.cluster_centers_[order_S], np.argsort(order_S).astype(np.uint8)[means.labels_]


def assign(centres_SE: np.ndarray, file: Path, count: int) -> np.ndarray:
    """The nearest centre [D] uint8 of every embedding in `file`, read some rows at a time."""
    topics_D = np.empty(count, np.uint8)
    for first in range(0, count, _ROWS_AT_ONCE):
        rows_DE = read_rows(file, centres_SE.shape[1], first, min(_ROWS_AT_ONCE, count - first))
        distance_DS = (centres_SE**2).sum(1) - 2 * rows_DE @ centres_SE.T
        topics_D[first : first + len(rows_DE)] = distance_DS.argmin(1)
    return topics_D


def read_rows(file: Path, width: int, first: int, count: int) -> np.ndarray:
    """Embeddings [at most `count`, E], read and not mapped: mapped pages would count as this process's memory."""
    return np.fromfile(file, np.float32, count * width, offset=4 * first * width).reshape(-1, width)


def quality(sample_DE: np.ndarray, topics_D: np.ndarray, num_topics: int, seed: int) -> Mapping[str, Any]:
    """Silhouette with its null, and stability over seeds, on the sample that the clusters were fitted to.

    The null clusters structureless points the same way: as many draws from the Gaussian with the embeddings' mean and
    covariance, brought to unit length. Stability is the adjusted Rand index between clusterings from different seeds.
    """
    rng = generator(seed, "text/cluster quality")
    again = [cluster(sample_DE, num_topics, rng)[1] for _ in range(_STABILITY_SEEDS)]
    pairs = [adjusted_rand(_table(a, b)) for a, b in itertools.combinations(again, 2)]
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
            "silhouette_absent": f"{len(sample_DE)} documents in {num_topics} clusters leave none to compare"
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
    """Mean silhouette of the first points, or None where it is undefined: one cluster only, or as many as points."""
    points_DE, topics_D = points_DE[:SILHOUETTE_DOCUMENTS], topics_D[:SILHOUETTE_DOCUMENTS]
    defined = 2 <= len(np.unique(topics_D)) < len(topics_D)
    return float(silhouette_score(points_DE, topics_D)) if defined else None


def agreement(topics_D: np.ndarray, given_D: np.ndarray, seed: int) -> Mapping[str, Any]:
    """Adjusted Rand index between clusters and given topics, with its permutation null.

    Which document carries which given topic is permuted. Only the table of counts matters, so tables with its margins
    are drawn in place of permutations; that is the same law.
    """
    table_SG = _table(topics_D, given_D)
    observed = adjusted_rand(table_SG)
    rng = generator(seed, "text/agreement null")
    margins = table_SG.sum(1), table_SG.sum(0)
    tables = random_table(*margins).rvs(_PERMUTATIONS, random_state=rng)
    null_R = np.array([adjusted_rand(table) for table in tables])
    return {
        "given_adjusted_rand": observed,
        "given_adjusted_rand_null": float(null_R.mean()),
        "given_adjusted_rand_null_p95": float(np.quantile(null_R, 0.95)),
        "given_adjusted_rand_null_most": float(null_R.max()),
        "given_adjusted_rand_p": float(draws_test(np.array(observed), null_R, alternative="greater")),
        "given_topics": table_SG.shape[1],
        "given_documents": len(topics_D),
    }


def _table(a_D: np.ndarray, b_D: np.ndarray) -> np.ndarray:
    """How many documents go with each pair of labels [labels of a, labels of b], of the labels that occur."""
    a_labels, a_D = np.unique(a_D, return_inverse=True)
    b_labels, b_D = np.unique(b_D, return_inverse=True)
    counts = np.bincount(a_D * len(b_labels) + b_D, minlength=len(a_labels) * len(b_labels))
    return counts.reshape(len(a_labels), len(b_labels))


def adjusted_rand(table_SG: np.ndarray) -> float:
    """Adjusted Rand index (Hubert & Arabie 1985) of two labellings from their table of counts.

    1 where both put every document under one label, or each under its own.
    """
    table_SG = table_SG.astype(np.float64)

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1) / 2).sum())

    together, rows, columns = pairs(table_SG), pairs(table_SG.sum(1)), pairs(table_SG.sum(0))
    every = pairs(table_SG.sum(keepdims=True))
    expected, most = rows * columns / every, (rows + columns) / 2
    return 1.0 if most == expected else (together - expected) / (most - expected)


def top_terms(texts: Sequence[str], topics_D: np.ndarray, num_topics: int) -> list[list[str]]:
    """Every topic's ten terms whose mean TF-IDF weight in it most exceeds that in all documents; none for no document.

    Whatever embedding made the topics, the terms are those of `embedding.fit_terms`.
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
