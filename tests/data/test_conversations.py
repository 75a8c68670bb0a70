"""Conversations: the filters against sums over everything, the drawn corpus against its law, the lines against the floor."""

from __future__ import annotations

import csv
import itertools
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare

from headdyn.core.settings import ConfigError, build
from headdyn.data.conversation_filter import ConversationFilter, Speaker
from headdyn.data.conversations import Conversations
from headdyn.data.corpus import Corpus
from headdyn.data.lines import WITHOUT_SELECTION
from headdyn.data.markov import row_entropy_nats, stationary_law, unmatched_chains
from headdyn.data.ordering import TopicOrdered, dominant_topics
from headdyn.models.config import DecoderConfig
from headdyn.models.decoder import Decoder
from headdyn.plan import make_plan
from headdyn.sweep.words import worth_sentence

# The trial that science.md §18 gives figures of: laptop scale.
TRIAL = Conversations(
    speaker="marker",
    num_speakers=2,
    switch=0.5,
    evidence="transitions",
    num_symbols=32,
    num_topics=3,
    sequence_length=128,
    train_sequences=64,
    val_sequences=1000,
    target_gap_nats=1.8,
    seed=0,
)
KINDS: list[tuple[Speaker, int, int]] = [
    ("marker", 2, 8),
    ("marker", 3, 6),
    ("tag", 2, 6),
    ("tag", 3, 5),
    ("announced", 2, 7),
    ("announced", 3, 5),
    ("hidden", 2, 8),
]


def chains(vocab_size: int = 3, num_topics: int = 3) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.full(vocab_size, 0.5), size=(num_topics, vocab_size)) + 1e-3


def exact(speaker: Speaker, speakers: int, switch: float = 0.3, domains: int = 1) -> ConversationFilter:
    return ConversationFilter(chains(num_topics=3 if domains == 1 else 4), speaker, speakers, switch, domains)


def spelled(bayes: ConversationFilter, speakers_M: tuple[int, ...], symbols_M: tuple[int, ...]) -> list[int]:
    """The tokens; announced speakers are one more than the symbols."""
    size, pairs = bayes.transitions_SVV.shape[1], list(zip(speakers_M, symbols_M, strict=False))
    if bayes.speaker == "marker":
        return [token for p, x in pairs for token in (size + p, x)]
    if bayes.speaker == "announced":
        nexts = speakers_M[1:]
        return [x + size * (p * bayes.num_speakers + q) for (p, x), q in zip(pairs, nexts, strict=True)]
    return [x + (size * p if bayes.speaker == "tag" else 0) for p, x in pairs]


