import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from headdyn.analysis.loss import HeldOutLoss
from headdyn.analysis.loss_measure import first_times, token_losses
from headdyn.data.corpus import Corpus, Split
from headdyn.data.micro_languages import MicroLanguages
from headdyn.models.decoder import Decoder
from tests import small_models

LANGUAGES = MicroLanguages(
    generator="matched",
    vocab_size=11,
    num_topics=2,
    sequence_length=24,
    min_segments=1,
    max_segments=2,
    min_segment=6,
    train_sequences=8,
    val_sequences=40,
    target_gap_nats=0.8,
    concentration=None,
    seed=0,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    LANGUAGES.build(folder)
    return LANGUAGES.open(folder)


@pytest.fixture(scope="module")
def decoder(corpus):
    return small_models.drawn(dataclasses.replace(small_models.MHA, vocab_size=corpus.vocab_size))


def test_losses_are_cross_entropies_of_the_next_token(corpus, decoder):
    loss_NT = token_losses(decoder, corpus, 5)
    tokens_NT = torch.from_numpy(np.asarray(corpus.val.tokens_NT[:5]).astype(np.int64))
    with torch.no_grad():
        for n in range(5):
            logits_TV = decoder(tokens_NT[n : n + 1])[0]
            for t in range(tokens_NT.shape[1] - 1):
                by_hand = -F.log_softmax(logits_TV[t].double(), -1)[tokens_NT[n, t + 1]].item()
                assert loss_NT[n, t] == pytest.approx(by_hand, abs=1e-5)


def test_uniform_logits_lose_ln_v_and_close_none_of_the_gap(corpus):
    decoder = small_models.drawn(dataclasses.replace(small_models.MHA, vocab_size=corpus.vocab_size))
    torch.nn.init.zeros_(decoder.unembed.weight)
    summary = HeldOutLoss(sequences=40)(decoder, corpus, np.random.default_rng(0)).table.summary()
    assert summary["loss_nats"]["value"] == pytest.approx(math.log(11), abs=1e-6)
    assert summary["gap_closed"]["value"] == pytest.approx(0, abs=1e-6)
    assert summary["loss_nats"]["n"] == 40


class BayesModel:
    """A stand-in decoder whose logits are the exact Bayes predictive law, or a sharpened version of it."""

    def __init__(self, corpus: Corpus, sharpness: float = 1.0) -> None:
        self.corpus, self.sharpness = corpus, sharpness
        self.embed = torch.nn.Embedding(1, 1)

    def __call__(self, tokens_BT: torch.Tensor, documents_BT: None = None) -> torch.Tensor:
        vocab = self.corpus.vocab_size
        logits = torch.zeros(*tokens_BT.shape, vocab)
        for t in range(tokens_BT.shape[1] - 1):
            for token in range(vocab):
                asked = tokens_BT.numpy().copy()
                asked[:, t + 1] = token
                loss_NT, _ = self.corpus.oracle.filter(asked[:, : t + 2].astype(np.uint16))
                logits[:, t, token] = torch.from_numpy(-loss_NT[:, t] * self.sharpness)
        return logits


def test_the_bayes_law_itself_closes_the_gap_exactly_and_a_sharpened_one_does_not(corpus):
    few = dataclasses.replace(corpus, val=Split(tokens_NT=corpus.val.tokens_NT[:6], topics_NT=corpus.val.topics_NT[:6]))
    exact = HeldOutLoss()(BayesModel(few), few, np.random.default_rng(0)).table.summary()
    assert exact["excess_nats"]["value"] == pytest.approx(0, abs=1e-5)
    assert exact["gap_closed"]["value"] == pytest.approx(1, abs=1e-5)
    assert exact["gap_closed_from_mixture"]["value"] == pytest.approx(1, abs=1e-5)
    sharpened = HeldOutLoss()(BayesModel(few, 1.5), few, np.random.default_rng(0)).table.summary()
    assert sharpened["excess_nats"]["value"] > 0.01
    mixture, loss = few.reference_nats["mixture"], sharpened["loss_nats"]["value"]
    by_hand = (mixture - loss) / (mixture - loss + sharpened["excess_nats"]["value"])
    assert sharpened["gap_closed_from_mixture"]["value"] == pytest.approx(by_hand, abs=1e-9)
    blind = dataclasses.replace(few, reference_nats={"random": math.log(11)})
    absent = HeldOutLoss()(BayesModel(few), blind, np.random.default_rng(0)).table.summary()
    assert absent["gap_closed_from_mixture"]["reason"] == "the corpus has no topic-blind line"


def test_loss_by_topic_of_a_model_that_is_worse_on_one(corpus):
    """The law itself where the next token is of topic 1, uniform where it is of topic 0: all excess is on topic 0."""
    few = dataclasses.replace(corpus, val=Split(tokens_NT=corpus.val.tokens_NT[:6], topics_NT=corpus.val.topics_NT[:6]))
    topics_NT = np.asarray(few.val.topics_NT)

    class Forgetful(BayesModel):
        def __call__(self, tokens_BT: torch.Tensor, documents_BT: None = None) -> torch.Tensor:
            logits = super().__call__(tokens_BT)
            return torch.where(torch.from_numpy(np.roll(topics_NT, -1, axis=1) == 1)[..., None], logits, 0.0)

    findings = HeldOutLoss()(Forgetful(few), few, np.random.default_rng(0))
    summary = findings.table.summary()
    bayes_NT, _ = few.oracle.filter(few.val.tokens_NT)
    by_hand = (math.log(11) - bayes_NT)[topics_NT[:, 1:] == 0].mean()
    assert summary["first_topic_excess_nats"]["value"] == pytest.approx(by_hand, abs=1e-5)
    assert summary["last_topic_excess_nats"]["value"] == pytest.approx(0, abs=1e-5)
    assert summary["forgetting_nats"]["value"] == pytest.approx(by_hand, abs=1e-5) and by_hand > 0.1
    assert set(findings.figures) == {"by_position", "by_topic"}


def test_without_an_exact_law_the_floor_is_absent_with_a_reason(corpus, decoder):
    table = HeldOutLoss()(decoder, dataclasses.replace(corpus, oracle=None), np.random.default_rng(0)).table
    summary = table.summary()
    assert "no exact law" in summary["gap_closed"]["reason"] and "value" not in summary["gap_closed"]
    assert sorted(table.table["metric"].to_pylist()) == sorted(HeldOutLoss.metrics)  # one row a metric, absent or not
    assert "value" in summary["loss_nats"] and "value" in summary["in_context_nats"]


def test_a_documents_first_token_is_not_scored_where_attention_stays_inside_documents(corpus, decoder):
    documents_NT = np.repeat([[0] * 12 + [1] * 12], 40, axis=0).astype(np.uint16)
    masked = dataclasses.replace(
        corpus, val=dataclasses.replace(corpus.val, documents_NT=documents_NT), mask_documents=True, oracle=None
    )
    loss_NT = token_losses(decoder, masked, 4)
    assert np.isnan(loss_NT[:, 11]).all() and np.isfinite(np.delete(loss_NT, 11, axis=1)).all()
    alone = dataclasses.replace(
        corpus, val=Split(tokens_NT=corpus.val.tokens_NT[:, 12:], topics_NT=corpus.val.topics_NT[:, 12:])
    )
    # RoPE sees only distances, so the second document alone must lose the same; unmasked it does not.
    np.testing.assert_allclose(loss_NT[:, 12:], token_losses(decoder, alone, 4), atol=1e-4)
    unmasked_NT = token_losses(decoder, corpus, 4)
    assert np.abs(unmasked_NT[:, 12:] - loss_NT[:, 12:]).max() > 1e-2


def test_first_times_by_hand():
    tokens_NT = np.array([[1, 2, 1, 2, 2, 2, 2], [3, 3, 3, 4, 3, 3, 4]])
    np.testing.assert_array_equal(first_times(tokens_NT), [[0, 1, 0, 3, 3, 3], [0, 0, 2, 3, 0, 2]])


def test_loss_on_repeated_pairs_and_by_position_are_means_over_those_tokens(corpus, decoder):
    summary = HeldOutLoss(sequences=40, bootstrap_draws=100)(decoder, corpus, np.random.default_rng(0)).table.summary()
    loss_NT, tokens_NT = token_losses(decoder, corpus, 40), np.asarray(corpus.val.tokens_NT)
    repeated, first = [], []
    for tokens_T, loss_T in zip(tokens_NT.tolist(), loss_NT, strict=True):
        pairs = list(itertools.pairwise(tokens_T))
        for t, pair in enumerate(pairs):
            if pair in pairs[:t] and pair[0] != pair[1]:
                repeated.append(loss_T[t])
                first.append(loss_T[pairs.index(pair)])
    assert summary["repeated_pairs_nats"]["value"] == pytest.approx(np.mean(repeated), abs=1e-9)
    assert summary["repeated_pairs_nats"]["null"] == pytest.approx(np.mean(first), abs=1e-9)
    assert summary["repeat_gain_nats"]["value"] == pytest.approx(np.mean(first) - np.mean(repeated), abs=1e-9)
    score = loss_NT[:, 20:].mean() - loss_NT[:, 1:3].mean()  # of 23 losses those above 90 %, and from 5 to 15 %
    assert summary["in_context_nats"]["value"] == pytest.approx(score, abs=1e-9)


def sequences_of(tokens_NT: np.ndarray, corpus: Corpus) -> Corpus:
    tokens_NT = tokens_NT.astype(np.uint16)
    return dataclasses.replace(corpus, oracle=None, val=Split(tokens_NT=tokens_NT, topics_NT=np.zeros_like(tokens_NT)))


class Copying:
    """A stand-in decoder: a token that followed the present one before has probability 0.9, or all have 1/V."""

    def __init__(self, vocab: int) -> None:
        self.vocab, self.embed = vocab, torch.nn.Embedding(1, 1)

    def __call__(self, tokens_BT: torch.Tensor, documents_BT: None = None) -> torch.Tensor:
        law_BTV = torch.full((*tokens_BT.shape, self.vocab), 1 / self.vocab)
        for law_TV, tokens in zip(law_BTV, tokens_BT.tolist(), strict=True):
            for t, token in enumerate(tokens):
                if token in tokens[:t]:
                    law_TV[t] = 0.1 / (self.vocab - 1)
                    law_TV[t, tokens[tokens.index(token) + 1]] = 0.9
        return law_BTV.log()


def test_a_model_that_copies_saves_exactly_what_its_law_says(corpus):
    block_NT = np.stack([np.random.default_rng(n).permutation(11) for n in range(6)])
    twice = sequences_of(np.tile(block_NT, 2), corpus)
    summary = HeldOutLoss()(Copying(11), twice, np.random.default_rng(0)).table.summary()
    assert summary["repeated_pairs_nats"]["value"] == pytest.approx(-math.log(0.9), abs=1e-6)
    assert summary["repeated_pairs_nats"]["null"] == pytest.approx(math.log(11), abs=1e-6)
    assert summary["repeat_gain_nats"]["value"] == pytest.approx(math.log(11 * 0.9), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_reads_no_context_saves_nothing_on_text_whose_tokens_follow_themselves(corpus, seed):
    """Tied embeddings predict the present token again before any training, and runs of one token are repeated pairs."""
    generator = np.random.default_rng(seed)
    text = sequences_of(generator.integers(0, 11, (60, 32)).repeat(2, axis=1), corpus)
    config = dataclasses.replace(small_models.MHA, vocab_size=11, d_model=64, tied_embeddings=True)
    decoder = Decoder(config).initialise(torch.Generator().manual_seed(seed))
    gain = HeldOutLoss()(decoder, text, generator).table.summary()["repeat_gain_nats"]["value"]
    assert abs(gain) < 0.02
    loss_NT, tokens_NT = token_losses(decoder, text, 60), text.val.tokens_NT
    repeated_NT = first_times(tokens_NT) < np.arange(63)
    assert loss_NT[~repeated_NT].mean() - loss_NT[repeated_NT].mean() > 0.2  # all repeated pairs against all others
    with torch.no_grad():
        for block in decoder.blocks:
            block.attention.o.weight.zero_()
    alone = HeldOutLoss()(decoder, text, generator).table.summary()["repeat_gain_nats"]["value"]
    assert alone == pytest.approx(0, abs=1e-6)  # no context is read
