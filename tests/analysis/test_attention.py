import dataclasses
import itertools

import numpy as np
import pytest
import scipy.stats
import torch

from headdyn.analysis.attention import AttentionStatistics
from headdyn.analysis.attention_measure import _swapped
from headdyn.analysis.pattern_sums import collect
from headdyn.analysis.selectivity import drawn_sequences
from headdyn.analysis.sequences import Sequences
from headdyn.core.records import HeadTable
from headdyn.core.settings import build
from headdyn.core.statistics import ratio_contributions, spread_beyond_sampling
from headdyn.data.corpus import Split
from tests import small_models
from tests.analysis import tiny

LENGTH, TOPICS, VOCAB = 24, 3, 30
OWN = VOCAB // TOPICS  # with tell=1 token v is of topic v // OWN, so attention can know topics
SETTINGS = AttentionStatistics(sequences=48, label_swaps=20, bootstrap_draws=500)


def heads(tokens_BT: torch.Tensor, layer: int) -> torch.Tensor:
    """Six heads with known answers: uniform, own topic, self, previous token, position 0, behind an earlier twin."""
    batch, length = tokens_BT.shape
    scores = torch.zeros(batch, 6, length, length)
    topic_BT = tokens_BT // OWN
    scores[:, 1] = 30.0 * (topic_BT[:, :, None] == topic_BT[:, None, :])
    t = torch.arange(length)
    scores[:, 2] = 60.0 * torch.eye(length)
    scores[:, 3, t[1:], t[:-1]] = 60
    scores[:, 4, :, 0] = 60
    twin = tokens_BT[:, :, None] == tokens_BT[:, None, :]
    scores[:, 5, :, 1:] = 60.0 * twin[:, :, :-1].float().tril(-2)
    return tiny.causal_softmax(scores)


@pytest.fixture(scope="module")
def corpus():
    return tiny.corpus(rows=64, length=LENGTH, count=TOPICS, vocab_size=VOCAB, tell=1.0)


@pytest.fixture(scope="module")
def table(corpus) -> HeadTable:
    return SETTINGS(tiny.PatternModel(heads, 2, 6), corpus, np.random.default_rng(1)).table


def row(table: HeadTable, metric: str, head: int) -> dict:
    return table.where(metric=metric, layer=1, head=head).rows()[0]


@pytest.mark.parametrize(
    ("metric", "head", "expected"),
    [
        ("entropy_normalised", 0, 1.0),
        ("within_ratio", 1, 1.0),
        ("within_ratio_no_self", 1, 1.0),  # own-topic keys other than itself, where there are any
        ("entropy_nats", 2, 0.0),
        ("within_ratio", 2, 1.0),
        ("distance_tokens", 2, 0.0),
        ("previous_token", 3, 1.0),
        ("distance_tokens", 3, 1.0),
        ("sink_rate", 4, 1.0),
        ("distance_tokens", 4, LENGTH / 2),
        ("induction", 5, 1.0),
    ],
)
def test_heads_with_known_answers(table, metric, head, expected):
    tolerance = 0.12 if metric == "within_ratio_no_self" else 1e-5  # a segment's first token has only other topics
    assert row(table, metric, head)["value"] == pytest.approx(expected, abs=tolerance)


def test_nulls_of_uniform_attention_are_its_values(table):
    for metric in ("entropy_nats", "entropy_within_nats", "entropy_cross_nats", "sink_rate", "previous_token"):
        uniform = row(table, metric, 0)
        assert uniform["value"] == pytest.approx(uniform["null"], rel=1e-5)
        assert uniform["ci_low"] - 1e-5 <= uniform["value"] <= uniform["ci_high"] + 1e-5
        assert row(table, metric, 1)["null"] == pytest.approx(uniform["null"])
    for metric in ("within_ratio", "within_ratio_no_self", "cluster_ratio"):
        assert row(table, metric, 0)["value"] == pytest.approx(table.summary()[f"{metric}_uniform"]["value"], rel=1e-5)


