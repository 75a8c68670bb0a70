"""The study's reading of GPT-NeoX's packed matrix, and why what it found are not heads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.stats
import torch
from transformers import GPTNeoXConfig

from headdyn.analysis.clusters import clusterings
from headdyn.analysis.clusters.geometry import circuit_cosines, random_directions
from headdyn.core.statistics import adjusted_rand
from headdyn.models.decoder import Decoder
from headdyn.models.families import load_pretrained
from headdyn.studies.weight_clusters.clusters import PARTS
from headdyn.studies.weight_clusters.pieces import entry_test, misread, no_pieces, original_spread, packed, swapped
from tests.parity import hugging_face
from tests.small_models import GQA, NEOX, drawn, tokens

HEADS = 12


def model(**settings) -> Decoder:
    shape = {"num_heads": HEADS, "num_kv_heads": HEADS, "d_model": 24, "qkv_bias": False}
    return drawn(dataclasses.replace(NEOX, **(shape | settings)))


@torch.no_grad()
def with_weights(decoder: Decoder, layer: int, change) -> Decoder:
    """A copy whose q, k and v of one layer, [H, D, d] each, went through `change(part, weight)`."""
    other = decoder.permuted(layer, range(decoder.config.num_heads))
    w = other.head_weights(layer)
    for part, weight_HDd in (("query", w.q_HDd), ("key", w.k_GDd), ("value", w.v_GDd)):
        weight_HDd.copy_(change(part, weight_HDd.clone()))
    return other


def misread_blocks(heads: int) -> dict[str, list[tuple[int, str]]]:
    """The true head and part of each of the study's pieces, as pieces.py says in words."""
    blocks = [(number // 3, PARTS[number % 3]) for number in range(3 * heads)]
    return {part: blocks[i * heads : (i + 1) * heads] for i, part in enumerate(PARTS)}


def two_clusters(pieces_HX: torch.Tensor) -> tuple[np.ndarray, float]:
    gram = (pieces_HX @ pieces_HX.T).detach().numpy()[None]
    labels_RH = clusterings.kmeans(gram, 2, np.random.default_rng(0))
    return labels_RH[0], clusterings.silhouette(clusterings.distances(gram), labels_RH)[0]


def test_packed_as_hugging_face_packs_it(tmp_path) -> None:
    config = GPTNeoXConfig(
        vocab_size=29, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=20
    )
    folder = hugging_face.build(config, tmp_path)
    theirs = hugging_face.load(folder).gpt_neox.layers[1].attention.query_key_value.weight
    assert torch.equal(packed(load_pretrained(folder, torch.float32), 1), theirs)


def test_the_studys_query_heads_are_blocks_of_the_first_heads() -> None:
    """Each block of the matrix is filled with its own number; 12 heads: "query head 6" is head 2's query block."""
    code = {part: i for i, part in enumerate(PARTS)}

    def fill(part: str, weight_HDd: torch.Tensor) -> torch.Tensor:
        return weight_HDd * 0 + (3 * torch.arange(HEADS) + code[part])[:, None, None]

    pieces_3HX = misread(packed(with_weights(model(), 1, fill), 1), HEADS)
    blocks = misread_blocks(HEADS)
    assert blocks["query"][6] == (2, "query") and blocks["query"][7] == (2, "key")
    assert {head for head, _ in blocks["query"]} == {0, 1, 2, 3}, "the other eight heads are not in it"
    for part, pieces_HX in zip(PARTS, pieces_3HX, strict=True):
        for piece_X, (head, true_part) in zip(pieces_HX, blocks[part], strict=True):
            assert (piece_X == 3 * head + code[true_part]).all()
    right = torch.stack([torch.full((8 * 24,), 3.0 * head) for head in range(HEADS)])
    assert not torch.equal(pieces_3HX[0], right.to(pieces_3HX)), "mutant: a right reading would have given this"


def test_heads_that_are_all_alike_are_clusters_to_the_study() -> None:
    """Every head has the same circuits, so nothing can be told apart; keys twice as large make "clusters" of 1.0."""

    def same(part: str, weight_HDd: torch.Tensor) -> torch.Tensor:
        return weight_HDd[:1].expand_as(weight_HDd) * (3 if part == "key" else 1)

    decoder = with_weights(model(), 1, same)
    np.testing.assert_allclose(circuit_cosines(decoder, 1)["qk"], 1, atol=1e-9)
    labels_H, silhouette = two_clusters(misread(packed(decoder, 1), HEADS)[0])
    assert silhouette > 0.5
    is_key_H = np.array([part == "key" for _, part in misread_blocks(HEADS)["query"]])
    assert (labels_H == labels_H[1]).tolist() == is_key_H.tolist(), "what it calls clusters are keys and the rest"


def test_another_basis_of_the_same_heads_gives_the_study_other_clusters() -> None:
    decoder = model(rotary_fraction=0.0, max_positions=24)
    turn_Hdd = torch.randn(HEADS, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def turned(part: str, weight_HDd: torch.Tensor) -> torch.Tensor:
        return weight_HDd @ {"query": turn_Hdd, "key": torch.linalg.inv(turn_Hdd).mT}.get(part, torch.eye(8).double())

    other = with_weights(decoder, 1, turned)
    text = tokens(2, 9)
    torch.testing.assert_close(other(text), decoder(text), atol=1e-9, rtol=0)
    np.testing.assert_allclose(circuit_cosines(other, 1)["qk"], circuit_cosines(decoder, 1)["qk"], atol=1e-9)
    ours, theirs = (two_clusters(misread(packed(each, 1), HEADS)[0])[0] for each in (decoder, other))
    assert adjusted_rand(clusterings.contingency(ours, theirs[None]))[0] < 0.9


def test_one_large_norm_makes_the_studys_silhouette() -> None:
    """Random pieces, one of them four times as large: k = 2 takes it for a cluster with a silhouette over 0.6, and
    random pieces of those norms do the same."""
    norm_H = np.where(np.arange(HEADS) == 5, 4.0, 1.0)
    own_RHH, null_RHH = (random_directions(norm_H, 400, draws, np.random.default_rng(draws)) for draws in (1, 300))
    silhouettes = []
    for gram_RHH in (own_RHH, null_RHH):
        labels_RH = clusterings.kmeans(gram_RHH, 2, np.random.default_rng(0))
        silhouettes.append(clusterings.silhouette(clusterings.distances(gram_RHH), labels_RH))
    labels_H = clusterings.kmeans(own_RHH, 2, np.random.default_rng(0))[0]
    assert np.bincount(labels_H).min() == 1
    assert silhouettes[0][0] > 0.6
    assert (1 + (silhouettes[1] >= silhouettes[0]).sum()) / 301 > 0.05


def test_entry_tests_are_scipys() -> None:
    pieces_HX = torch.randn(6, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pieces_HX *= torch.tensor([1, 1, 1, 1.2, 1.2, 1.2])[:, None]
    labels_H = np.array([0, 0, 0, 1, 1, 1])
    first, second = (pieces_HX[torch.from_numpy(labels_H == k)].flatten().numpy() for k in (0, 1))
    wasserstein, log10_p = entry_test(pieces_HX, labels_H, np.random.default_rng(0))
    theirs = scipy.stats.ks_2samp(first, second, method="asymp")
    assert wasserstein.value == pytest.approx(scipy.stats.wasserstein_distance(first, second))
    # scipy's asymptotic p rounds the effective sample size; measured difference of log10 p: 0.02
    assert log10_p.value == pytest.approx(np.log10(theirs.pvalue), abs=0.05)


def test_entries_as_units_find_a_difference_where_pieces_as_units_do_not() -> None:
    """Heads whose scales differ by a few percent, in no order: p < 1e-6 over entries, an ordinary split of heads."""
    scales = torch.tensor([1.0, 1.06, 0.95, 1.07, 1.02, 0.96, 1.03, 0.99])[:, None]
    pieces_HX = scales * torch.randn(8, 49_152, generator=torch.Generator().manual_seed(0))
    wasserstein, log10_p = entry_test(pieces_HX, np.array([0, 1, 0, 1, 0, 0, 1, 1]), np.random.default_rng(0))
    assert log10_p.value < -6
    assert log10_p.p > 0.05 and wasserstein.p > 0.05
    planted = pieces_HX * torch.tensor([1, 2.0])[[0, 1, 0, 1, 0, 0, 1, 1], None]
    _, log10_p = entry_test(planted, np.array([0, 1, 0, 1, 0, 0, 1, 1]), np.random.default_rng(0))
    assert log10_p.p < 0.06, "2 of 70 splits"


def test_spread_by_hand() -> None:
    """Pieces (0, 0), (2, 2) | (8, 8): centres 7√2 apart; the variance of an entry is 1 in the first and 0 in the other
    cluster, 1/2 on average, clusters counting alike."""
    points = np.array([[0.0, 0], [2, 2], [8, 8]])
    found = original_spread((points @ points.T)[None], np.array([[0, 0, 1]]), 2)
    assert found["centre_distance"][0] == pytest.approx(7 * np.sqrt(2))
    assert found["within_variance"][0] == pytest.approx(0.5)
    assert found["separation"][0] == pytest.approx(14 * np.sqrt(2))


def test_a_swap_puts_the_other_clusters_mean_into_query_pieces_alone() -> None:
    decoder = model()
    before = {name: part.clone() for name, part in decoder.state_dict().items()}
    labels_H = np.array([0] * 5 + [1] * 7)
    changed = swapped(decoder, 1, labels_H)
    old, new = (misread(packed(each, 1), HEADS) for each in (decoder, changed))
    torch.testing.assert_close(new[0, :5], old[0, 5:].mean(0).expand(5, -1))
    torch.testing.assert_close(new[0, 5:], old[0, :5].mean(0).expand(7, -1))
    assert torch.equal(new[1:], old[1:])
    for name, part in changed.state_dict().items():
        assert torch.equal(part, before[name]) or name.startswith("blocks.1.attention.")
    assert all(torch.equal(part, before[name]) for name, part in decoder.state_dict().items()), "nothing is restored"
    with pytest.raises(ValueError, match="two clusters labelled 0 and 1"):
        swapped(decoder, 1, np.zeros(HEADS, dtype=int))


def test_grouped_keys_have_no_such_matrix() -> None:
    assert no_pieces(drawn(GQA)) == "4 query heads share 2 keys: no [3, heads, …] matrix to misread"
    assert no_pieces(drawn(NEOX)) is None
