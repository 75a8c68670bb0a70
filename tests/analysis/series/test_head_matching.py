from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from headdyn.analysis.circuit_factors import Factors, cosines, folded
from headdyn.analysis.series.head_matching import (
    head_cosines,
    load_circuits,
    match_heads,
    match_series,
    match_table,
    save_circuits,
)
from headdyn.analysis.series.timeline import series_figures
from headdyn.core.records import HeadTable
from headdyn.models.decoder import Decoder
from tests.small_models import CONFIGS, GQA, NEOX, drawn


def gauged(circuits: dict[str, Factors], seed: int) -> dict[str, Factors]:
    """Every head's factors in another basis of its d dimensions: the same circuits, other weights."""
    generator = torch.Generator().manual_seed(seed)
    turned = {}
    for name, factors in circuits.items():
        heads, _, width = factors.left_NDd.shape
        turn = torch.randn(heads, width, width, generator=generator, dtype=factors.left_NDd.dtype)
        turned[name] = Factors(factors.left_NDd @ turn, factors.right_NDd @ torch.linalg.inv(turn).mT)
    return turned


@pytest.mark.parametrize("name", ["mha", "gqa", "neox", "gpt2"])
def test_cosines_against_whole_circuits(name: str) -> None:
    a, b = (folded(drawn(CONFIGS[name], seed), 1) for seed in (0, 1))
    expected = 0
    for circuit in ("qk", "ov"):
        whole = [(x[circuit].left_NDd @ x[circuit].right_NDd.mT).flatten(1) for x in (a, b)]
        expected = expected + torch.nn.functional.cosine_similarity(whole[0][:, None], whole[1][None], dim=-1) / 2
    np.testing.assert_allclose(head_cosines(a, b), expected.detach().numpy(), atol=1e-12)
    with_itself = sum(cosines(a[circuit]) for circuit in ("qk", "ov")) / 2
    np.testing.assert_allclose(head_cosines(a, a), with_itself.detach().numpy(), atol=1e-12)


def test_cosines_do_not_see_the_basis() -> None:
    a, b = (folded(drawn(NEOX, seed), 1) for seed in (0, 1))
    np.testing.assert_allclose(head_cosines(gauged(a, 5), gauged(b, 6)), head_cosines(a, b), atol=1e-10)
    flat = [x["qk"].left_NDd.flatten(1) for x in (a, gauged(a, 5))]  # the mutant: flattened W_Q
    itself = torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=-1)
    assert itself.abs().max() < 0.9


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5])
def test_reordered_heads_are_found(order: tuple[int, ...]) -> None:
    decoder = drawn(NEOX)
    match = match_heads(head_cosines(folded(decoder, 1), folded(decoder.permuted(1, order), 1)))
    assert match.best_J.tolist() == match.assigned_J.tolist() == list(order)
    assert match.own_index_share == np.mean(np.array(order) == np.arange(4))
    assert np.allclose(match.cosine_HJ[list(order), range(4)], 1)


def test_heads_of_one_group_share_keys_but_are_told_apart() -> None:
    match = match_heads(head_cosines(folded(drawn(GQA), 1), folded(drawn(GQA).permuted(1, (3, 2, 0, 1)), 1)))
    assert match.assigned_J.tolist() == [3, 2, 0, 1]


def test_best_matches_may_clash_where_a_pairing_may_not() -> None:
    cosine_HJ = np.array([[0.9, 0.8, 0.1], [0.85, 0.1, 0.0], [0.0, 0.2, 0.3]])
    match = match_heads(cosine_HJ)
    assert match.best_J.tolist() == [0, 0, 2]
    assert match.assigned_J.tolist() == [1, 0, 2]  # 0.85 + 0.8 + 0.3 is more than 0.9 + 0.1 + 0.3
    best = max(itertools.permutations(range(3)), key=lambda p: sum(cosine_HJ[p[j], j] for j in range(3)))
    assert tuple(match.assigned_J) == best


