import math

import numpy as np
import pytest
import torch

from headdyn.analysis import pattern_sums
from headdyn.analysis.pattern_sums import Counts, Reference, collect, head_sums, position_profiles
from headdyn.analysis.sequences import Sequences
from tests import small_models
from tests.analysis import tiny

ROWS, HEADS, LENGTH, TOPICS, SWAPS = 5, 2, 11, 3, 4


@pytest.fixture(scope="module")
def case():
    """A random pattern over random labels and tokens, and every sum of it by loops in float64."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 4, (ROWS, LENGTH))  # few tokens, so that many repeat
    topics = tiny.topics(ROWS, LENGTH, TOPICS, generator, least=2).astype(np.int64)
    swaps = (np.arange(ROWS)[:, None] + [1, 2, 3, 4]) % ROWS
    scores = torch.from_numpy(generator.normal(0, 2, (ROWS, HEADS, LENGTH, LENGTH))).float()
    pattern = tiny.causal_softmax(scores)
    return tokens, topics, swaps, pattern, loops(pattern.double().numpy(), tokens, topics, swaps)


def entropy(p: np.ndarray) -> float:
    p = p[p > 0] / p.sum()
    return float(-(p * np.log(p)).sum())


def induction_keys(tokens: np.ndarray, t: int) -> list[int]:
    return [j + 1 for j in range(t - 1) if tokens[j] == tokens[t]]


def loops(pattern: np.ndarray, tokens: np.ndarray, topics: np.ndarray, swaps: np.ndarray) -> dict[str, np.ndarray]:
    names = (
        "entropy entropy_normalised entropy_within entropy_within_queries entropy_cross entropy_cross_queries within "
        "cross swapped self sink previous induction induction_swapped distance"
    )
    out = {name: np.zeros((ROWS, HEADS)) for name in names.split()}
    out |= {name: np.zeros((ROWS, HEADS, TOPICS)) for name in ("topics", "topics_swapped")}
    for n in range(ROWS):
        y, x = topics[n], tokens[n]
        for h in range(HEADS):
            for t in range(LENGTH):
                row = pattern[n, h, t, : t + 1]
                same = y[: t + 1] == y[t]
                out["entropy"][n, h] += entropy(row)
                out["within"][n, h] += row[same].sum()
                out["topics"][n, h, y[t]] += row[same].sum()
                out["self"][n, h] += row[t]
                out["entropy_within"][n, h] += entropy(row[same])
                out["entropy_within_queries"][n, h] += 1
                if (~same).any():
                    out["cross"][n, h] += row[~same].sum()
                    out["entropy_cross"][n, h] += entropy(row[~same])
                    out["entropy_cross_queries"][n, h] += 1
                out["induction"][n, h] += row[induction_keys(x, t)].sum()
                for m in swaps[n]:
                    other = topics[m]
                    swapped = row[other[: t + 1] == other[t]].sum() / SWAPS
                    out["swapped"][n, h] += swapped
                    out["topics_swapped"][n, h, y[t]] += swapped
                    out["induction_swapped"][n, h] += row[induction_keys(tokens[m], t)].sum()
                if t:
                    out["entropy_normalised"][n, h] += entropy(row) / math.log(t + 1)
                    out["sink"][n, h] += row[0]
                    out["previous"][n, h] += row[t - 1]
                    out["distance"][n, h] += sum(weight * (t - k) for k, weight in enumerate(row))
    return out


def reference(tokens, topics, swaps) -> Reference:
    tokens, topics = torch.as_tensor(tokens), torch.as_tensor(topics)
    return Reference.of(tokens, topics, (tokens[swaps.T], topics[swaps.T]), TOPICS)


def worst(ours: dict[str, torch.Tensor], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(np.abs(ours[name].double().numpy() - theirs[name]).max()) for name in theirs}


def test_every_sum_agrees_with_loops_over_queries_and_keys(case):
    tokens, topics, swaps, pattern, expected = case
    ours = head_sums(pattern, reference(tokens, topics, swaps))
    assert set(ours) == set(expected)
    errors = worst(ours, expected)
    assert max(errors.values()) < 2e-5, errors  # measured 4e-6, float32 sums of 11 rows


@pytest.mark.parametrize(
    ("name", "mutate"),
    [
        ("within", lambda p, t, y, s: (p, t, np.roll(y, 1, axis=1), s)),
        ("swapped", lambda p, t, y, s: (p, t, y, np.tile(np.arange(ROWS)[:, None], (1, SWAPS)))),  # its own labels
        ("induction", lambda p, t, y, s: (p, np.roll(t, 1, axis=1), y, s)),  # off by one
        ("entropy", lambda p, t, y, s: (p.sqrt() / p.sqrt().sum(-1, keepdim=True), t, y, s)),
        ("distance", lambda p, t, y, s: (p.flip(1), t, y, s)),  # heads swapped
    ],
)
def test_mutants_of_the_sums_fail(case, name, mutate):
    tokens, topics, swaps, pattern, expected = case
    pattern, tokens, topics, swaps = mutate(pattern, tokens, topics, swaps)
    assert worst(head_sums(pattern, reference(tokens, topics, swaps)), expected)[name] > 1e-2


def test_counts_agree_with_loops(case):
    tokens, topics, swaps, _, expected = case
    counts = Counts.of(tokens, topics, swaps, TOPICS)
    followed = np.array([sum(bool(induction_keys(x, t)) for t in range(LENGTH)) for x in tokens])
    np.testing.assert_array_equal(counts.induction.ravel(), followed)
    np.testing.assert_array_equal(counts.induction_swapped.ravel(), followed[swaps].sum(1))
    np.testing.assert_array_equal(counts.cross.ravel(), expected["entropy_cross_queries"][:, 0])
    np.testing.assert_allclose(counts.cross_swapped.ravel(), expected["entropy_cross_queries"][:, 0][swaps].mean(1))
    np.testing.assert_array_equal(counts.topics_NS.sum(1), LENGTH)


def test_uniform_attention_over_eight_keys_has_entropy_ln_8_and_one_hot_has_0():
    pattern = torch.eye(8).expand(1, 2, 8, 8).clone()
    pattern[0, 1, 7] = 1 / 8  # head 1's last query looks everywhere; all else is one-hot
    nothing = torch.zeros(1, 8, dtype=torch.long)
    sums = head_sums(pattern, Reference.of(nothing, nothing, (nothing[None], nothing[None]), 1))
    np.testing.assert_allclose(sums["entropy"], [[0, math.log(8)]], atol=1e-6)
    np.testing.assert_allclose(sums["entropy_normalised"], [[0, 1]], atol=1e-6)
    np.testing.assert_allclose(sums["self"], [[8, 7 + 1 / 8]])
    np.testing.assert_allclose(sums["sink"], [[0, 1 / 8]])
    np.testing.assert_allclose(sums["previous"], [[0, 1 / 8]])
    np.testing.assert_allclose(sums["distance"], [[0, 3.5]])


def test_within_mass_worked_by_hand():
    # Topics 0 0 1: the last query puts 0.2 and 0.3 on topic 0 and 0.5 on itself.
    pattern = torch.tensor([[[[1.0, 0, 0], [0.4, 0.6, 0], [0.2, 0.3, 0.5]]]])
    tokens, topics, other = torch.tensor([[5, 6, 5]]), torch.tensor([[0, 0, 1]]), torch.tensor([[[0, 1, 1]]])
    sums = head_sums(pattern, Reference.of(tokens, topics, (tokens[None], other), 2))
    assert sums["within"].item() == pytest.approx(2.5)
    assert sums["cross"].item() == pytest.approx(0.5)
    np.testing.assert_allclose(sums["topics"][0, 0], [2, 0.5])
    assert sums["swapped"].item() == pytest.approx(1 + 0.6 + 0.8)  # labels 0 1 1 on the same attention
    assert sums["entropy_cross"].item() == pytest.approx(-(0.4 * math.log(0.4) + 0.6 * math.log(0.6)), abs=1e-6)
    assert sums["induction"].item() == pytest.approx(0.3)  # token 5 stood at 0; behind it is key 1


def test_mass_too_small_to_renormalise_is_left_out_and_small_mass_is_not():
    scores = torch.zeros(1, 2, 4, 4)
    scores[:, 0, 3, :2], scores[:, 1, 3, :2] = -200, -30  # 1e-87, which float32 cannot hold, and 1e-13
    scores[:, 1, 3, 1] = -31
    tokens, topics = torch.arange(4)[None], torch.tensor([[0, 0, 1, 1]])
    sums = head_sums(tiny.causal_softmax(scores), Reference.of(tokens, topics, (tokens[None], topics[None]), 2))
    np.testing.assert_array_equal(sums["entropy_cross_queries"], [[1, 2]])  # query 2 always counts
    share = 1 / (1 + math.exp(-1))
    tail = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    np.testing.assert_allclose(sums["entropy_cross"] - math.log(2), [[0, tail]], atol=1e-4)


def test_streaming_gives_the_same_whatever_the_batch(monkeypatch):
    decoder = small_models.drawn(small_models.GQA, dtype=torch.float32)
    corpus = tiny.corpus(rows=7, length=12)
    swaps = (np.arange(7)[:, None] + [1, 3]) % 7
    results = []
    for weights in (1, 4 * 12**2 * 3, 2**30):  # one sequence at a time, three, all
        monkeypatch.setitem(pattern_sums._BATCH_WEIGHTS, "cpu", weights)
        results.append(collect(decoder, Sequences.of(corpus, slice(None)), swaps, 3))
    for other in results[1:]:
        for name, sum_NLH in results[0].heads.items():
            np.testing.assert_allclose(other.heads[name], sum_NLH, rtol=1e-4, atol=1e-4)


def test_patterns_come_from_their_own_layer_and_uniform_is_uniform():
    decoder = small_models.drawn(small_models.MHA, dtype=torch.float32)
    split = Sequences.of(tiny.corpus(rows=3, length=12), slice(None))
    tokens = torch.from_numpy(split.tokens_NT.astype(np.int64))
    sums = collect(decoder, split, np.array([[1], [2], [0]]), 3)
    trace = decoder.trace(tokens, sites=("pattern",), logits=None)
    own = (split.topics_NT[:, :, None] == split.topics_NT[:, None, :]).astype(float)
    for layer in range(3):
        within = np.einsum("bhqk,bqk->bh", trace["pattern", layer].detach().numpy(), own)
        np.testing.assert_allclose(sums.heads["within"][:, layer], within, rtol=1e-5)
    uniform = np.tril(np.ones((12, 12))) / np.arange(1, 13)[:, None]
    np.testing.assert_allclose(sums.uniform["within"][:, 0, 0], (uniform * own).sum((1, 2)), rtol=1e-5)


def test_profiles_of_attention_by_position_by_hand():
    """Of three tokens: all keys alike; half a token's worth of fading, e^-1/2 a step; all weight on the first."""
    fade = math.exp(-0.5)
    expected = [
        [[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]],
        [[1, 0, 0], [fade, 1, 0], [fade**2, fade, 1]],
        [[1, 0, 0], [1, 0, 0], [1, 0, 0]],
    ]
    expected_JQK = np.array(expected) / np.sum(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(position_profiles(3), expected_JQK, atol=1e-7)
