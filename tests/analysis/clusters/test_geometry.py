from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.covariance import LedoitWolf

from headdyn.analysis.clusters import clusterings
from headdyn.analysis.clusters.geometry import (
    behind_gains,
    circuit_cosines,
    random_circuit_cosines,
    random_directions,
    rotated_heads,
)
from headdyn.models.decoder import Decoder
from tests.small_models import GPT2, GQA, MHA, NEOX, drawn


def many_layers(layers: int = 40) -> Decoder:
    return drawn(dataclasses.replace(GPT2, num_layers=layers, d_model=48, num_heads=8, num_kv_heads=8))


@torch.no_grad()
def in_another_basis(decoder: Decoder, layer: int) -> Decoder:
    """The same heads by other numbers: W_Q R with W_K R⁻ᵀ, W_V S with S⁻¹ W_O."""
    generator = torch.Generator().manual_seed(1)
    other = decoder.permuted(layer, range(decoder.config.num_heads))
    w = other.head_weights(layer)
    for head in range(decoder.config.num_heads):
        size = decoder.config.head_dim
        for left, right in ((w.q_HDd[head], w.k_GDd[head]), (w.v_GDd[head], w.o_HdD[head].mT)):
            turn = torch.randn(size, size, generator=generator, dtype=torch.float64)
            left.copy_(left @ turn)
            right.copy_(right @ torch.linalg.inv(turn).mT)
    return other


def test_circuits_are_free_of_gauge_and_flattened_weights_are_not() -> None:
    decoder = drawn(dataclasses.replace(GPT2, qkv_bias=False))
    other = in_another_basis(decoder, 1)
    ours, theirs = circuit_cosines(decoder, 1), circuit_cosines(other, 1)
    for kind in ("qk", "ov"):
        np.testing.assert_allclose(theirs[kind], ours[kind], atol=1e-10)
        np.testing.assert_allclose(np.diagonal(ours[kind]), 1)
    flat, moved = (each.head_weights(1).q_HDd.flatten(1).detach().numpy() for each in (decoder, other))
    assert np.abs(np.corrcoef(flat) - np.corrcoef(moved)).max() > 0.1


@pytest.mark.parametrize("config", [MHA, NEOX, GQA], ids=["rms", "layernorm", "gqa"])
def test_random_heads_behind_a_layers_norm_lie_as_those_of_a_model_just_drawn(config) -> None:
    """Off-diagonal cosines have standard deviation 1/D for flat gains; gains of 1 ± 0.3 widen them, in both alike."""
    kv_heads = config.num_kv_heads * 2
    shape = {"num_layers": 120, "d_model": 32, "num_heads": 8, "num_kv_heads": kv_heads, "head_dim": 8}
    decoder = drawn(dataclasses.replace(config, **shape))
    flat_RHH = random_circuit_cosines(decoder, 400, np.random.default_rng(0))
    np.testing.assert_allclose(np.diagonal(flat_RHH, axis1=1, axis2=2), 1, atol=1e-6)
    group_H = np.arange(8) // (8 // kv_heads)
    pairs = np.triu(np.ones((8, 8), dtype=bool), 1)
    for within in (True, False):
        chosen = pairs & ((group_H[:, None] == group_H) == within)
        for kind in ("qk", "ov") if chosen.any() else ():
            own = np.stack([circuit_cosines(decoder, layer)[kind] for layer in range(120)])[:, chosen].std()
            null = np.stack([behind_gains(flat_RHH, decoder, layer)[kind] for layer in range(120)])[:, :, chosen].std()
            # 480 to 3,360 pairs; own is 0.99 to 1.03 times the null
            assert own == pytest.approx(null, rel=0.06), (kind, within)
            if not within:
                assert flat_RHH[:, chosen].std() == pytest.approx(1 / 32, rel=0.03)
                assert own > 1.03 * flat_RHH[:, chosen].std(), "mutant: gains left out"


def test_heads_of_a_group_share_a_side() -> None:
    decoder = drawn(GQA)
    null_RHH = random_circuit_cosines(decoder, 500, np.random.default_rng(0))
    assert null_RHH[:, 0, 1].std() > 1.5 * null_RHH[:, 0, 2].std()


