from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logsumexp

from headdyn.core.settings import ConfigError, build
from headdyn.data.corpus import Corpus
from headdyn.data.micro_languages import MicroLanguages

# Laptop scale; the gap is the one at which science.md §1 gives a floor of 2.433 nats.
LAPTOP = MicroLanguages(
    generator="matched",
    vocab_size=64,
    num_topics=3,
    sequence_length=128,
    min_segments=2,
    max_segments=4,
    min_segment=16,
    train_sequences=6400,
    val_sequences=2000,
    target_gap_nats=math.log(64) - 2.371,
    concentration=100.0,
    seed=0,
)


@pytest.fixture(scope="module")
def matched(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return built(LAPTOP, tmp_path_factory.mktemp("matched"))


@pytest.fixture(scope="module")
def boosted(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return built(replace(LAPTOP, generator="original"), tmp_path_factory.mktemp("original"))


def built(source: MicroLanguages, folder: Path) -> Corpus:
    source.build(folder)
    return source.open(folder)


def test_a_corpus_is_what_its_settings_say(matched: Corpus) -> None:
    for split, count in ((matched.train, 6400), (matched.val, 2000)):
        assert split.tokens_NT.shape == split.topics_NT.shape == (count, 128) and len(split) == count
        assert (split.tokens_NT.dtype, split.topics_NT.dtype) == (np.uint16, np.uint8)
        assert isinstance(split.tokens_NT, np.memmap) and isinstance(split.topics_NT, np.memmap)
        assert split.tokens_NT.max() == 63 and split.topics_NT.max() == 2
        runs_N = 1 + np.count_nonzero(np.diff(split.topics_NT.astype(int), axis=1), axis=1)
        assert runs_N.min() == 1 and runs_N.max() == 4  # neighbours may share a topic: 2..4 segments make 1..4 runs
    assert (matched.vocab_size, matched.num_topics, matched.topic_names[0]) == (64, 3, "topic 0")


def test_loss_lines(matched: Corpus) -> None:
    lines = matched.reference_nats
    assert list(lines) == ["random", "mixture", "position_only", "floor"]
    assert lines["random"] == math.log(64)
    assert lines["random"] > lines["mixture"] > lines["floor"] > matched.facts["known_topic_entropy_nats"]
    # The example is science.md's; over ten seeds the floor lay at 2.425..2.435, standard error 0.003 each.
    assert lines["floor"] == pytest.approx(2.433, abs=0.015)
    assert matched.facts["floor_nats_se"] < 0.004
    # Distance alone tells nearly everything of the topic: 94 to 96 % of the way from mixture to floor (science.md §18).
    assert 0.005 < matched.facts["selection_worth_nats"] < 0.06 * (lines["mixture"] - lines["floor"])
    assert matched.facts["selection_worth_nats"] == lines["position_only"] - lines["floor"]
    assert matched.facts["realised_gap_nats"] == pytest.approx(LAPTOP.target_gap_nats, rel=0.02)


def test_mixture_is_the_mean_chain_on_matched(matched: Corpus) -> None:
    """Topics and tokens are independent there, so the best blind bigram is the plain average of the chains."""
    assert matched.oracle is not None
    mean_VV = matched.oracle.transitions_SVV.mean(0)  # type: ignore[attr-defined]
    tokens_NT = matched.val.tokens_NT
    exact = -np.log(mean_VV[tokens_NT[:, :-1], tokens_NT[:, 1:]]).mean()
    assert matched.reference_nats["mixture"] == pytest.approx(exact, abs=1e-3)


def test_mixture_is_by_the_topic_of_the_token_to_come(boosted: Corpus) -> None:
    """Counted in the training split: how often each topic follows a token, one added."""
    train_NT, val_NT = boosted.train.tokens_NT, boosted.val.tokens_NT[: boosted.facts["held_out_sequences"]]
    follows_VS = np.ones((64, 3))
    np.add.at(follows_VS, (train_NT[:, :-1], boosted.train.topics_NT[:, 1:]), 1)
    follows_VS /= follows_VS.sum(1, keepdims=True)
    blind_VV = np.einsum("vs,svw->vw", follows_VS, boosted.oracle.transitions_SVV)  # type: ignore[union-attr]
    exact = -np.log(blind_VV[val_NT[:, :-1], val_NT[:, 1:]]).mean()
    assert boosted.reference_nats["mixture"] == pytest.approx(exact, rel=1e-9)


def test_training_and_validation_draw_tokens_of_their_own(matched: Corpus) -> None:
    """A sequence's first token depends on no topic: one of each split are equal as often as two random tokens."""
    equal = (matched.train.tokens_NT[:2000, 0] == matched.val.tokens_NT[:, 0]).mean()
    assert equal == pytest.approx(1 / 64, abs=4 * math.sqrt(1 / 64 / 2000))


def test_one_token_tells_nothing_on_matched_and_the_topic_on_original(matched: Corpus, boosted: Corpus) -> None:
    facts = matched.facts
    assert abs(facts["token_identity_accuracy"] - 1 / 3) < 4 * facts["token_identity_accuracy_se"] < 0.02
    assert boosted.facts["token_identity_accuracy"] > 0.9
    assert facts["bayes_topic_accuracy"] > 0.95  # the topic is there to be found, in the transitions


def simple_losses(corpus: Corpus) -> dict[str, np.ndarray]:
    """Losses [N, T-1] on held-out data of predictors that are no Bayes filter."""
    transitions_SVV = corpus.oracle.transitions_SVV.astype(np.float64)  # type: ignore[union-attr]
    train_NT, tokens_NT = corpus.train.tokens_NT, corpus.val.tokens_NT.astype(int)
    vocab_size, length = corpus.vocab_size, tokens_NT.shape[1]
    before, after = tokens_NT[:, :-1], tokens_NT[:, 1:]
    bigrams_VV = np.full((vocab_size, vocab_size), 0.5)
    np.add.at(bigrams_VV, (train_NT[:, :-1], train_NT[:, 1:]), 1)
    emission_SNT = transitions_SVV[:, before, after]

    # Hidden Markov filters with a constant chance of a new segment, over a grid of chances.
    losses = {}
    for hazard in (0.005, 0.01, 0.02, 0.04):
        posterior_SN, loss_NT = np.full((corpus.num_topics, len(tokens_NT)), 1 / corpus.num_topics), []
        for t in range(length - 1):
            joint_SN = ((1 - hazard) * posterior_SN + hazard / corpus.num_topics) * emission_SNT[..., t]
            loss_NT.append(-np.log(joint_SN.sum(0)))
            posterior_SN = joint_SN / joint_SN.sum(0)
        losses[f"hidden Markov filter, hazard {hazard}"] = np.stack(loss_NT, axis=1)

    evidence_NT = logsumexp(np.log(emission_SNT).cumsum(2), axis=0) - math.log(corpus.num_topics)
    losses["no segment ends"] = -np.diff(evidence_NT, axis=1, prepend=0)
    losses["uniform"] = np.full(before.shape, math.log(vocab_size))
    losses["unigram"] = -np.log(np.bincount(train_NT.ravel(), minlength=vocab_size) / train_NT.size)[after]
    losses["bigram"] = -np.log(bigrams_VV / bigrams_VV.sum(1, keepdims=True))[before, after]
    return losses


def advantage(loss_NT: np.ndarray, floor_NT: np.ndarray) -> float:
    """By how many standard errors over sequences the loss lies above the floor."""
    difference_N = (loss_NT - floor_NT).mean(1)
    return difference_N.mean() / (difference_N.std(ddof=1) / math.sqrt(len(difference_N)))


@pytest.mark.parametrize("which", ["matched", "boosted"])
def test_nothing_beats_the_bayes_floor(which: str, request: pytest.FixtureRequest) -> None:
    corpus = request.getfixturevalue(which)
    floor_NT, posterior_NTS = corpus.oracle.filter(corpus.val.tokens_NT)
    assert floor_NT.mean() == pytest.approx(corpus.reference_nats["floor"], abs=1e-12)
    assert np.abs(posterior_NTS.sum(2) - 1).max() < 1e-12
    for name, loss_NT in simple_losses(corpus).items():
        assert advantage(loss_NT, floor_NT) > 3, name
    # A predictor that is told the topic, and so could beat the floor, does: the comparison can fail.
    tokens_NT, topics_NT = corpus.val.tokens_NT, corpus.val.topics_NT
    told_NT = -np.log(corpus.oracle.transitions_SVV[topics_NT[:, 1:], tokens_NT[:, :-1], tokens_NT[:, 1:]])
    assert advantage(told_NT, floor_NT) < -3
    assert told_NT.mean() == pytest.approx(corpus.facts["known_topic_entropy_nats"], abs=0.02)


def miscalibration(posterior_NTS: np.ndarray, topics_NT: np.ndarray, low: float, high: float) -> float:
    """By how many standard errors over sequences the topics' share differs from the probabilities in a range."""
    here_NTS = (posterior_NTS >= low) & (posterior_NTS <= high)
    residual_NTS = (topics_NT[..., None] == np.arange(posterior_NTS.shape[2])) - posterior_NTS
    residual_N = (residual_NTS * here_NTS).sum((1, 2))
    assert np.count_nonzero(here_NTS) > 500
    return residual_N.sum() / math.sqrt((residual_N**2).sum())


def test_topic_posterior_is_calibrated(matched: Corpus) -> None:
    """Where the filter gives a topic probability p, the topic is there in a share p of the cases."""
    assert matched.oracle is not None
    _, posterior_NTS = matched.oracle.filter(matched.val.tokens_NT)
    sharper_NTS = posterior_NTS**2 / (posterior_NTS**2).sum(2, keepdims=True)
    ranges = [(0.0, 0.05), (0.05, 0.3), (0.3, 0.7), (0.7, 0.95), (0.95, 1.0)]
    assert max(abs(miscalibration(posterior_NTS, matched.val.topics_NT, *limits)) for limits in ranges) < 3.5
    assert max(abs(miscalibration(sharper_NTS, matched.val.topics_NT, *limits)) for limits in ranges) > 6


def test_a_build_is_a_function_of_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = replace(LAPTOP, train_sequences=300, val_sequences=64)
    for name, cores in (("one", 1), ("two", 2), ("other", 2)):
        monkeypatch.setattr("headdyn.core.threads.usable_cores", lambda cores=cores: cores)
        (tmp_path / name).mkdir()
        (replace(source, seed=1) if name == "other" else source).build(tmp_path / name)
    for file in ("train_tokens.npy", "train_topics.npy", "val_tokens.npy", "transitions.npy", "facts.json"):
        one, two, other = ((tmp_path / name / file).read_bytes() for name in ("one", "two", "other"))
        assert one == two != other
    assert json.loads((tmp_path / "one" / "facts.json").read_text())["train_tokens"] == 300 * 128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generator": "markov"}, "data.generator='markov' must be one of matched, original"),
        ({"vocab_size": 70_000}, "data.vocab_size=70000 must be at most 65536"),
        ({"vocab_size": 1}, "data.vocab_size=1 must be at least 2"),
        ({"vocab_size": 65_536}, r"need tables of 48 GiB each.*set vocab_size to 18918 or less"),
        ({"num_topics": 1}, "data.num_topics=1 must be at least 2"),
        ({"num_topics": 257}, "data.num_topics=257 must be at most 256"),
        ({"sequence_length": 1}, "data.sequence_length=1 must be at least 2"),
        ({"sequence_length": 63}, r"need 64 tokens, but data.sequence_length=63; lower min_segment to 15 or less"),
        ({"min_segments": 5}, "data.min_segments=5 and data.max_segments=4 are no range"),
        ({"min_segments": 0}, "data.min_segments=0 must be at least 1"),
        ({"min_segment": 0}, "data.min_segment=0 must be at least 1"),
        ({"train_sequences": 0}, "data.train_sequences=0 must be at least 1"),
        ({"val_sequences": 0}, "data.val_sequences=0 must be at least 1"),
        ({"target_gap_nats": 4.2}, r"data.target_gap_nats=4.2 must lie between 0 and ln V = 4.159 nats"),
        ({"target_gap_nats": 0.0}, "data.target_gap_nats=0.0 must be above 0"),
        ({"target_gap_nats": float("nan")}, "data.target_gap_nats=nan must be a finite number"),
        ({"target_gap_nats": None}, "data.target_gap_nats=None must lie between 0"),
        ({"generator": "original", "concentration": None}, "data.concentration=null must be a number above 0"),
        ({"generator": "original", "concentration": 0.0}, "data.concentration=0.0 must be above 0"),
        ({"generator": "original", "concentration": float("inf")}, "data.concentration=inf must be a finite number"),
        (
            {"generator": "original", "vocab_size": 2},
            "leaves no own token to each of data.num_topics=3; set vocab_size to 3",
        ),
        ({"seed": -1}, "data.seed=-1 must be at least 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_impossible_settings(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(MicroLanguages, {**asdict(LAPTOP), **change}, "data")
    with pytest.raises(ValueError):
        replace(LAPTOP, **change)  # type: ignore[arg-type]


def test_the_original_generator_answers_to_its_former_name() -> None:
    assert replace(LAPTOP, generator="seed") == replace(LAPTOP, generator="original") != LAPTOP


def test_settings_are_checked_without_torch() -> None:
    code = "import sys, headdyn.data.micro_languages, headdyn.data.ordering; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
