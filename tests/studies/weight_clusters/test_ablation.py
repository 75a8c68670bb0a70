from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from headdyn.analysis.clusters import clusterings
from headdyn.analysis.clusters.clusterings import smaller
from headdyn.models.decoder import Decoder, Edit
from headdyn.studies.weight_clusters.ablation import OriginalAblation, law, other_slices_zero
from headdyn.studies.weight_clusters.pieces import misread, packed, swapped
from tests.analysis import tiny
from tests.small_models import GQA, NEOX, drawn
from tests.small_tokenizer import byte_level, prompts

FAMILY = prompts(bug_pairs=1, control_pairs=0)
PROMPT = FAMILY.original_prompt


def model(**settings) -> Decoder:
    shape = {"num_heads": 8, "num_kv_heads": 8, "d_model": 16, "vocab_size": len(byte_level())}
    return drawn(dataclasses.replace(NEOX, **(shape | settings)))


def rows(decoder: Decoder, corpus=FAMILY) -> dict[str, dict]:
    analysis = OriginalAblation(layer=1, dtype="float64", swaps=19)
    summary = analysis(decoder, corpus, np.random.default_rng(0)).table.summary()
    assert set(summary) == set(analysis.metrics)
    return summary


def kl(plain_V: torch.Tensor, other_V: torch.Tensor) -> float:
    return (plain_V.exp() * (plain_V - other_V)).sum().item()


def test_the_law_is_that_of_the_token_after_the_prompt() -> None:
    decoder, text = model(), torch.from_numpy(PROMPT.corrupted_NT)
    torch.testing.assert_close(law(decoder, PROMPT), decoder(text)[0, -1].log_softmax(-1).detach())


def test_swap_and_only_these_heads_by_hand() -> None:
    decoder = model()
    found = rows(decoder)
    query_HX = misread(packed(decoder, 1), 8)[0].detach()
    labels_H = clusterings.kmeans((query_HX @ query_HX.T).numpy()[None], 2, np.random.default_rng(0))[0]
    plain_V = law(decoder, PROMPT)
    swap = kl(plain_V, law(swapped(decoder, 1, labels_H), PROMPT))
    assert found["original_swap_kl_nats"]["value"] == pytest.approx(swap) and swap > 1e-4

    text = torch.from_numpy(PROMPT.corrupted_NT)
    attn_out = decoder.trace(text, sites=("attn_out",), layers=(1,), logits=None)["attn_out", 1]
    kept = attn_out.unflatten(-1, (8, 2)) * torch.from_numpy(smaller(labels_H))[:, None]
    edit = Edit(site="attn_out", layer=1, value=kept.flatten(-2), where=torch.ones((), dtype=torch.bool))
    only = kl(plain_V, law(decoder, PROMPT, [edit]))
    assert found["original_only_cluster_kl_nats"]["value"] == pytest.approx(only) and only > 1e-4
    for name in ("original_swap_kl_nats", "original_only_cluster_kl_nats"):
        assert found[name]["n"] == 1 and found[name]["unit"] == "prompt", "one prompt is one unit"
        assert found[name]["null"] > 0 and found[name]["p"] >= 1 / 20


@torch.no_grad()
def test_a_swap_of_equal_pieces_changes_nothing() -> None:
    decoder = model()
    w, noise = decoder.head_weights(1), torch.Generator().manual_seed(0)
    for weight_HDd in (w.k_GDd, w.v_GDd, w.q_HDd):
        weight_HDd.copy_(w.q_HDd[:1] + 1e-3 * torch.randn(weight_HDd.shape, generator=noise).double())
    assert rows(decoder)["original_swap_kl_nats"]["value"] < 1e-4 < rows(model())["original_swap_kl_nats"]["value"]


def test_which_cluster_is_the_smaller() -> None:
    assert smaller(np.array([0, 1, 1, 0, 0])).tolist() == [False, True, True, False, False]
    assert smaller(np.array([1, 1, 0, 0])).tolist() == [True, True, False, False]


@torch.no_grad()
def test_slices_behind_the_output_projection_mix_all_heads() -> None:
    decoder, text = model(), torch.from_numpy(PROMPT.corrupted_NT)
    edit = other_slices_zero(decoder, 1, np.arange(8) != 3)
    plain, sliced = (
        decoder.trace(text, sites=("attn_out",), layers=(1,), edits=edits, logits=None)["attn_out", 1]
        for edits in ((), (edit,))
    )
    changed_D = (plain != sliced).any(0).any(0)
    assert changed_D.nonzero().ravel().tolist() == [6, 7]
    # Every head writes there: silencing head 0 at z moves these numbers too.
    head = Edit(site="z", layer=1, value=torch.zeros(()), where=torch.arange(8)[:, None] == 0)
    moved = decoder.trace(text, sites=("attn_out",), layers=(1,), edits=(head,), logits=None)["attn_out", 1]
    assert (moved - plain)[..., 6:].abs().max() > 1e-3


def test_entries_find_planted_scales_and_pieces_rank_them() -> None:
    decoder = model()
    with torch.no_grad():
        w = decoder.head_weights(1)
        for weight_HDd in (w.q_HDd, w.k_GDd, w.v_GDd):
            weight_HDd[::2] *= 4
    found = rows(decoder)
    for part in ("query", "key", "value"):
        row = found[f"original_{part}_ks_log10_p"]
        assert row["value"] < row["null"] < 0 and row["n"] == 8 and row["unit"] == "piece"


def test_what_cannot_be_had_is_absent_with_its_reason() -> None:
    without = rows(model(), tiny.corpus())
    assert "use data=comparisons" in without["original_swap_kl_nats"]["reason"]
    assert without["original_query_ks_log10_p"]["value"] <= 0
    grouped = rows(drawn(dataclasses.replace(GQA, vocab_size=len(byte_level()))))
    assert all("no [3, heads, …] matrix" in row["reason"] for row in grouped.values())
