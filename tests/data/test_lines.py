"""The lines against sums written out, and what they say of selecting."""

from __future__ import annotations

import numpy as np
import pytest

from headdyn.data.lines import line_facts, mixture, position_only, reference_nats


def test_mixture_of_a_hand_worked_case() -> None:
    prior_NMS = np.array([[[0.25, 0.75], [0.25, 0.75], [1.0, 0.0]]])
    emission_NMS = np.array([[[0.9, 0.2], [0.1, 0.8], [0.5, 0.5]]])
    by_hand = -np.log([[0.25 * 0.9 + 0.75 * 0.2, 0.25 * 0.1 + 0.75 * 0.8, 0.5]])
    np.testing.assert_allclose(mixture(prior_NMS, emission_NMS), by_hand, rtol=1e-12)


def evidence(topics_NM: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Priors and emissions of symbols drawn from two laws over four symbols, by the topic of each."""
    laws_SV = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]])
    symbols_NM = (rng.random(topics_NM.shape)[..., None] > laws_SV.cumsum(1)[topics_NM]).sum(2)
    return np.full((*topics_NM.shape, 2), 0.5), laws_SV[:, symbols_NM].transpose(1, 2, 0)


@pytest.mark.parametrize("turn", [4, 1000])
def test_position_only_is_the_weighted_sum_that_it_names(turn: int) -> None:
    """Topics that last four symbols are told by near ones alone, and one that lasts for ever by all."""
    rng = np.random.default_rng(0)
    topics_NM = np.repeat(rng.integers(2, size=(150, -(-40 // turn))), turn, axis=1)[:, :40]
    prior_NMS, emission_NMS = evidence(topics_NM, rng)
    loss_NM, name = position_only(prior_NMS, emission_NMS)
    evidence_NMS = np.log(emission_NMS).cumsum(1) - np.log(emission_NMS)  # decay 1, scale 1: exact for one long turn
    law_NMS = np.exp(evidence_NMS) / np.exp(evidence_NMS).sum(2, keepdims=True)
    everything_NM = mixture(law_NMS, emission_NMS)[:100]  # those on which the best was chosen
    gain = everything_NM.mean() - loss_NM[:100].mean()
    assert 0 <= gain < 0.01 if turn == 1000 else gain > 0.02
    word, size, _, scale = name.replace(",", "").split()
    for n in (0, 120):
        for m in range(40):
            weights = [float(size) ** (m - 1 - k) if word == "decay" else m - k <= float(size) for k in range(m)]
            evidence_S = sum((w * np.log(emission_NMS[n, k]) for k, w in enumerate(weights)), np.zeros(2))
            law_S = prior_NMS[n, m] * np.exp(float(scale) * evidence_S)
            assert loss_NM[n, m] == pytest.approx(-np.log(law_S @ emission_NMS[n, m] / law_S.sum()), abs=1e-12)
    assert loss_NM.mean() < mixture(prior_NMS, emission_NMS).mean() - 0.01


def test_impossible_symbols_leave_numbers() -> None:
    prior_NMS, emission_NMS = np.full((3, 6, 2), 0.5), np.full((3, 6, 2), [1.0, 0.0])
    assert np.isfinite(position_only(prior_NMS, emission_NMS)[0]).all()


def test_worth_is_the_best_line_without_selection_less_the_floor() -> None:
    losses = {
        "mixture": np.array([[3.0, 3.0], [3.0, 3.0]]),
        "position_only": np.array([[2.0, 2.5], [2.0, 2.5]]),
        "speaker_blind": np.array([[2.6, 2.2], [2.6, 2.2]]),
        "floor": np.array([[2.0, 2.0], [2.0, 2.0]]),
    }
    facts = line_facts(losses)
    assert facts["selection_worth_nats"] == pytest.approx(0.25)  # position only: 2.25 nats
    assert facts["selection_worth_second_half_nats"] == pytest.approx(0.2)  # speaker blind
    assert list(reference_nats(facts)) == ["mixture", "position_only", "speaker_blind", "floor"]
    without = line_facts({name: losses[name] for name in ("mixture", "floor")})
    assert "selection_worth_nats" not in without
