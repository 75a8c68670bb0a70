"""Mixtures of chains: sequences of K chains and no others, fresh ones of others, and the lines in their order."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headdyn.core.settings import ConfigError, build
from headdyn.data.corpus import Corpus
from headdyn.studies.landmarks.markov_phases.corpus import PREDICTORS, MarkovMixture, MixtureFilter

SMALL: dict[str, Any] = {"num_states": 3, "train_sequences": 64, "val_sequences": 200, "seed": 2}


def made(folder: Path, **change: Any) -> Corpus:
    source = MarkovMixture(**{**SMALL, **change})
    source.build(folder)
    return source.open(folder)


def chain_of(tokens_T: np.ndarray) -> np.ndarray:
    counts_VV = np.zeros((3, 3))
    np.add.at(counts_VV, (tokens_T[:-1].astype(int), tokens_T[1:].astype(int)), 1)
    return counts_VV / counts_VV.sum(1, keepdims=True)


def test_every_sequence_follows_one_of_the_chains_and_a_fresh_one_does_not(tmp_path: Path) -> None:
    corpus = made(tmp_path, num_chains=3, sequence_length=3_000, train_sequences=16, val_sequences=2)
    mixture = corpus.oracle
    assert isinstance(mixture, MixtureFilter)

    def distances(tokens_NT: np.ndarray) -> np.ndarray:
        """How far each sequence's transitions are from the nearest chain of the mixture."""
        return np.array([np.abs(mixture.chains_KVV - chain_of(row)).max((1, 2)).min() for row in tokens_NT])

    assert distances(np.asarray(corpus.train.tokens_NT)).max() < 0.12
    assert distances(mixture.fresh(16)).mean() > 0.25
    nearest = {int(np.abs(mixture.chains_KVV - chain_of(r)).max((1, 2)).argmin()) for r in corpus.train.tokens_NT}
    assert nearest == {0, 1, 2}


def test_stationary_laws_are_those_of_the_chains(tmp_path: Path) -> None:
    mixture = made(tmp_path, num_chains=5).oracle
    assert isinstance(mixture, MixtureFilter)
    for chain_VV, law_V in zip(mixture.chains_KVV, mixture.stationary_KV, strict=True):
        values, vectors = np.linalg.eig(chain_VV.T)
        exact_V = np.real(vectors[:, np.argmax(np.real(values))])
        np.testing.assert_allclose(law_V, exact_V / exact_V.sum(), atol=1e-12)


def test_bigram_retrieval_is_the_floor_and_no_predictor_is_below_it(tmp_path: Path) -> None:
    corpus = made(tmp_path, num_chains=4)
    lines = corpus.reference_nats
    assert lines["random"] == math.log(3) and lines["floor"] == lines["bigram_retrieval"]
    assert min(lines[name] for name in PREDICTORS) == lines["floor"]
    assert lines["bigram_inference"] < lines["unigram_inference"] and lines["unigram_retrieval"] > lines["floor"] + 0.05
    assert corpus.oracle is not None
    loss_NT, _ = corpus.oracle.filter(np.asarray(corpus.val.tokens_NT))
    assert loss_NT.mean() == pytest.approx(lines["floor"], abs=1e-12)


def test_with_many_chains_retrieval_gains_little_over_inference(tmp_path: Path) -> None:
    few, many = (made(_folder(tmp_path, k), num_chains=k).reference_nats for k in (2, 2_000))
    gains = [lines["bigram_inference"] - lines["bigram_retrieval"] for lines in (few, many)]
    assert gains[0] > 0.05 > 0.01 > gains[1] > -0.01


def _folder(parent: Path, chains: int) -> Path:
    (parent / str(chains)).mkdir()
    return parent / str(chains)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.num_chains=0 must be at least 1"):
        build(MarkovMixture, {**SMALL, "num_chains": 0}, "data")


def test_tables_that_no_memory_holds_are_refused() -> None:
    # 8 bytes x 65,536 chains x (3 x 64 x 64 entries + 4 x 256 weights) are 6.5 GiB.
    sizes = {"num_chains": 65536, "num_states": 64, "train_sequences": 64, "val_sequences": 256, "seed": 0}
    with pytest.raises(ConfigError, match=r"data\.num_chains=65536 .* hold 6\.5 GiB at a time, over 4; lower one"):
        build(MarkovMixture, sizes, "data")
    assert build(MarkovMixture, {**sizes, "num_states": 10}, "data").table_bytes == 4 * 65536 * 10 * 10