def test_random_heads_are_no_clusters_at_the_stated_rate() -> None:
    """The p of a silhouette among random heads is uniform over layers that were drawn, and small where two groups are
    planted. Without the layers' own gains, drawn heads would look like clusters."""
    decoder = many_layers()
    flat_RHH = random_circuit_cosines(decoder, 400, np.random.default_rng(0))

    def silhouettes(gram_RHH: np.ndarray) -> np.ndarray:
        labels_RH = clusterings.kmeans(gram_RHH, 2, np.random.default_rng(1), restarts=3)
        return clusterings.silhouette(clusterings.distances(gram_RHH), labels_RH)

    def p_values(own_RHH: np.ndarray, null_RHH: np.ndarray) -> np.ndarray:
        return (1 + (silhouettes(null_RHH) >= silhouettes(own_RHH)[:, None]).sum(1)) / (1 + len(null_RHH))

    p, mutant = [], []
    for layer in range(40):
        own, null = circuit_cosines(decoder, layer), behind_gains(flat_RHH, decoder, layer)
        for kind in ("qk", "ov"):
            p += p_values(own[kind][None], null[kind]).tolist()
            mutant += p_values(own[kind][None], flat_RHH).tolist()
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01
    assert scipy.stats.kstest(mutant, "uniform").pvalue < 1e-4
    planted_HH = np.eye(8) * 0.9 + 0.1 * (np.arange(8)[:, None] % 2 == np.arange(8) % 2)
    assert p_values(planted_HH[None], flat_RHH)[0] == 1 / 401


def test_random_directions_have_the_norms_and_the_law_of_gaussian_vectors() -> None:
    norm_H, width = np.array([3.0, 1.0, 2.0, 0.5]), 6
    gram_RHH = random_directions(norm_H, width, 20_000, np.random.default_rng(0))
    np.testing.assert_allclose(np.diagonal(gram_RHH, axis1=1, axis2=2), np.broadcast_to(norm_H**2, (20_000, 4)))
    cosine_RHH = gram_RHH / np.multiply.outer(norm_H, norm_H)
    drawn_RHX = np.random.default_rng(1).normal(size=(20_000, 2, width))
    drawn_RHX /= np.linalg.norm(drawn_RHX, axis=-1, keepdims=True)
    theirs_R = (drawn_RHX[:, 0] * drawn_RHX[:, 1]).sum(-1)
    for i, j in itertools.combinations(range(4), 2):
        assert scipy.stats.ks_2samp(cosine_RHH[:, i, j], theirs_R).pvalue > 1e-3
    # Vectors of three numbers span three dimensions, however many there are.
    flat = random_directions(np.ones(5), 3, 10, np.random.default_rng(0))
    assert (np.linalg.matrix_rank(flat, tol=1e-9) == 3).all()


def test_random_directions_follow_the_heads_wherever_these_are_numbered() -> None:
    norm_H, order = np.array([3.0, 1.0, 2.0, 0.5]), [2, 0, 3, 1]
    here, there = (random_directions(norm, 6, 5, np.random.default_rng(0)) for norm in (norm_H, norm_H[order]))
    np.testing.assert_allclose(there, here[:, order][:, :, order])


def exchangeable(shared: float, axes: int | None, count: int, seed: int) -> np.ndarray:
    """Effects of 12 heads on 32 pairs, [X, H, P]: a profile that all share holds this part of the variance.

    What is a head's own lies along every pair alike, or along few axes of the pairs.
    """
    draws = np.random.default_rng(seed)
    profile_X1P, own_XHP = draws.normal(size=(count, 1, 32)), draws.normal(size=(count, 12, 32))
    if axes is not None:
        own_XHP = draws.normal(size=(count, 12, axes)) @ draws.normal(size=(count, axes, 32)) / np.sqrt(axes)
    return np.sqrt(shared) * profile_X1P + np.sqrt(1 - shared) * own_XHP


