"""The distances of a model from exact predictors: against PyTorch's own KL, and 0 for a model that is a predictor."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from headdyn.core.randomness import generator
from headdyn.data.corpus import Corpus
from headdyn.studies.landmarks.predictors import bigram_law, unigram_law
from headdyn.studies.landmarks.statistical_induction.analysis import PREDICTORS, InContextPredictors
from headdyn.studies.landmarks.statistical_induction.corpus import FreshChains
from tests.small_models import MHA, drawn


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    source = FreshChains(sequence_length=16, train_sequences=8, val_sequences=12, seed=0)
    source.build(tmp_path)
    return source.open(tmp_path)


def test_distances_are_the_kl_of_each_predictor_from_the_model(corpus: Corpus) -> None:
    decoder = drawn(dataclasses.replace(MHA, vocab_size=3))
    table = InContextPredictors(sequences=12)(decoder, corpus, generator(0, "test")).table.summary()
    tokens_NT = np.asarray(corpus.val.tokens_NT).astype(np.int64)
    log_model = decoder(torch.from_numpy(tokens_NT))[:, :-1].double().log_softmax(-1).detach()
    prior = corpus.facts["unigram_concentration"]
    laws = {"unigram": unigram_law(tokens_NT, 3, prior), "bigram": bigram_law(tokens_NT, 3, 1.0)}
    laws["uniform"] = np.full(laws["unigram"].shape, 1 / 3)
    assert set(laws) == set(PREDICTORS)
    for name, law in laws.items():
        kl = F.kl_div(log_model, torch.from_numpy(law), reduction="sum") / law[..., 0].size
        row = table[f"kl_{name}_nats"]
        assert row["value"] == pytest.approx(kl.item(), rel=1e-9)
        assert row["ci_low"] < row["value"] < row["ci_high"] and (row["n"], row["unit"]) == (12, "sequence")


@pytest.mark.parametrize("name", ["unigram", "bigram"])
def test_a_model_that_is_a_predictor_is_at_no_distance_from_it_alone(corpus: Corpus, name: str) -> None:
    def predictor(tokens_BT: torch.Tensor, documents_BT: None) -> torch.Tensor:
        prior = {"unigram": corpus.facts["unigram_concentration"], "bigram": 1.0}[name]
        law = {"unigram": unigram_law, "bigram": bigram_law}[name](tokens_BT.numpy(), 3, prior)
        return F.pad(torch.from_numpy(np.log(law)), (0, 0, 0, 1))

    predictor.embed = SimpleNamespace(weight=torch.zeros(1))  # type: ignore[attr-defined]
    table = InContextPredictors(sequences=12)(predictor, corpus, generator(0, "test")).table.summary()  # type: ignore[arg-type]
    distances = {other: table[f"kl_{other}_nats"]["value"] for other in PREDICTORS}
    assert distances.pop(name) == pytest.approx(0, abs=1e-12) and min(distances.values()) > 0.01
