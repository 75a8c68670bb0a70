"""Fresh chains: their law, their tokens, their lines, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headdyn.core.settings import ConfigError, build
from headdyn.studies.landmarks.statistical_induction.corpus import FreshChains

SMALL: dict[str, Any] = {"train_sequences": 32, "val_sequences": 200, "seed": 3}


def chains(rows: str, count: int = 4_000) -> np.ndarray:
    source = FreshChains(rows=rows, **SMALL)  # type: ignore[arg-type]
    return source.draw_chains(count, np.random.default_rng(1)).astype(float)


def test_dirichlet_rows_have_the_moments_of_their_law_and_differ_between_sequences() -> None:
    rows_XV = chains("dirichlet").reshape(-1, 3)
    np.testing.assert_allclose(rows_XV.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(rows_XV.mean(0), 1 / 3, atol=0.01)
    np.testing.assert_allclose(rows_XV.var(0), 1 / 18, atol=0.002)  # of Dirichlet(1, 1, 1)


def test_doubly_stochastic_chains_keep_all_symbols_equally_common_and_still_vary() -> None:
    chains_NVV = chains("doubly_stochastic")
    np.testing.assert_allclose(chains_NVV.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(chains_NVV.sum(2), 1, atol=1e-5)
    assert chains_NVV.std(0).min() > 0.1
    assert np.abs(chains("dirichlet").sum(1) - 1).max() > 0.5  # the other kind is not


@pytest.mark.parametrize("rows", ["dirichlet", "doubly_stochastic"])
def test_tokens_follow_one_chain_a_sequence(rows: str, tmp_path: Path) -> None:
    source = FreshChains(rows=rows, sequence_length=4_000, train_sequences=8, val_sequences=2, seed=0)  # type: ignore[arg-type]
    source.build(tmp_path)
    corpus = source.open(tmp_path)
    first, second = (_frequencies(np.asarray(corpus.train.tokens_NT[n])) for n in (0, 1))
    late = _frequencies(np.asarray(corpus.train.tokens_NT[0, 2_000:]))
    np.testing.assert_allclose(first, late, atol=0.08)
    assert np.abs(first - second).max() > 0.15


def _frequencies(tokens_T: np.ndarray) -> np.ndarray:
    counts_VV = np.zeros((3, 3))
    np.add.at(counts_VV, (tokens_T[:-1].astype(int), tokens_T[1:].astype(int)), 1)
    return counts_VV / counts_VV.sum(1, keepdims=True)


def test_lines_are_in_their_order_and_the_floor_is_the_bigram_predictor(tmp_path: Path) -> None:
    source = FreshChains(**SMALL)
    source.build(tmp_path)
    corpus = source.open(tmp_path)
    lines = corpus.reference_nats
    assert lines["random"] == math.log(3) > lines["unigram"] + 0.05 > lines["bigram"] + 0.1
    assert corpus.oracle is not None
    loss_NT, posterior_NTS = corpus.oracle.filter(np.asarray(corpus.val.tokens_NT))
    assert loss_NT.mean() == pytest.approx(lines["floor"], abs=1e-12) and posterior_NTS.shape == (200, 64, 1)


def test_without_unigram_information_the_unigram_line_is_no_better_than_guessing(tmp_path: Path) -> None:
    source = FreshChains(rows="doubly_stochastic", **SMALL)
    source.build(tmp_path)
    corpus = source.open(tmp_path)
    assert corpus.reference_nats["unigram"] > math.log(3) - 0.005
    assert corpus.oracle is None and "floor" not in corpus.reference_nats


def test_the_same_settings_give_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    tokens = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        FreshChains(**{**SMALL, "seed": seed}).build(tmp_path / name)
        tokens.append(np.load(tmp_path / name / "train_tokens.npy"))
    np.testing.assert_array_equal(tokens[0], tokens[1])
    assert (tokens[0] != tokens[2]).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": "random"}, "data.rows='random' must be one of dirichlet, doubly_stochastic"),
        ({"num_states": 1}, "data.num_states=1 must be at least 2"),
        ({"concentration": 0.0}, "data.concentration=0.0 must be above 0"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(FreshChains, {**SMALL, **change}, "data")
    assert str(error.value).startswith(message)