def rejections(effect_XHP: np.ndarray, null: str) -> int:
    """Of how many clouds the best silhouette of k-means with 2 and 3 clusters is beyond 95 % of the null's."""
    generator, count = np.random.default_rng(9), 0

    def best(gram_RHH: np.ndarray) -> np.ndarray:
        labels = [clusterings.kmeans(gram_RHH, k, np.random.default_rng(k), restarts=3) for k in (2, 3)]
        return np.max([clusterings.silhouette(clusterings.distances(gram_RHH), each) for each in labels], axis=0)

    for effect_HP in effect_XHP:
        gram_HH = effect_HP @ effect_HP.T / effect_HP.shape[1]
        if null == "rotated":
            null_RHH = rotated_heads(gram_HH, 99, generator)
        elif null == "directions":  # a mutant: directions at random, which was the null before
            null_RHH = random_directions(np.sqrt(np.diagonal(gram_HH)), effect_HP.shape[1], 99, generator)
        else:  # a mutant: a Gaussian with the shrunk covariance
            fit = LedoitWolf().fit(effect_HP)
            drawn_RHP = generator.multivariate_normal(fit.location_, fit.covariance_, size=(99, len(effect_HP)))
            null_RHH = drawn_RHP @ drawn_RHP.swapaxes(-1, -2) / effect_HP.shape[1]
        count += (1 + (best(null_RHH) >= best(gram_HH[None])).sum()) / 100 <= 0.05
    return count


@pytest.mark.parametrize("shared", [0, 0.5, 0.9])
@pytest.mark.parametrize("axes", [None, 3])
def test_heads_without_groups_are_rejected_at_the_level(shared: float, axes: int | None) -> None:
    """Whatever profile they share and however few axes they vary along; more than 9 of 80 have probability 0.01.

    Measured over 700 each at shared variance 0.5: 35 along all axes and 39 along three.
    """
    assert rejections(exchangeable(shared, axes, 80, seed=int(10 * shared)), "rotated") <= 9


def test_other_nulls_reject_heads_that_share_a_profile_or_few_axes() -> None:
    """Measured, of 80: directions at random 75 at shared variance 0.5 over three axes; a Gaussian with Ledoit and Wolf's
    covariance 13 at 0.9, since shrinkage spreads it over axes along which heads do not vary."""
    assert rejections(exchangeable(0.5, 3, 80, seed=5), "directions") > 40
    assert rejections(exchangeable(0.9, 3, 80, seed=9), "shrunk") > 9


def test_two_groups_are_found_beyond_a_shared_profile() -> None:
    effect_XHP = exchangeable(0.5, None, 10, seed=1)
    effect_XHP[:, 6:] += 2 * np.random.default_rng(2).normal(size=(10, 1, 32))
    assert rejections(effect_XHP, "rotated") == 10


def test_rotated_heads_keep_mean_and_covariance_and_forget_which_head_is_which() -> None:
    effect_HP = np.random.default_rng(3).normal(size=(6, 4)) * [3.0, 1, 1, 0.5] + [5.0, 0, 0, 1]
    gram_RHH = rotated_heads(effect_HP @ effect_HP.T, 100_000, np.random.default_rng(0))
    np.testing.assert_allclose(gram_RHH.sum(-1), 0, atol=1e-9)  # their mean, once taken away, is 0
    apart_HP = effect_HP - effect_HP.mean(0)
    own = np.linalg.eigvalsh(apart_HP @ apart_HP.T)
    np.testing.assert_allclose(np.linalg.eigvalsh(gram_RHH[:50]), np.broadcast_to(own, (50, 6)), atol=1e-9)
    # On average every head is as far from the mean, and every two are as far apart, as any others.
    np.testing.assert_allclose(gram_RHH.mean(0), own.sum() / 5 * (np.eye(6) - 1 / 6), rtol=0.05)
    order = [2, 0, 5, 1, 3, 4]
    here, there = (rotated_heads(x @ x.T, 5, np.random.default_rng(0)) for x in (effect_HP, effect_HP[order] + 7))
    np.testing.assert_allclose(here, there, atol=1e-9)