def test_selectivity_is_within_minus_its_null_and_finds_the_topic_head_alone(table):
    for head in range(6):
        for suffix in ("", "_no_self"):
            within, selectivity = row(table, f"within_ratio{suffix}", head), row(table, f"selectivity{suffix}", head)
            if within["value"] is not None:
                assert selectivity["value"] == pytest.approx(within["value"] - within["null"], abs=1e-6)
                assert selectivity["ci_low"] <= selectivity["value"] <= selectivity["ci_high"]
    assert row(table, "selectivity", 1)["value"] > 0.15 and row(table, "selectivity", 1)["q"] < 0.001
    # The least that so many flips can give, though the best of six heads was looked for.
    assert table.summary()["selectivity_top"]["p"] == row(table, "selectivity", 1)["p"]
    for head in (0, 2, 3, 4):  # attention by position: balanced swaps leave nothing but float32's rounding
        assert abs(row(table, "selectivity", head)["value"]) < 1e-5


def test_a_head_that_avoids_its_topic_is_found_as_surely_as_one_that_seeks_it(corpus):
    def pattern(tokens_BT: torch.Tensor, layer: int) -> torch.Tensor:
        same = (tokens_BT // OWN)[:, :, None] == (tokens_BT // OWN)[:, None, :]
        return tiny.causal_softmax(torch.stack((30.0 * same, -30.0 * same), dim=1))

    table = SETTINGS(tiny.PatternModel(pattern, 1, 2), corpus, np.random.default_rng(1)).table
    seeks, avoids = (table.where(metric="selectivity", head=head).rows()[0] for head in range(2))
    assert seeks["value"] > 0.15 and avoids["value"] < -0.15
    assert seeks["p"] == avoids["p"] == 1e-4  # mutant: a test to one side


def test_a_quarter_of_same_topic_keys_in_the_null_worked_by_hand(corpus):
    """The own-topic head under other labels: its attention is uniform over its own segments, so count overlaps."""
    chosen, swaps = np.arange(8), (np.arange(8)[:, None] + [1, 2, 5]) % 8
    topics = corpus.val.topics_NT[:8]
    sums = collect(tiny.PatternModel(heads, 1, 6), Sequences.of(corpus, chosen), swaps, TOPICS)
    for n in chosen:
        expected_S = np.zeros(TOPICS)
        for m in swaps[n]:
            for t in range(LENGTH):
                keys = [k for k in range(t + 1) if topics[n, k] == topics[n, t]]
                expected_S[topics[n, t]] += np.mean([topics[m, k] == topics[m, t] for k in keys]) / 3
        assert sums.heads["swapped"][n, 0, 1] == pytest.approx(expected_S.sum(), abs=1e-4)
        np.testing.assert_allclose(sums.heads["topics_swapped"][n, 0, 1], expected_S, rtol=0, atol=1e-4)


def test_the_null_of_cluster_ratio_worked_by_hand(corpus):
    """Uniform attention under other labels: what lies within a topic at queries that have other topics' keys, and what not."""
    chosen, swaps = np.arange(8), (np.arange(8)[:, None] + [1, 2, 5]) % 8
    topics = corpus.val.topics_NT[:8]
    ratio = _swapped(collect(tiny.PatternModel(heads, 1, 6), Sequences.of(corpus, chosen), swaps, TOPICS))
    numerator_NLH, denominator_NLH = ratio["cluster_ratio"]
    for n in chosen:
        within, cross = 0.0, 0.0
        for m in swaps[n]:
            for t in range(LENGTH):
                same = np.mean(topics[m, : t + 1] == topics[m, t])
                within += same / 3 if same < 1 else 0
                cross += (1 - same) / 3
        assert numerator_NLH[n, 0, 0] == pytest.approx(within, abs=1e-4)
        assert denominator_NLH[n, 0, 0] == pytest.approx(cross, abs=1e-4)


def test_topics_are_taken_out_of_selectivity_and_nothing_out_of_induction(corpus, monkeypatch):
    """As many controls as labels for each of the two selectivities, none for the tokens' statistic."""
    controls = []

    def flip_p(columns_NX, controls_NJ, generator, *, draws, test=None):
        controls.append(controls_NJ)
        return np.ones(columns_NX.shape[1:])

    monkeypatch.setattr("headdyn.analysis.attention_measure.flip_p", flip_p)
    table = SETTINGS(tiny.PatternModel(heads, 1, 6), corpus, np.random.default_rng(1)).table
    assert set(table.matrix("induction", "p")[0]) == {1.0} and np.isnan(table.matrix("entropy_nats", "p")).all()
    assert [each.shape[0] for each in controls] == [48] * 6  # heads and their mean, then the largest of the heads
    selectivities, induction = {each.shape[1] for each in controls[:4]}, {each.shape[1] for each in controls[4:]}
    assert len(selectivities) == 1 and min(selectivities) > 0 and induction == {0}


def test_a_head_without_other_keys_has_no_ratio_and_says_why(table):
    for metric in ("within_ratio_no_self", "selectivity_no_self", "cluster_ratio"):
        absent = row(table, metric, 2)
        assert absent["value"] is None and absent["p"] is None and "divide" in absent["reason"]
        assert table.summary()[metric]["value"] is not None  # the model's row is the mean of the other heads


def test_model_rows_are_means_over_heads(table):
    for metric in ("entropy_nats", "selectivity", "induction", "cluster_ratio"):
        assert table.summary()[metric]["value"] == pytest.approx(np.nanmean(table.matrix(metric)), rel=1e-6)


def test_specialisation_finds_a_head_that_serves_one_topic(corpus):
    def pattern(tokens_BT: torch.Tensor, layer: int) -> torch.Tensor:
        own = heads(tokens_BT, layer)[:, 1:2]
        uniform = heads(tokens_BT, layer)[:, 0:1]
        serves = (tokens_BT // OWN == 0)[:, None, :, None]
        return torch.cat((torch.where(serves, own, uniform), uniform), dim=1)

    table = SETTINGS(tiny.PatternModel(pattern, 1, 2), corpus, np.random.default_rng(0)).table
    served, uniform = (table.where(metric="specialisation", head=h).rows()[0] for h in (0, 1))
    assert served["ci_low"] > 0.01 > abs(uniform["value"])
    assert uniform["ci_low"] < 0 < uniform["ci_high"]
    first, last = (table.where(metric=f"selectivity_{which}_topic", head=0).rows()[0] for which in ("first", "last"))
    assert first["ci_low"] > 0.15 and first["value"] > 3 * abs(last["value"]) and first["null"] == 0
    raw = table.where(metric="specialisation_raw", head=1).rows()[0]
    assert raw["value"] > 0 and raw["null"] > 0  # the seed's figure: above 0 although nothing is specialised


def test_a_topic_that_never_occurs_has_no_part_in_specialisation(corpus):
    """The same tokens, their topics, and a fourth name that no token bears."""
    four = dataclasses.replace(corpus, topic_names=(*corpus.topic_names, "never"))
    model = tiny.PatternModel(heads, 1, 6)
    three, with_never = (SETTINGS(model, each, np.random.default_rng(1)).table for each in (corpus, four))
    for column in ("value", "ci_low", "ci_high"):
        expected = three.matrix("specialisation", column)
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(with_never.matrix("specialisation", column), expected)


def test_the_interval_of_specialisation_is_one_of_95_percent(corpus, table):
    sequences, swaps_NR = drawn_sequences(corpus, 48, 20, np.random.default_rng(1))  # as `table` drew them
    sums = collect(tiny.PatternModel(heads, 2, 6), sequences, swaps_NR, TOPICS)
    units = ratio_contributions(sums.heads["topics"][:, 1], sums.counts.topics_NS[:, None])
    *_, low, high = spread_beyond_sampling(units)
    np.testing.assert_allclose(table.matrix("specialisation", "ci_low")[1], low)
    np.testing.assert_allclose(table.matrix("specialisation", "ci_high")[1], high)


def noise_heads(count: int, seed: int) -> tiny.PatternModel:
    """Heads that know nothing of topics: each fades with distance at its own rate, with noise that differs by sequence."""
    rate_H = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    distance_QK = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).clamp_min(0)
    profile_HQK = -0.3 * rate_H[:, None, None] * distance_QK

    def pattern(tokens_BT: torch.Tensor, layer: int) -> torch.Tensor:
        rows = [torch.Generator().manual_seed(int(tokens.sum()) * 7919 + int(tokens[0])) for tokens in tokens_BT]
        noise = torch.stack([torch.randn(count, LENGTH, LENGTH, generator=row) for row in rows])
        return tiny.causal_softmax(profile_HQK + 1.5 * noise)

    return tiny.PatternModel(pattern, 1, count)


@pytest.fixture(scope="module")
def under_the_null() -> np.ndarray:
    """p, value, ci_low and ci_high of 60 topic-blind heads in each of 12 corpora, and plain standard errors."""
    out = []
    for seed in range(12):
        corpus = tiny.corpus(rows=48, length=LENGTH, vocab_size=4096, seed=seed)
        model = noise_heads(60, seed)
        table = SETTINGS(model, corpus, np.random.default_rng(seed)).table
        columns = [table.matrix("selectivity", column)[0] for column in ("p", "value", "ci_low", "ci_high")]
        swaps = (np.arange(48)[:, None] + np.arange(1, 21)) % 48
        sums = collect(model, Sequences.of(corpus, slice(None)), swaps, TOPICS).heads
        plain = (sums["within"] - sums["swapped"])[:, 0].std(0, ddof=1) / LENGTH / np.sqrt(48)
        out.append([*columns, plain])
    return np.moveaxis(np.array(out), 1, 0)


def test_selectivity_is_calibrated_where_attention_knows_no_topics(under_the_null):
    p, value, low, high, _ = under_the_null
    assert scipy.stats.kstest(p.ravel(), "uniform").pvalue > 0.01
    error = 3 * np.sqrt(0.05 * 0.95 / p.size)
    assert np.mean(p < 0.05) < 0.05 + error  # measured 0.064 of 720
    assert np.mean((low > 0) | (high < 0)) < 0.1  # measured 0.082: at 48 units the bootstrap falls a little short
    assert abs(value.mean()) < 4 * value.std() / np.sqrt(value.size)


def test_without_control_variates_the_interval_would_be_far_too_wide(under_the_null):
    """Mutant: the plain standard error of per-sequence selectivities, in which the labels' own spread remains."""
    _, value, low, high, plain = under_the_null
    assert 0.8 < np.median(high - low) / 3.92 / value.std() < 1.2  # measured 0.92
    assert np.median(plain) > 4 * value.std()  # measured 5.0


def of_documents(tokens_BT: torch.Tensor, layer: int) -> torch.Tensor:
    """Four heads: uniform, own document, own topic, and own topic in other documents before the query's."""
    document_BT = (tokens_BT % 2).diff(dim=1, prepend=tokens_BT[:, :1] % 2).abs().cumsum(1)
    own_BQK = (document_BT[:, :, None] == document_BT[:, None, :]).float()
    topic_BQK = ((tokens_BT // OWN)[:, :, None] == (tokens_BT // OWN)[:, None, :]).float()
    kinds = (torch.zeros_like(own_BQK), own_BQK, topic_BQK, topic_BQK * (1 - own_BQK))
    return tiny.causal_softmax(30.0 * torch.stack(kinds, dim=1))


@pytest.fixture(scope="module")
def packed():
    """Sequences of six documents of 1 to 14 tokens, each of one topic, which its tokens tell; odd tokens follow even."""
    rng = np.random.default_rng(5)
    cuts_NT = np.zeros((64, LENGTH), int)
    for row_T in cuts_NT:
        row_T[1 + rng.choice(LENGTH - 1, 5, replace=False)] = 1
    documents_NT = cuts_NT.cumsum(1)
    topics_NT = np.take_along_axis(rng.integers(TOPICS, size=(64, 6)), documents_NT, axis=1)
    tokens_NT = topics_NT * OWN + 2 * rng.integers(OWN // 2, size=topics_NT.shape) + documents_NT % 2
    split = Split(
        tokens_NT=tokens_NT.astype(np.uint16),
        topics_NT=topics_NT.astype(np.uint8),
        documents_NT=documents_NT.astype(np.uint16),
    )
    plain = tiny.corpus(rows=64, length=LENGTH, count=TOPICS, vocab_size=VOCAB, tell=1.0)
    return dataclasses.replace(plain, train=split, val=split)


def test_a_head_that_prefers_its_own_document_is_no_topic_head(packed):
    table = SETTINGS(tiny.PatternModel(of_documents, 2, 4), packed, np.random.default_rng(1)).table
    by_label_swap, beyond, other = (
        [row(table, metric, head) for head in range(4)]
        for metric in ("selectivity", "selectivity_documents", "selectivity_other_documents")
    )
    assert by_label_swap[1]["value"] > 0.1 and by_label_swap[1]["p"] == 1e-4  # the label swap is deceived
    assert beyond[1]["value"] == pytest.approx(0, abs=1e-9)
    assert other[1]["value"] is None and "divide" in other[1]["reason"]
    assert all(each["value"] > 0.15 and each["p"] == 1e-4 for each in (beyond[2], beyond[3], other[2], other[3]))
    assert abs(beyond[0]["value"]) < 0.03 and beyond[0]["p"] > 0.01
    for metric in ("selectivity", "selectivity_documents"):  # the whole model's value is its heads' mean
        whole = table.summary()[metric]["value"]
        assert whole == pytest.approx(np.nanmean(table.matrix(metric)))


def test_the_null_of_documents_is_the_mean_over_every_permutation(packed):
    """Of one sequence and every head: all 720 ways to put the six topics on the six documents."""
    chosen, swaps = np.arange(3), (np.arange(3)[:, None] + [1, 2]) % 3
    sums = collect(tiny.PatternModel(of_documents, 1, 4), Sequences.of(packed, chosen), swaps, TOPICS)
    tokens_NT = torch.from_numpy(packed.val.tokens_NT[chosen].astype(np.int64))
    pattern_NHQK = of_documents(tokens_NT, 0).numpy()
    for n in chosen:
        documents_T = packed.val.documents_NT[n]
        topic_of_document = np.array([packed.val.topics_NT[n][documents_T == d][0] for d in range(6)])

        def within(order: tuple[int, ...]) -> np.ndarray:
            labels_T = topic_of_document[list(order)][documents_T]  # noqa: B023
            return (pattern_NHQK[n] * (labels_T[:, None] == labels_T)).sum((1, 2))  # noqa: B023

        every = [within(order) for order in itertools.permutations(range(6))]
        expected_H = within(tuple(range(6))) - np.mean(every, axis=0)
        np.testing.assert_allclose(sums.heads["documents"][n, 0], expected_H, rtol=0, atol=1e-4)


def test_without_documents_their_null_is_absent(table, packed):
    masked = dataclasses.replace(packed, mask_documents=True)
    inside = SETTINGS(tiny.PatternModel(of_documents, 2, 4), masked, np.random.default_rng(1)).table
    assert "packs no documents" in table.summary()["selectivity_documents"]["reason"]
    assert "attention stays inside documents" in inside.summary()["selectivity_documents"]["reason"]


def test_attention_confined_to_documents_leaves_no_topic_statistics(corpus):
    decoder = small_models.drawn(dataclasses.replace(small_models.MHA, vocab_size=VOCAB), dtype=torch.float32)
    documents_NT = np.repeat([[0, 1, 2]], 8, axis=1).repeat(64, axis=0).astype(np.uint16)  # eight tokens each
    split = dataclasses.replace(corpus.val, documents_NT=documents_NT, topics_NT=documents_NT.astype(np.uint8))
    masked = dataclasses.replace(corpus, val=split, mask_documents=True)
    open_, confined = (SETTINGS(decoder, c, np.random.default_rng(0)).table for c in (corpus, masked))
    for metric in ("within_ratio", "selectivity_no_self", "cluster_ratio_uniform", "specialisation"):
        assert "value" in open_.summary()[metric]
        assert "stays inside documents" in confined.summary()[metric]["reason"]
    assert confined.matrix("distance_tokens").max() < 3 < open_.matrix("distance_tokens").min()
    uniform = np.log(np.tile(np.arange(1, 9), 3)).mean()
    assert confined.summary()["entropy_nats"]["null"] == pytest.approx(uniform, rel=1e-5)


def test_a_small_validation_split_is_taken_whole_and_one_too_small_for_the_null_is_refused(corpus):
    findings = AttentionStatistics(sequences=65)(tiny.PatternModel(heads, 1, 6), corpus, np.random.default_rng(0))
    assert findings.table.summary()["entropy_nats"]["n"] == len(corpus.val) == 64
    few = dataclasses.replace(
        corpus, val=Split(tokens_NT=corpus.val.tokens_NT[:20], topics_NT=corpus.val.topics_NT[:20])
    )
    with pytest.raises(ValueError, match=r"label_swaps=20 needs more validation sequences than that.* has 20"):
        AttentionStatistics().check(few)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_swaps": 5}, "label_swaps=5 must be at least 20"),
        ({"sequences": 20}, "sequences=20 must exceed label_swaps=20"),
        ({"sign_flips": 999}, "sign_flips=999 must be at least 9999"),
        ({"bootstrap_draws": 5}, "bootstrap_draws=5 must be at least 100"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^analysis.attention.{message}"):
        build(AttentionStatistics, settings, "analysis.attention")
