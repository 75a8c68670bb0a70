from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from headdyn.analysis import probes_measure as probes
from headdyn.analysis.probes import TopicProbes
from headdyn.analysis.sequences import Sequences
from headdyn.core.settings import build
from headdyn.data.corpus import Corpus, Split
from headdyn.models.decoder import Trace
from tests import small_models
from tests.analysis import tiny

LENGTH, TOPICS, VOCAB, WIDTH = 20, 3, 30, 12
SETTINGS = TopicProbes(
    fit_sequences=48, choose_sequences=16, test_sequences=48, tokens_per_sequence=16, bootstrap_draws=300
)


class StreamModel:
    """Answers `trace` with residual streams made from each sequence's topics, which it looks up by its tokens."""

    def __init__(self, split: Split, *places: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        self.topics = {
            row.astype(np.int64).tobytes(): topics for row, topics in zip(split.tokens_NT, split.topics_NT, strict=True)
        }
        self.places = places  # each (tokens_BT, topics_BT) -> resid_BTD; the first is the embedding
        self.config = SimpleNamespace(num_layers=len(places) - 1)
        self.embed = SimpleNamespace(weight=torch.zeros(1))

    def at(self, place: int, tokens_BT: torch.Tensor) -> torch.Tensor:
        tokens = tokens_BT.numpy()
        topics = np.stack([self.topics[row.tobytes()] for row in tokens])
        return torch.from_numpy(self.places[place](tokens, topics)).float()

    def embeddings(self, tokens_BT: torch.Tensor, offset: int) -> torch.Tensor:
        return self.at(0, tokens_BT)

    def trace(self, tokens_BT: torch.Tensor, *, start, sites, logits, documents_BT) -> Trace:
        return Trace(None, {("resid_post", i): self.at(i + 1, tokens_BT) for i in range(self.config.num_layers)})


def noise(tokens: np.ndarray, topics: np.ndarray) -> np.ndarray:
    seeds = [int(row.sum()) for row in tokens]
    return np.stack([np.random.default_rng(seed).normal(size=(tokens.shape[1], WIDTH)) for seed in seeds])


def topic(tokens: np.ndarray, topics: np.ndarray) -> np.ndarray:
    return 0.2 * noise(tokens, topics) + np.eye(WIDTH)[topics]


def weak(tokens: np.ndarray, topics: np.ndarray) -> np.ndarray:
    return noise(tokens, topics) + np.eye(WIDTH)[topics]


def token(tokens: np.ndarray, topics: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(VOCAB, 2 * VOCAB))[tokens]


class Exact:
    """An oracle that knows the topics but for one token in every ten."""

    def __init__(self, split: Split) -> None:
        self.model = StreamModel(split)

    def filter(self, tokens_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        posterior = np.stack([np.eye(TOPICS)[self.model.topics[row.astype(np.int64).tobytes()]] for row in tokens_NT])
        posterior[:, ::10] = np.roll(posterior[:, ::10], 1, axis=-1)
        return np.zeros(tokens_NT[:, 1:].shape), posterior


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    corpus = tiny.corpus(rows=128, length=LENGTH, count=TOPICS, vocab_size=VOCAB)
    return dataclasses.replace(corpus, oracle=Exact(corpus.val))


@pytest.fixture(scope="module")
def findings(corpus):
    return SETTINGS(StreamModel(corpus.val, noise, topic, weak, token), corpus, np.random.default_rng(0))


def layer(findings, metric: str, place: int) -> dict:
    return findings.table.where(metric=metric, layer=place).rows()[0]


def test_probes_find_topics_where_they_are_and_nowhere_else(findings):
    nothing, clear, faint, identity = (layer(findings, "probe_accuracy", place) for place in range(4))
    assert clear["value"] > 0.98 and clear["q"] < 0.001
    assert 0.5 < faint["value"] < 0.8 and faint["q"] < 0.001
    for absent in (nothing, identity):  # tokens are uniform, so identity tells nothing either
        assert abs(absent["value"] - absent["null"]) < 0.06
    for row in (nothing, clear, faint, identity):
        assert row["ci_low"] <= row["value"] <= row["ci_high"] and row["n"] == 48 and row["unit"] == "sequence"


def test_the_control_task_is_learnt_where_tokens_can_be_told_apart(findings):
    assert layer(findings, "probe_control_accuracy", 3)["value"] > 0.95
    assert layer(findings, "probe_control_accuracy", 1)["value"] < 0.6
    assert layer(findings, "probe_selectivity", 1)["value"] > 0.4 > 0 > layer(findings, "probe_selectivity", 3)["value"]


def test_the_middle_layer_is_half_way_down(findings):
    # Three layers: L // 2 = 1, the place behind layer 1; of the seed's eight, place 4.
    middle = findings.table.summary()["probe_accuracy_middle"]
    assert middle["value"] == layer(findings, "probe_accuracy", 1)["value"]
    assert middle["null"] == layer(findings, "probe_accuracy", 1)["null"]


def test_the_ceiling_is_the_oracles_accuracy_on_the_test_tokens(findings, corpus):
    assert findings.table.summary()["probe_ceiling"]["value"] == pytest.approx(0.9)
    blind = dataclasses.replace(corpus, oracle=None)
    absent = SETTINGS(StreamModel(corpus.val, noise, topic), blind, np.random.default_rng(0)).table.summary()
    assert "value" not in absent["probe_ceiling"] and "no Bayes filter" in absent["probe_ceiling"]["reason"]


def test_the_null_is_the_best_baseline(findings):
    whole = findings.table.summary()
    names = ("probe_majority", "probe_token_identity", "probe_position")
    assert layer(findings, "probe_accuracy", 0)["null"] == max(whole[name]["value"] for name in names)


def test_baselines_read_tokens_and_positions_and_nothing_else():
    telling = tiny.corpus(rows=60, length=LENGTH, count=TOPICS, vocab_size=VOCAB, tell=1.0).val
    parts = [
        Sequences(telling.tokens_NT[at].astype(np.int64), telling.topics_NT[at])
        for at in np.split(np.arange(60), (30, 40))
    ]
    assert probes.baseline_accuracies(*parts, VOCAB, TOPICS)["token_identity"].mean() == 1
    by_place = [
        Sequences(part.tokens_NT, np.tile(np.arange(LENGTH) * TOPICS // LENGTH, (len(part.tokens_NT), 1)))
        for part in parts
    ]
    assert probes.baseline_accuracies(*by_place, VOCAB, TOPICS)["position"].mean() == 1
    assert probes.baseline_accuracies(*by_place, VOCAB, TOPICS)["token_identity"].mean() < 0.6
    constant = [Sequences(part.tokens_NT, np.full_like(part.topics_NT, 2)) for part in parts]
    assert probes.baseline_accuracies(*constant, VOCAB, TOPICS)["majority"].mean() == 1


def test_the_majority_topic_is_that_of_the_sequences_fitted_on():
    tokens = np.zeros((10, LENGTH), dtype=np.int64)
    fit, choose, test = (Sequences(tokens, np.full_like(tokens, common)) for common in (2, 1, 0))
    test.topics_NT[:, :4] = 2  # the test part's own commonest topic is 0
    right = probes.baseline_accuracies(fit, choose, test, VOCAB, TOPICS)
    np.testing.assert_allclose(right["majority"], 4 / LENGTH)  # mutant: from the test part it would be 16 / 20


def paired(right_N: np.ndarray, control_N: np.ndarray, baseline_N: np.ndarray) -> dict[str, dict]:
    """The rows of one place's accuracies by sequence, with one baseline."""
    columns = right_N[:, None], control_N[:, None]
    baselines = {"majority": baseline_N, "token_identity": 0 * baseline_N}
    table = probes.accuracy_rows(SETTINGS, *columns, baselines, None, np.random.default_rng(0))
    return {row["metric"]: row for row in table.rows() if row["layer"] == 0}


def test_differences_are_of_the_same_sequences():
    """Sequences differ far more than probe, control and baseline do on any one of them."""
    generator = np.random.default_rng(1)
    level_N, noise_N = generator.uniform(0.2, 0.8, 48), generator.normal(0, 0.005, 48)
    rows = paired(level_N + 0.01 + noise_N, level_N, level_N)
    accuracy, difference = rows["probe_accuracy"], rows["probe_selectivity"]
    assert accuracy["p"] < 0.001 and accuracy["ci_high"] - accuracy["ci_low"] > 0.08  # the spread of the sequences
    assert difference["value"] == pytest.approx((0.01 + noise_N).mean())
    assert difference["ci_low"] > 0.005 and difference["ci_high"] - difference["ci_low"] < 0.005
    mixed = np.roll(level_N, 7)  # mutant: a difference to other sequences drowns
    assert paired(level_N + 0.01 + noise_N, mixed, mixed)["probe_accuracy"]["p"] > 0.1


def test_a_probe_below_its_baseline_is_found_as_surely_as_one_above():
    baseline_N = np.random.default_rng(2).uniform(0.4, 0.6, 48)
    above, below = (paired(baseline_N + by, baseline_N, baseline_N)["probe_accuracy"]["p"] for by in (0.1, -0.1))
    assert above == below == 1e-4  # mutant: a test to one side


def test_the_table_baseline_is_the_saturated_logistic_regression():
    generator = np.random.default_rng(0)
    ids, topics = generator.integers(4, size=(1, 4000)), generator.integers(3, size=(1, 4000))
    topics[(ids == 1) & (generator.random(ids.shape) < 0.5)] = 2
    table = probes.topic_table(ids, topics, ids, topics, 4, 3)
    model = LogisticRegression(C=1e6, max_iter=1000).fit(np.eye(4)[ids[0]], topics[0])
    np.testing.assert_allclose(table, model.predict_proba(np.eye(4)), atol=2e-3)  # the smoothing of 0.1 counts


@pytest.mark.parametrize("classes", [2, 3])
def test_the_folded_probe_is_scikit_learns(classes):
    generator = np.random.default_rng(1)
    topics = generator.integers(classes, size=400)
    x = generator.normal(3, [0.1, 1, 10, 0], size=(400, 4))  # one column is constant
    x[:, :2] += topics[:, None] * [0.1, 0.2]
    settings = TopicProbes(penalties=(0.01,))
    probe, _ = probes.probe_pair(settings, x[:300], topics[:300], x[300:], topics[300:], topics[:300])
    scaler = StandardScaler().fit(x[:300])
    model = LogisticRegression(C=1 / (0.01 * 300), max_iter=1000).fit(scaler.transform(x[:300]), topics[:300])
    predicted = probes.predict(probe, torch.from_numpy(x)[None])[0]
    np.testing.assert_array_equal(predicted, model.predict(scaler.transform(x)))
    assert np.mean(predicted == topics) > 1 / classes + 0.15


def test_the_penalty_is_chosen_on_sequences_that_were_not_fitted():
    generator = np.random.default_rng(2)
    topics = generator.integers(2, size=80)
    x = generator.normal(size=(80, 60)) + 0.5 * topics[:, None] * (np.arange(60) < 3)  # few rows, many dimensions
    new_topics = generator.integers(2, size=500)
    new = generator.normal(size=(500, 60)) + 0.5 * new_topics[:, None] * (np.arange(60) < 3)
    settings = TopicProbes(penalties=(1.0, 1e-6))
    chosen, _ = probes.probe_pair(settings, x, topics, new, new_topics, topics)
    overfit, _ = probes.probe_pair(settings, x, topics, x, topics, topics)  # mutant: chosen on the fitted rows
    assert np.abs(overfit.weight_DC).max() > 5 * np.abs(chosen.weight_DC).max()


def test_a_fingerprint_of_the_sequence_is_worth_nothing_when_sequences_are_split():
    """Mutant: split by token, the probe would know each test sequence from its other tokens."""
    split = tiny.corpus(rows=128, length=LENGTH, vocab_size=60000).val
    one_topic = np.repeat(np.random.default_rng(0).integers(3, size=(128, 1)), LENGTH, axis=1).astype(np.uint8)
    split = dataclasses.replace(split, topics_NT=one_topic)
    corpus = dataclasses.replace(tiny.corpus(vocab_size=60000), val=split)

    def fingerprint(tokens: np.ndarray, topics: np.ndarray) -> np.ndarray:
        prints = np.stack([np.random.default_rng(int(row.sum())).normal(size=64) for row in tokens])
        return np.repeat(prints[:, None], tokens.shape[1], axis=1)

    model = StreamModel(split, fingerprint, fingerprint)
    table = SETTINGS(model, corpus, np.random.default_rng(0)).table
    assert table.summary()["probe_accuracy_middle"]["value"] < 0.55
    fit, choose, _ = probes.split_parts(SETTINGS, corpus, np.random.default_rng(0))
    pairs = probes.fit_probes(
        SETTINGS, model, fit, choose, np.zeros(60000, int) + (np.arange(60000) % 2), np.random.default_rng(0)
    )
    leaked, _ = probes.score(model, fit, np.zeros(60000, int), pairs)
    assert (leaked == fit.topics_NT).mean() > 0.9


def test_parts_share_no_sequence(corpus):
    parts = probes.split_parts(SETTINGS, corpus, np.random.default_rng(3))
    rows = [row.tobytes() for part in parts for row in part.tokens_NT]
    assert len(set(rows)) == len(rows) == 48 + 16 + 48


def test_accuracy_by_topic_is_the_recall_and_its_null_what_other_sequences_get():
    given_NT = np.array([[0, 0, 1, 2], [0, 1, 1, 2], [2, 2, 2, 2]])
    topics_NT = np.array([[0, 0, 0, 2], [1, 1, 2, 2], [0, 2, 2, 2]])
    test = Sequences(np.zeros((3, 4), dtype=np.int64), topics_NT)
    by_topic, null_S = probes.topic_accuracies(SETTINGS, given_NT, test, 4, np.random.default_rng(0))
    for topic in range(3):
        tokens = np.argwhere(topics_NT == topic)
        right = [given_NT[n, t] == topic for n, t in tokens]
        chance = [np.mean([given_NT[m, t] == topic for m in range(3) if m != n]) for n, t in tokens]
        assert by_topic.value[topic] == pytest.approx(np.mean(right))
        assert null_S[topic] == pytest.approx(np.mean(chance))
    assert np.isnan(by_topic.value[3]) and np.isnan(null_S[3])  # no token has it


def test_each_topic_has_its_accuracy_and_a_probe_that_always_gives_one_topic_is_at_chance(findings, corpus):
    whole = findings.table.summary()
    for which in ("first", "last"):
        row = whole[f"probe_accuracy_{which}_topic"]
        assert row["value"] > 0.98 and row["p"] < 0.001 and row["null"] == pytest.approx(1 / TOPICS, abs=0.1)
    test = Sequences(corpus.val.tokens_NT[:48].astype(np.int64), corpus.val.topics_NT[:48])
    always, null_S = probes.topic_accuracies(SETTINGS, 0 * test.topics_NT, test, TOPICS, np.random.default_rng(0))
    assert always.value[0] == null_S[0] == 1 and always.p[0] == 1  # mutant: against a third, a find


def streams(decoder, part: Sequences) -> list[list[torch.Tensor]]:
    """What every batch's residual streams are."""
    batches: list[list[torch.Tensor]] = []
    list(probes.residuals(decoder, part, lambda _, places: batches.append(places) or {}))
    return batches


def test_residual_streams_are_read_behind_the_document_mask():
    decoder = small_models.drawn(small_models.MHA)
    corpus = tiny.corpus(rows=6, length=12)
    documents_NT = np.repeat([[3, 4]], 6, axis=1).repeat(6, axis=0).astype(np.uint16)
    masked = dataclasses.replace(
        corpus, val=dataclasses.replace(corpus.val, documents_NT=documents_NT), mask_documents=True
    )
    part = Sequences.of(masked, np.arange(6))
    (residuals,) = streams(decoder, part)
    (alone,) = streams(decoder, Sequences(part.tokens_NT[:, :6], part.topics_NT[:, :6]))
    np.testing.assert_allclose(residuals[-1][:, :6], alone[-1], atol=1e-5)
    second = decoder.trace(torch.from_numpy(part.tokens_NT), sites=("resid_post",), logits=None)["resid_post", 2]
    assert (residuals[-1][:, 6:] - second[:, 6:]).abs().max() > 0.1  # the second document cannot see the first


def test_a_small_validation_split_is_cut_in_the_same_proportions(corpus):
    large = dataclasses.replace(SETTINGS, fit_sequences=640, choose_sequences=160, test_sequences=480)
    sizes = [len(part.tokens_NT) for part in probes.split_parts(large, corpus, np.random.default_rng(0))]
    assert len(corpus.val) == 128 and sizes == [64, 16, 48]


def test_too_small_a_validation_split_is_an_error(corpus):
    split = dataclasses.replace(corpus.val, tokens_NT=corpus.val.tokens_NT[:11], topics_NT=corpus.val.topics_NT[:11])
    with pytest.raises(ValueError, match=r"at least 12 validation sequences .* has 11"):
        SETTINGS.check(dataclasses.replace(corpus, val=split))


def test_a_corpus_of_one_topic_is_an_error(corpus):
    split = dataclasses.replace(corpus.val, topics_NT=np.zeros_like(corpus.val.topics_NT))
    with pytest.raises(ValueError, match="needs two topics"):
        SETTINGS(StreamModel(split, noise, topic), dataclasses.replace(corpus, val=split), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_sequences": 0}, "test_sequences=0 must be at least 1"),
        ({"penalties": []}, r"penalties=\[\] must be a list of 1 or more"),
        ({"penalties": [0.1, -1.0]}, r"penalties\[1\]=-1.0 must be above 0"),
        ({"sign_flips": 10}, "sign_flips=10 must be at least 9999"),
        ({"bootstrap_draws": 10}, "bootstrap_draws=10 must be at least 100"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^analysis.probes.{message}"):
        build(TopicProbes, settings, "analysis.probes")
