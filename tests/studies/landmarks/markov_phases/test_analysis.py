"""Distances from retrieval and inference: 0 for a model that is the predictor, there and on fresh chains."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from headdyn.core.randomness import generator
from headdyn.data.micro_languages import MicroLanguages
from headdyn.studies.landmarks.markov_phases.analysis import MixturePredictors
from headdyn.studies.landmarks.markov_phases.corpus import PREDICTORS, MarkovMixture, MixtureFilter


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_model_that_is_a_predictor_is_at_no_distance_from_it_alone(tmp_path: Path, name: str) -> None:
    source = MarkovMixture(num_chains=3, num_states=4, sequence_length=24, train_sequences=4, val_sequences=10, seed=0)
    source.build(tmp_path)
    corpus = source.open(tmp_path)
    assert isinstance(corpus.oracle, MixtureFilter)
    mixture = corpus.oracle

    def predictor(tokens_BT: torch.Tensor, documents_BT: None) -> torch.Tensor:
        return F.pad(torch.from_numpy(np.log(mixture.laws(tokens_BT.numpy())[name])), (0, 0, 0, 1))

    predictor.embed = SimpleNamespace(weight=torch.zeros(1))  # type: ignore[attr-defined]
    analysis = MixturePredictors(sequences=10)
    analysis.check(corpus)
    table = analysis(predictor, corpus, generator(0, "test")).table.summary()
    assert set(table) == set(analysis.metrics)
    for where in ("", "_fresh"):
        distances = {other: table[f"kl_{other}{where}_nats"]["value"] for other in PREDICTORS}
        assert distances.pop(name) == pytest.approx(0, abs=1e-12) and min(distances.values()) > 0.005


def test_a_corpus_that_is_no_mixture_is_refused_before_training() -> None:
    corpus = SimpleNamespace(name="micro_languages")
    with pytest.raises(ValueError, match=r"data=micro_languages has none; use data=markov_mixture"):
        MixturePredictors().check(corpus)  # type: ignore[arg-type]
    assert MicroLanguages.__module__.rpartition(".")[2] == corpus.name