def enumerated(bayes: ConversationFilter, tokens_T: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Loss [T-1] and posterior [T, S] of one sequence by summing over all speakers' turns and all languages."""
    topics, size, _ = bayes.transitions_SVV.shape
    per = 2 if bayes.speaker == "marker" else 1
    count = len(tokens_T) // per
    joint_TS = np.zeros((len(tokens_T), topics))  # p(x_0..x_t, language of token t's speaker)
    symbols = tokens_T[1::2] if per == 2 else [token % size for token in tokens_T]
    announced = bayes.speaker == "announced"
    for speakers_M in itertools.product(range(bayes.num_speakers), repeat=count + announced):
        if spelled(bayes, speakers_M, tuple(symbols)) != list(tokens_T):
            continue

        def turn(m: int) -> float:
            same = speakers_M[m] == speakers_M[m - 1]  # noqa: B023
            return 1 - bayes.switch if same else bayes.switch / (bayes.num_speakers - 1)

        of_domain = topics // bayes.num_domains
        for languages in itertools.permutations(range(topics), bayes.num_speakers):
            if len({language // of_domain for language in languages}) > 1:
                continue
            p, last = 1 / bayes.num_domains / math.perm(of_domain, bayes.num_speakers), {}
            for m, (speaker, symbol) in enumerate(zip(speakers_M, symbols, strict=False)):
                if m == 0:
                    p /= bayes.num_speakers
                elif not announced:
                    p *= turn(m)
                if per == 2:
                    joint_TS[2 * m, languages[speaker]] += p
                p *= bayes.transitions_SVV[languages[speaker], last[speaker], symbol] if speaker in last else 1 / size
                last[speaker] = symbol
                p *= turn(m + 1) if announced else 1
                # Hidden, every prefix of turns comes once with each way in which they go on.
                alike = bayes.num_speakers ** (count - 1 - m) if bayes.speaker == "hidden" else 1
                joint_TS[per * m + per - 1, languages[speaker]] += p / alike
    evidence_T = joint_TS.sum(1)
    return -np.diff(np.log(evidence_T)), joint_TS / evidence_T[:, None]


def prefixes(bayes: ConversationFilter, length: int) -> np.ndarray:
    """Random conversations of the kind, as tokens."""
    rng = np.random.default_rng(1)
    count = length // (2 if bayes.speaker == "marker" else 1)
    rows = [
        spelled(
            bayes,
            tuple(rng.integers(bayes.num_speakers, size=count + (bayes.speaker == "announced")).tolist()),
            tuple(rng.integers(3, size=count).tolist()),
        )
        for _ in range(10)
    ]
    return np.array(rows)


def worst_difference(wrong: ConversationFilter, right: ConversationFilter, length: int) -> float:
    """Of the one's filter from the other's enumeration."""
    tokens_NT = prefixes(right, length)
    loss_NT, posterior_NTS = wrong.filter(tokens_NT)
    worst = 0.0
    for tokens_T, loss_T, posterior_TS in zip(tokens_NT.tolist(), loss_NT, posterior_NTS, strict=True):
        whole_loss_T, whole_TS = enumerated(right, tokens_T)
        worst = max(worst, np.abs(loss_T - whole_loss_T).max(), np.abs(posterior_TS - whole_TS).max())
    return float(worst)


@pytest.mark.parametrize("switch", [0.3, 0.9])
@pytest.mark.parametrize(("speaker", "speakers", "length"), KINDS)
def test_filters_equal_the_sum_over_everything(speaker: Speaker, speakers: int, length: int, switch: float) -> None:
    bayes = exact(speaker, speakers, switch)
    assert worst_difference(bayes, bayes, length) < 1e-12


@pytest.mark.parametrize(("speaker", "length"), [("tag", 6), ("hidden", 7)])
def test_languages_of_a_sequence_are_of_one_domain(speaker: Speaker, length: int) -> None:
    bayes = exact(speaker, 2, domains=2)
    assert worst_difference(bayes, bayes, length) < 1e-12
    assert worst_difference(replace(bayes, num_domains=1), bayes, length) > 1e-3


class FromAnyone(ConversationFilter):
    """A mutant: symbols follow the last symbol of whoever spoke it."""

    def emission(self, speakers_NM: np.ndarray, symbols_NM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return super().emission(np.zeros_like(speakers_NM), symbols_NM)


@pytest.mark.parametrize(("speaker", "speakers", "length"), KINDS)
def test_wrong_filters_fail(speaker: Speaker, speakers: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = exact(speaker, speakers)
    assert worst_difference(exact(speaker, speakers, 0.35), right, length) > 1e-3
    if speaker == "hidden":  # languages that stay with the role in place of the speaker
        monkeypatch.setattr(np, "lexsort", lambda keys: np.arange(len(keys[0])))
        assert worst_difference(right, right, length) > 1e-3
    else:
        assert worst_difference(FromAnyone(**vars(right)), right, length) > 1e-3


def test_probabilities_of_all_conversations_sum_to_one() -> None:
    everything = np.array([(0, *rest) for rest in itertools.product(range(3), repeat=6)])
    transitions_SVV = np.random.default_rng(0).dirichlet(np.ones(3), size=(3, 3))
    loss_NT, posterior_NTS = ConversationFilter(transitions_SVV, "hidden", 2, 0.3).filter(everything)
    assert np.exp(-loss_NT.sum(1)).sum() == pytest.approx(1, abs=1e-12)
    assert np.abs(posterior_NTS.sum(2) - 1).max() < 1e-12


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens_NT = np.random.default_rng(0).integers(3, size=(20, 30))
    whole = exact("hidden", 2).filter(tokens_NT)
    monkeypatch.setattr("headdyn.data.conversation_filter._CHUNK_SEQUENCES", 3)
    for one, other in zip(whole, exact("hidden", 2).filter(tokens_NT), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-13)


def test_tokens_of_other_conversations_are_refused() -> None:
    for speaker, tokens in (
        *(("marker", [3, 0, 1, 2]), ("marker", [3, 0, 4]), ("tag", [6, 0]), ("hidden", [0, 3])),
        *(("announced", [3, 0]), ("announced", [12, 0])),  # the second speaker was announced, and it is the first
    ):
        with pytest.raises(ValueError, match=f"no conversation with data.speaker={speaker}"):
            exact(speaker, 2).filter(np.array([tokens]))  # type: ignore[arg-type]


def built(settings: Conversations, folder: Path) -> Corpus:
    folder.mkdir(exist_ok=True)
    settings.build(folder)
    return settings.open(folder)


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return built(TRIAL, tmp_path_factory.mktemp("trial"))


def test_the_trial_on_record(trial: Corpus) -> None:
    facts = trial.facts
    assert facts["random_nats"] == pytest.approx((64 * math.log(32) + 63 * math.log(2)) / 127, abs=1e-12)
    assert facts["mixture_nats"] == pytest.approx(1.627, abs=0.02)
    assert facts["floor_nats"] == pytest.approx(1.228, abs=0.02)
    assert facts["bayes_topic_accuracy"] == pytest.approx(0.968, abs=0.01)
    assert facts["selection_worth_nats"] > 0.25 and facts["selection_worth_second_half_nats"] > 0.25
    assert list(trial.reference_nats) == ["random", "mixture", "position_only", "speaker_blind", "floor"]
    assert trial.vocab_size == 34 and trial.train.tokens_NT.max() == 33 and trial.num_topics == 3
    assert (trial.train.tokens_NT[:, 0::2] >= 32).all() and (trial.train.tokens_NT[:, 1::2] < 32).all()
    assert np.array_equal(trial.train.topics_NT[:, 0::2], trial.train.topics_NT[:, 1::2])


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"speaker": "tag", "evidence": "unigrams", "num_topics": 6, "switch": 0.3},
        {"speaker": "tag", "num_speakers": 3, "num_topics": 4},
        {"speaker": "announced", "evidence": "unigrams", "switch": 0.3},
        {"speaker": "hidden", "switch": 0.1},
    ],
    ids=lambda change: "-".join(map(str, change.values())),
)
def test_what_is_drawn_follows_the_law(change: dict[str, Any], tmp_path: Path) -> None:
    settings = replace(TRIAL, num_symbols=8, train_sequences=600, val_sequences=100, target_gap_nats=1.0, **change)
    corpus = built(settings, tmp_path)
    size, speakers = 8, settings.num_speakers
    tokens_NT, topics_NT = corpus.train.tokens_NT.astype(int), corpus.train.topics_NT.astype(int)
    if settings.speaker == "marker":
        speakers_NM, symbols_NM, topics_NM = tokens_NT[:, 0::2] - size, tokens_NT[:, 1::2], topics_NT[:, 1::2]
    else:  # with hidden speakers, a speaker is known by the language
        speakers_NM, symbols_NM, topics_NM = topics_NT, tokens_NT % size, topics_NT
        if settings.speaker == "announced":
            speakers_NT, next_NT = np.divmod(tokens_NT // size, speakers)
            assert np.array_equal(speakers_NT[:, 1:], next_NT[:, :-1]) and corpus.vocab_size == 4 * size
            tokens_NT = speakers_NT * size + symbols_NM
        assert settings.speaker == "hidden" or all(
            len(set(zip(t // size, s, strict=True))) <= speakers for t, s in zip(tokens_NT, topics_NT, strict=True)
        )
    switches = speakers_NM[:, 1:] != speakers_NM[:, :-1]
    assert abs(switches.mean() - settings.switch) < 4.5 * math.sqrt(
        settings.switch * (1 - settings.switch) / switches.size
    )
    assert all(len(set(row)) <= speakers for row in topics_NM)
    assert chisquare(np.bincount(topics_NM[:, 0], minlength=settings.num_topics)).pvalue > 1e-3
    counts_SVV, first_V = np.zeros((settings.num_topics, size, size)), np.zeros(size)
    for speakers_M, symbols_M, topics_M in zip(speakers_NM, symbols_NM, topics_NM, strict=True):
        last: dict[int, int] = {}
        for speaker, symbol, topic in zip(speakers_M.tolist(), symbols_M.tolist(), topics_M.tolist(), strict=True):
            if speaker in last:
                counts_SVV[topic, last[speaker], symbol] += 1
            else:
                first_V[symbol] += 1
            last[speaker] = symbol
    transitions_SVV = np.load(tmp_path / "transitions.npy").astype(float)
    expected_SVV = transitions_SVV / transitions_SVV.sum(2, keepdims=True) * counts_SVV.sum(2, keepdims=True)
    cells = expected_SVV > 5
    statistic = ((counts_SVV - expected_SVV)[cells] ** 2 / expected_SVV[cells]).sum()
    assert abs(statistic - cells.sum()) < 4.5 * math.sqrt(2 * cells.sum()) + settings.num_topics * size
    assert chisquare(first_V).pvalue > 1e-3


def advantage(loss_NT: np.ndarray, floor_NT: np.ndarray) -> float:
    difference_N = (loss_NT - floor_NT).mean(1)
    return difference_N.mean() / (difference_N.std(ddof=1) / math.sqrt(len(difference_N)))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"speaker": "tag", "evidence": "unigrams"},
        {"speaker": "announced", "evidence": "unigrams"},
        {"speaker": "hidden", "switch": 0.2},
    ],
)
def test_no_line_beats_the_floor(change: dict[str, Any], tmp_path: Path) -> None:
    settings = replace(TRIAL, val_sequences=300, **change)
    corpus = built(settings, tmp_path)
    facts, oracle = corpus.facts, corpus.oracle
    assert isinstance(oracle, ConversationFilter)
    floor_NT, posterior_NTS = oracle.filter(corpus.val.tokens_NT)
    assert floor_NT.mean() == pytest.approx(facts["floor_nats"], abs=1e-12)
    assert np.abs(posterior_NTS.sum(2) - 1).max() < 1e-12
    for name in ("random", "mixture", "position_only", "speaker_blind"):
        if f"{name}_nats" in facts:
            assert facts["floor_nats"] < facts[f"{name}_nats"] - 3 * facts[f"{name}_nats_se"], name
    assert facts["floor_nats"] < facts["mixture_nats"] < facts["random_nats"]
    worth = min(facts[f"{name}_nats"] for name in WITHOUT_SELECTION if f"{name}_nats" in facts) - facts["floor_nats"]
    assert facts["selection_worth_nats"] == worth and facts["position_only_nats"] <= facts["mixture_nats"]
    assert ("speaker_blind_nats" not in facts) == (settings.speaker == "hidden") == ("speaker_blind_absent" in facts)
    if settings.speaker == "marker":  # told the languages, a predictor beats it: the comparison can fail
        symbols_NM, speakers_NM = (
            corpus.val.tokens_NT[:, 1::2].astype(int),
            corpus.val.tokens_NT[:, 0::2].astype(int) - 32,
        )
        _, emission_NMS = oracle.emission(speakers_NM, symbols_NM)
        told_NM = -np.log(np.take_along_axis(emission_NMS, corpus.val.topics_NT[:, 1::2, None].astype(int), 2))[..., 0]
        assert advantage(oracle.token_losses(told_NM, speakers_NM), floor_NT) < -3


def test_with_hidden_speakers_evidence_is_in_neighbours_a_reply_being_uniform() -> None:
    transitions_SVV = np.array([[[0.7, 0.3], [0.4, 0.6]], [[0.2, 0.8], [0.9, 0.1]]])
    own_NM, emission_NMS = ConversationFilter(transitions_SVV, "hidden", 2, 0.1).emission(
        np.zeros((1, 4), int), np.array([[1, 0, 0, 1]])
    )
    assert own_NM.tolist() == [[-1, 1, 0, 0]]
    expected = [[0.5, 0.5], [0.9 * 0.4 + 0.05, 0.9 * 0.9 + 0.05], [0.68, 0.23], [0.32, 0.77]]
    np.testing.assert_allclose(emission_NMS[0], expected, rtol=1e-12)


def fitted(corpus: Corpus, *, masked: bool) -> np.ndarray:
    """Held-out losses [N, T-1] of a small model trained on tagged or announced speakers; masked, it reads symbols alone.

    Masked, its losses of the symbols are followed by what the turns cost, which it cannot know better.
    """
    oracle = corpus.oracle
    assert isinstance(oracle, ConversationFilter)
    size, settings = (
        oracle.transitions_SVV.shape[1],
        DecoderConfig(
            vocab_size=corpus.vocab_size, num_layers=2, d_model=32, num_heads=4, num_kv_heads=4, head_dim=8, d_ff=64
        ),
    )
    train_NT, val_NT = (
        torch.from_numpy(split.tokens_NT.astype(np.int64)) % (size if masked else corpus.vocab_size)
        for split in (corpus.train, corpus.val)
    )
    random = torch.Generator().manual_seed(0)
    decoder = Decoder(settings).initialise(random, 0.02)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=4e-3)
    for _ in range(250):
        batch = train_NT[torch.randint(len(train_NT), (32,), generator=random)]
        loss = F.cross_entropy(decoder(batch)[:, :-1].mT, batch[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        logits_NTV = decoder(val_NT)[:, :-1]
    loss_NT = F.cross_entropy(logits_NTV.mT, val_NT[:, 1:], reduction="none").double().numpy()
    if not masked:
        return loss_NT
    return oracle.token_losses(np.pad(loss_NT, ((0, 0), (1, 0))), speakers_of(corpus.val.tokens_NT, oracle))


def speakers_of(tokens_NT: np.ndarray, oracle: ConversationFilter) -> np.ndarray:
    """Who speaks, [N, T]; if announced [N, T + 1], with whom the last token announces."""
    speakers_NT = tokens_NT.astype(int) // oracle.transitions_SVV.shape[1]
    if oracle.speaker == "tag":
        return speakers_NT
    return np.concatenate([speakers_NT // 2, speakers_NT[:, -1:] % 2], axis=1)


@pytest.mark.parametrize("speaker", ["tag", "announced"])  # announced: as on the matrix's corpus
def test_models_stay_above_their_lines(speaker: Speaker, tmp_path: Path) -> None:
    """A model beats no floor, and one that cannot see who speaks not the speaker-blind line; one that can, does."""
    small = {"num_symbols": 8, "sequence_length": 32, "target_gap_nats": 1.2}
    change = {
        "speaker": speaker,
        "evidence": "unigrams",
        "row_spread": 0.3,
        "train_sequences": 6400,
        "val_sequences": 500,
    }
    corpus = built(replace(TRIAL, **small, **change), tmp_path)  # type: ignore[arg-type]
    oracle = corpus.oracle
    assert isinstance(oracle, ConversationFilter)
    tokens_NT = corpus.val.tokens_NT.astype(int)
    floor_NT, _ = oracle.filter(tokens_NT)
    blind_NM = np.pad(oracle.without_speakers(tokens_NT % 8)[0], ((0, 0), (1, 0)))
    blind_NT = oracle.token_losses(blind_NM, speakers_of(tokens_NT, oracle))
    assert blind_NT.mean() == pytest.approx(corpus.facts["speaker_blind_nats"], abs=1e-12)
    seeing_NT, masked_NT = (fitted(corpus, masked=masked) for masked in (False, True))
    assert advantage(seeing_NT, floor_NT) > 3
    assert advantage(masked_NT, blind_NT) > 3
    assert advantage(seeing_NT, blind_NT) < -3  # the line can be passed by one who sees


def test_selecting_is_worth_little_in_long_turns(trial: Corpus, tmp_path: Path) -> None:
    seldom = built(replace(TRIAL, switch=0.02, val_sequences=300), tmp_path).facts
    assert 0 < seldom["selection_worth_nats"] < 0.2 * trial.facts["selection_worth_nats"]


def test_unmatched_languages_have_the_gap_asked_for_and_tell_themselves_by_single_symbols() -> None:
    for size, gap in ((8, 0.5), (32, 1.8)):
        for chain_VV in unmatched_chains(size, 3, gap, np.random.default_rng(0)):
            law_V = stationary_law(chain_VV)
            assert math.log(size) - law_V @ row_entropy_nats(chain_VV) == pytest.approx(gap, rel=0.02)
            assert math.log(size) + law_V @ np.log(law_V) > 0.2 * gap  # matched chains: 0
        for chain_VV in unmatched_chains(size, 2, gap, np.random.default_rng(0), row_spread=0.0):
            assert np.ptp(chain_VV, axis=0).max() < 1e-6  # all rows alike
            assert math.log(size) - row_entropy_nats(chain_VV)[0] == pytest.approx(gap, rel=0.02)


def test_a_build_is_a_function_of_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = replace(TRIAL, val_sequences=64)
    for name, cores in (("one", 1), ("two", 2), ("other", 2)):
        monkeypatch.setattr("headdyn.core.threads.usable_cores", lambda cores=cores: cores)
        built(replace(source, seed=1) if name == "other" else source, tmp_path / name)
    for file in ("train_tokens.npy", "train_topics.npy", "val_tokens.npy", "transitions.npy", "facts.json"):
        one, two, other = ((tmp_path / name / file).read_bytes() for name in ("one", "two", "other"))
        assert one == two != other
    assert json.loads((tmp_path / "one" / "facts.json").read_text())["held_out_sequences"] == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_domains": 2}, "data.num_domains=2 must divide data.num_topics=3"),
        ({"num_domains": 3}, "needs a language for each speaker, but data.num_topics=3 in 3 domains; raise num_topics"),
        ({"speaker": "voice"}, "data.speaker='voice' must be one of marker, tag, announced, hidden"),
        ({"switch": 1.2}, "data.switch=1.2 must be at most 1"),
        ({"switch": -0.1}, "data.switch=-0.1 must be at least 0"),
        ({"evidence": "none"}, "data.evidence='none' must be one of transitions, unigrams"),
        ({"num_speakers": 1}, "data.num_speakers=1 must be at least 2"),
        (
            {"num_speakers": 4},
            "data.num_speakers=4 needs a language for each speaker, but data.num_topics=3; raise num_topics",
        ),
        (
            {"num_speakers": 9},
            "data.num_speakers=9 needs a language for each speaker, but data.num_topics=3; lower num_speakers",
        ),
        (
            {"num_speakers": 6, "num_topics": 8},
            "allow 20160 assignments of languages to speakers, over 1000; lower one",
        ),
        ({"speaker": "hidden", "num_speakers": 3}, "data.num_speakers=3 must be 2 under data.speaker=hidden"),
        ({"sequence_length": 127}, "data.sequence_length=127 must be even"),
        ({"target_gap_nats": 3.5}, "data.target_gap_nats=3.5 must lie below ln V = 3.466"),
        ({"num_symbols": 1}, "data.num_symbols=1 must be at least 2"),
        ({"num_symbols": 5000}, "data.num_symbols=5000 must be at most 4096"),
    ],
)
def test_impossible_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Conversations, {**asdict(TRIAL), **change}, "data")


def test_an_ordering_sorts_by_domain(tmp_path: Path) -> None:
    corpus = built(replace(TRIAL, num_topics=6, num_domains=3, val_sequences=20), tmp_path)
    labels_NT, names = corpus.order_labels()
    assert names == ("domain 0", "domain 1", "domain 2")
    assert np.array_equal(labels_NT, corpus.train.topics_NT // 2)
    assert (labels_NT == labels_NT[:, :1]).all() and len(np.unique(labels_NT)) == 3
    dominant_N = dominant_topics(labels_NT, 3)
    order_N = TopicOrdered().epoch(dominant_N, np.random.default_rng(0))
    assert (np.diff(labels_NT[order_N, 0].astype(int)) >= 0).all()


def test_the_matrix_trains_on_what_its_pilot_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the pilot's record: selecting is worth more than 0.2 nats there, and models came within 0.1 nats of the floor."""
    monkeypatch.setenv("HEADDYN_OUT", str(tmp_path))
    chosen = make_plan(["-m", "experiment=matrix"]).jobs[0].data
    assert isinstance(chosen, Conversations)
    with (Path(__file__).parents[2] / "experiments" / "matrix_pilot" / "pilot.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = ("speaker", "evidence", "switch", "num_symbols", "num_topics", "row_spread", "target_gap_nats")
    of_choice = [row for row in rows if all(row[name] == str(getattr(chosen, name)) for name in columns)]
    assert {row["position_enc"] for row in of_choice} >= {"rope", "nope"}
    assert all(float(row["excess_nats"]) < 0.1 and float(row["selectivity_points"]) > 4 for row in of_choice)
    facts = built(replace(chosen, train_sequences=64, val_sequences=300), tmp_path / "corpus").facts
    assert facts["selection_worth_nats"] == pytest.approx(float(of_choice[0]["selection_worth_nats"]), abs=0.02)
    assert facts["selection_worth_nats"] > 0.2


def test_the_option_composes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADDYN_OUT", str(tmp_path))
    (job,) = make_plan(["data=conversations", "data.switch=0.1", "data.speaker=hidden"]).jobs
    assert isinstance(job.data, Conversations) and (job.data.switch, job.data.speaker) == (0.1, "hidden")


@pytest.mark.parametrize(
    "change, reason",
    [
        ({}, None),
        ({"speaker": "hidden"}, "it is the floor here"),
        ({"num_speakers": 3}, "there is an exact law only for two speakers"),
        ({"chains": "fresh"}, "there is no exact law for it where every sequence has languages of its own"),
    ],
)
def test_a_missing_speaker_blind_line_has_its_reason(
    change: dict[str, Any], reason: str | None, tmp_path: Path
) -> None:
    facts = built(replace(TRIAL, train_sequences=4, val_sequences=8, **change), tmp_path).facts
    assert facts.get("speaker_blind_absent") == reason and ("speaker_blind_nats" in facts) == (reason is None)
    assert (f"Exact inference that does not know who speaks is left out: {reason}." in worth_sentence([facts])) == (
        reason is not None
    )