@torch.no_grad()
def drifted(decoder: Decoder, size: float, seed: int) -> Decoder:
    generator = torch.Generator().manual_seed(seed)
    other = decoder.permuted(1, range(decoder.config.num_heads))
    for parameter in other.parameters():
        parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return other


def test_heads_are_followed_through_a_series() -> None:
    """Weights drift, and between steps 2 and 3 heads 0 and 3 change places."""
    first = drawn(dataclasses.replace(NEOX, d_model=32))
    second = drifted(first, 0.02, 1)
    third = drifted(second.permuted(1, (3, 1, 2, 0)), 0.02, 2)
    fourth = drifted(third, 0.02, 3)
    circuits = {step: folded(decoder, 1) for step, decoder in enumerate((first, second, third, fourth), 1)}
    matches = match_series(circuits, head_cosines)
    assert set(matches) == {(1, 2), (2, 3), (3, 4), (1, 4), (2, 4)}
    assert [matches[pair].own_index_share for pair in ((1, 2), (2, 3), (3, 4))] == [1.0, 0.5, 1.0]
    assert matches[1, 4].assigned_J.tolist() == matches[2, 4].assigned_J.tolist() == [3, 1, 2, 0]
    table = match_table("weights", matches).to_pylist()
    assert len(table) == 5 * 4
    row = next(r for r in table if (r["earlier_step"], r["later_step"], r["head"]) == (2, 3, 0))
    assert row["best_match"] == row["assigned"] == 3
    assert row["cosine_best_match"] == row["cosine_assigned"] > 0.9 > row["cosine_same_index"]


def test_kept_circuits_give_the_same_cosines(tmp_path: Path) -> None:
    shape = dataclasses.replace(NEOX, d_model=768, num_heads=12, num_kv_heads=12, head_dim=64, d_ff=8, num_layers=1)
    decoders = [drawn(shape, seed=0, dtype=torch.float32)]
    with torch.no_grad():
        decoders.append(decoders[0].permuted(0, range(12)))
        for parameter in decoders[1].parameters():
            parameter.mul_(3).add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    for number, decoder in enumerate(decoders):
        save_circuits(decoder, 0, tmp_path / f"{number}.safetensors")
    assert (tmp_path / "0.safetensors").stat().st_size < 4.8e6
    kept = [load_circuits(tmp_path / f"{number}.safetensors") for number in range(2)]
    exact = head_cosines(*(folded(decoder, 0) for decoder in decoders))
    error = np.abs(head_cosines(*kept) - exact).max()
    assert 0 < error < 3e-6
    assert exact.diagonal().min() > 0.5


@torch.no_grad()
def test_a_circuit_of_zeros_is_like_nothing(tmp_path: Path) -> None:
    decoder = drawn(NEOX)
    decoder.head_weights(1).o_HdD[2] = 0
    save_circuits(decoder, 1, tmp_path / "c.safetensors")
    for circuits in (folded(decoder, 1), load_circuits(tmp_path / "c.safetensors")):
        cosine_HJ = head_cosines(circuits, circuits)
        assert cosine_HJ[2, 2] == pytest.approx(0.5, abs=1e-3) and np.isfinite(cosine_HJ).all()


def test_other_indices_are_drawn_as_the_mean_of_the_pairs_that_differ() -> None:
    """Four heads, 12 of whose 16 pairs differ; the mutant, over all 16, would draw 0.375."""
    cosine_HJ = np.where(np.eye(4, dtype=bool), 1.0, 0.5)
    matches = match_heads(cosine_HJ)
    figure = series_figures([], [], {}, {(1, 2): matches}, HeadTable.concat([]))["heads"]
    drawn_rows = [row for rows in figure.tables.values() for row in rows]
    (other,) = [row for row in drawn_rows if "other indices" in row.values()]
    assert 0.5 in other.values() and 0.375 not in other.values()
