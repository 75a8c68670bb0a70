"""Heads matched by what they do: against numpy, and for a planted exchange that the weights do not show."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from headdyn.analysis.attention import AttentionStatistics
from headdyn.analysis.circuit_factors import folded
from headdyn.analysis.head_profiles import of_layer, profile_correlations, profile_table, read_profiles
from headdyn.analysis.series.emergence import Emergence
from headdyn.analysis.series.head_matching import head_cosines, kept_by_chance, match_heads
from headdyn.analysis.series.points import SeriesPoint
from headdyn.core.records import HeadTable
from headdyn.models.decoder import Decoder
from tests.analysis import tiny
from tests.small_models import MHA, drawn


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def profiles_of(values: dict[str, np.ndarray], layer: int | None = None) -> dict[str, np.ndarray]:
    return dict(of_layer(read_profiles({"attention_profiles": profile_table(values)}), layer))


def test_profiles_of_a_layer_are_what_was_measured() -> None:
    value_NLH = rng().normal(size=(5, 3, 4))
    value_NLH[2, 1, 3] = np.nan
    one = profiles_of({"entropy": value_NLH, "sink": -value_NLH})
    assert list(one) == ["attention_profiles entropy", "attention_profiles sink"]
    np.testing.assert_allclose(one["attention_profiles entropy"], value_NLH[:, 1].T, rtol=1e-6)  # the middle layer
    np.testing.assert_allclose(profiles_of({"a": value_NLH}, 2)["attention_profiles a"], value_NLH[:, 2].T, rtol=1e-6)


def test_correlations_against_numpy() -> None:
    """Every feature counts alike, whatever its scale, and what all heads share does not count."""
    earlier, later = ({"a": 100 * rng(s).normal(size=(4, 30)), "b": rng(s + 9).normal(size=(4, 30))} for s in (1, 2))
    for profiles in (earlier, later):
        profiles["a"] += 1e3 * rng(7).normal(size=30)
    scaled = [
        np.concatenate([(x - x.mean(0)) / x.std(0) for x in profiles.values()], axis=1) for profiles in (earlier, later)
    ]
    expected = np.corrcoef(*scaled)[:4, 4:]
    np.testing.assert_allclose(profile_correlations(earlier, later), expected, atol=1e-12)
    # A feature that one side lacks, or has not everywhere, is left out.
    broken = {**later, "a": np.full((4, 30), np.nan), "c": later["b"]}
    only_b = profile_correlations({"b": earlier["b"]}, {"b": later["b"]})
    np.testing.assert_allclose(profile_correlations(earlier, broken), only_b)
    assert (profile_correlations({"a": earlier["a"]}, {"b": later["b"]}) == 0).all()
    assert (profile_correlations({"a": np.ones((4, 30))}, {"a": later["a"]}) == 0).all()


def test_p_by_permuting_heads_holds_its_level_and_finds_what_is_kept() -> None:
    level = [kept_by_chance(match_heads(rng(s).normal(size=(6, 6))), 199, rng(s + 1)) <= 0.05 for s in range(300)]
    assert 3 <= sum(level) <= 27  # 15 of 300 by chance
    assert kept_by_chance(match_heads(np.eye(6)), 999, rng()) < 0.01


@torch.no_grad()
def exchanged(share: float) -> Decoder:
    """Heads 0 and 2 of layer 0 attend by each other's rule to this share, by weights that are few among many.

    Half of the residual dimensions are 0 in every embedding. What the heads' queries and keys hold for these is large
    and without any effect; what they attend by is small.
    """
    decoder = drawn(dataclasses.replace(MHA, num_layers=1).without_positions())
    half = decoder.config.d_model // 2
    decoder.embed.weight[:, half:] = 0
    w = decoder.head_weights(0)
    for weight_HDd in (w.q_HDd, w.k_GDd):
        weight_HDd[:, :half] *= 3
        weight_HDd[:, half:] *= 60
        first, second = weight_HDd[0, :half].clone(), weight_HDd[2, :half].clone()
        weight_HDd[0, :half] = (1 - share) * first + share * second
        weight_HDd[2, :half] = (1 - share) * second + share * first
    return decoder


def test_a_planted_exchange_is_found_by_what_heads_do_and_not_by_their_weights() -> None:
    corpus, analysis = tiny.corpus(), AttentionStatistics(sequences=24, bootstrap_draws=100)
    points, circuits = [], []
    for step, share in ((1, 0.0), (2, 0.4), (3, 0.6), (4, 1.0)):
        decoder = exchanged(share)
        findings = analysis(decoder, corpus, rng())
        circuits.append(folded(decoder, 0))
        profiles = read_profiles({"attention_profiles": findings.tables["attention_profiles"]})
        points.append(
            SeriesPoint(
                revision=f"step{step}",
                step=step,
                table=HeadTable.concat([]),
                state_hash=f"{step}",
                circuits=circuits[-1],
                profiles=profiles,
            )
        )
    findings = Emergence(layer=0)(points, rng())
    heads = findings.verdict["heads"]
    assert match_heads(head_cosines(circuits[0], circuits[-1])).own_index_share == 1  # the mutant: identity by weights
    assert set(heads["kept_to_next"].values()) == set(heads["kept_to_last"].values()) == {1.0}
    told = heads["by_behaviour"]
    assert [pair[:2] for pair in told["moved_by_last"]["1"]] == [[0, 2], [2, 0]] and told["moved_by_last"]["3"] == []
    assert all(pair[2] > 0.9 for pair in told["moved_by_last"]["1"])
    assert told["kept_to_last"]["1"] == 0.5 and told["kept_to_last"]["3"] == 1.0
    matched = findings.tables["head_matches"].to_pylist()
    assert {(row["by"], row["assigned"]) for row in matched if (row["earlier_step"], row["head"]) == (1, 0)} >= {
        ("weights", 0),
        ("behaviour", 2),
    }
    assert findings.table.summary()["heads_kept"]["value"] == 1
    assert findings.table.summary()["heads_kept_by_behaviour"]["null"] == 0.25
