from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from headdyn.analysis.attention import AttentionStatistics
from headdyn.analysis.pattern_sums import position_profiles
from headdyn.analysis.selectivity import balanced_swaps
from headdyn.analysis.tensorlens import TensorLens
from headdyn.analysis.tensorlens_measure import target_positions
from headdyn.analysis.token_flow import flow_maps, logit_shares, rollout
from headdyn.core.settings import build
from headdyn.models.decoder import Decoder
from headdyn.models.frozen import freeze
from headdyn.models.frozen_pairs import full_tensor
from tests import small_models
from tests.analysis import tiny

FAST = {"sequences": 32, "bootstrap_draws": 100}
LENGTH = 24


@pytest.fixture(scope="module")
def corpus():
    return tiny.corpus(rows=64, length=LENGTH, vocab_size=small_models.MHA.vocab_size, tell=0.5)


def run(decoder: Decoder, corpus, **settings):
    return TensorLens(**{**FAST, **settings})(decoder, corpus, np.random.default_rng(1)).table


def value(table, metric: str) -> float:
    return table.summary()[metric]["value"]


# -- the pieces -------------------------------------------------------------------------------------------------------


def test_rollout_of_two_layers_by_hand():
    first = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]])  # everyone at the previous token
    second = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 1]])
    # ½A + ½I: rows (1, 0, 0), (½, ½, 0), (0, ½, ½) and (1, 0, 0), (¼, ¾, 0), (0, 0, 1); the product's second row is
    # ¼ (1, 0, 0) + ¾ (½, ½, 0).
    expected = torch.tensor([[1.0, 0, 0], [0.625, 0.375, 0], [0, 0.5, 0.5]])
    found = rollout(torch.stack((first, second)))
    torch.testing.assert_close(found[1], expected)
    torch.testing.assert_close(found[0], torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5]]))
    assert not torch.allclose(rollout(torch.stack((second, first)))[1], expected)  # mutant: layers the wrong way round


@pytest.mark.parametrize(("length", "count"), [(8, 1), (9, 8), (24, 3), (24, 100), (256, 8)])
def test_every_target_has_a_next_token(length, count):
    targets = target_positions(length, count).tolist()
    assert targets == sorted(set(targets)) and 1 <= len(targets) <= count
    assert targets[0] >= 0 and targets[-1] == length - 2  # mutant: the last position's next token would be the first


def test_what_follows_a_target_is_the_next_token_and_never_the_first():
    decoder, tokens_T = small_models.drawn(small_models.GQA), small_models.tokens(1, 9)[0]
    frozen, ones_QK = freeze(decoder, tokens_T[None]), torch.ones(9, 9, dtype=torch.float64)
    targets_K = target_positions(9, 4)
    before = logit_shares(frozen, tokens_T, tokens_T[None], ones_QK, targets_K)["head_logit_nats"]
    for place in range(9):
        other_T = tokens_T.clone()
        other_T[place] = (other_T[place] + 1) % small_models.GQA.vocab_size
        after = logit_shares(frozen, other_T, tokens_T[None], ones_QK, targets_K)["head_logit_nats"]
        assert torch.allclose(before, after) == (place - 1 not in targets_K.tolist()), place


@pytest.mark.parametrize("name", small_models.CONFIGS)
def test_maps_are_the_norms_of_the_tensor_on_the_input(name):
    frozen = freeze(small_models.drawn(small_models.CONFIGS[name]), small_models.tokens(1, 9))
    flow_LIJ, aligned_IJ, off = flow_maps(frozen)
    tensor_IDJD = full_tensor(frozen)
    norm_IJ = torch.einsum("idje,je->ijd", tensor_IDJD, frozen.residual[0][0]).norm(dim=-1)
    torch.testing.assert_close(flow_LIJ[-1], norm_IJ / norm_IJ.sum(-1, keepdim=True), atol=1e-12, rtol=0)
    torch.testing.assert_close(flow_LIJ.sum(-1), torch.ones(3, 9, dtype=torch.float64))
    y_ID, c_ID = frozen.residual[-1][0], frozen.affine()[0]
    biases_I = (c_ID * y_ID).sum(-1) / y_ID.square().sum(-1)
    torch.testing.assert_close(aligned_IJ.sum(-1) + biases_I, torch.ones(9, dtype=torch.float64))
    by_tensor = torch.einsum("idje,je,id->ij", tensor_IDJD, frozen.residual[0][0], y_ID / y_ID.square().sum(-1, True))
    torch.testing.assert_close(aligned_IJ, by_tensor, atol=1e-12, rtol=0)
    assert off < 1e-13


def test_logit_shares_are_those_of_the_whole_tensor():
    decoder = small_models.drawn(small_models.GQA)
    tokens_T, swapped_RT = small_models.tokens(1, 9)[0], small_models.tokens(2, 9, seed=1)
    frozen = freeze(decoder, tokens_T[None])
    contrast_QK = torch.randn(9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets_K = torch.tensor([3, 6])
    found = logit_shares(frozen, tokens_T, swapped_RT, contrast_QK, targets_K)
    centred_VD = (decoder.unembed.weight - decoder.unembed.weight.mean(0)) * decoder.norm.weight
    parts = []
    for t in targets_K.tolist():
        u_D = centred_VD[tokens_T[t + 1]] * frozen.final_scale_BT[0, t]
        share_J = torch.einsum("d,dje,je->j", u_D, full_tensor(frozen)[t], frozen.residual[0][0])
        parts.append((share_J * contrast_QK[t]).sum())
    torch.testing.assert_close(found["tensorlens_topic_nats"], torch.stack(parts).mean(), atol=1e-10, rtol=0)
    everything = logit_shares(frozen, tokens_T, swapped_RT, torch.ones_like(contrast_QK), targets_K)
    torch.testing.assert_close(everything["head_topic_nats"], everything["head_logit_nats"], atol=1e-10, rtol=0)
    assert not torch.allclose(found["head_topic_nats"], everything["head_logit_nats"])


def test_the_null_of_a_logit_share_is_the_share_of_tokens_from_other_sequences():
    decoder = small_models.drawn(small_models.NEOX)
    tokens_T, swapped_RT = small_models.tokens(1, 9)[0], small_models.tokens(3, 9, seed=1)
    targets_K = torch.tensor([2, 5, 7])
    frozen, ones_QK = freeze(decoder, tokens_T[None]), torch.ones(9, 9, dtype=torch.float64)
    found = logit_shares(frozen, tokens_T, swapped_RT, ones_QK, targets_K)
    parts = []
    for other_T in swapped_RT:  # each other sequence's tokens as if they followed here, one gradient each
        following_T = tokens_T.clone()
        following_T[targets_K + 1] = other_T[targets_K + 1]
        parts.append(logit_shares(frozen, following_T, swapped_RT, ones_QK, targets_K)["head_logit_nats"])
    torch.testing.assert_close(found["head_swapped_nats"], torch.stack(parts).mean(0), atol=1e-12, rtol=0)
    assert (found["head_swapped_nats"] - found["head_logit_nats"]).abs().min() > 1e-3
    itself = logit_shares(frozen, tokens_T, tokens_T[None], ones_QK, targets_K)
    torch.testing.assert_close(itself["head_swapped_nats"], itself["head_logit_nats"], atol=1e-12, rtol=0)


# -- the analysis -----------------------------------------------------------------------------------------------------


def test_raw_attention_is_what_the_attention_analysis_finds(corpus):
    decoder = small_models.drawn(small_models.GQA, dtype=torch.float32)
    ours = run(decoder, corpus)
    theirs = AttentionStatistics(**FAST)(decoder, corpus, np.random.default_rng(1)).table  # draws the same sequences
    np.testing.assert_allclose(ours.layer_series("raw_selectivity"), theirs.matrix("selectivity").mean(1), atol=1e-6)
    assert value(ours, "raw_selectivity") == pytest.approx(value(theirs, "selectivity"), abs=1e-6) != 0
    assert ours.summary()["raw_selectivity"]["ci_low"] == pytest.approx(
        theirs.summary()["selectivity"]["ci_low"], abs=3e-3
    )


def by_hand(map_of, corpus) -> np.ndarray:
    """Query by query, key by key: the sums of a map's weight on its own topic beyond label swap, and of its weight on
    other tokens than the query, [sequences, 2]. The sequences and swaps are those that `run` draws."""
    generator, val = np.random.default_rng(1), corpus.val
    chosen = generator.choice(len(val), FAST["sequences"], replace=False)
    swaps_NR = balanced_swaps(FAST["sequences"], 20, generator)
    sums = np.zeros((len(chosen), 2))
    for n, row in enumerate(chosen):
        map_QK = map_of(torch.from_numpy(val.tokens_NT[row].astype(np.int64)))
        own_T, others_RT = val.topics_NT[row], val.topics_NT[chosen[swaps_NR[n]]]
        for q in range(LENGTH):
            for k in range(q):
                beyond = (own_T[q] == own_T[k]) - np.mean(others_RT[:, q] == others_RT[:, k])
                sums[n] += map_QK[q, k] * np.array([beyond, 1])
    return sums


def test_shares_without_the_self_key_and_their_differences_by_hand(corpus):
    decoder = small_models.drawn(small_models.GQA, dtype=torch.float32)
    c = decoder.config

    def patterns(tokens_T: torch.Tensor) -> np.ndarray:
        trace = decoder.trace(tokens_T[None], sites=("pattern",))
        return np.stack([trace["pattern", layer][0].mean(0).detach().numpy() for layer in range(c.num_layers)])

    def rolled(tokens_T: torch.Tensor) -> np.ndarray:
        product = np.eye(LENGTH)
        for pattern_QK in patterns(tokens_T):
            product = (pattern_QK + np.eye(LENGTH)) / 2 @ product
        return product

    def by_tensor(tokens_T: torch.Tensor) -> np.ndarray:
        frozen = freeze(decoder, tokens_T[None])
        norm_IJ = torch.einsum("idje,je->ijd", full_tensor(frozen), frozen.residual[0][0]).norm(dim=-1)
        return (norm_IJ / norm_IJ.sum(-1, keepdim=True)).detach().numpy()

    maps = {"raw": lambda tokens_T: patterns(tokens_T).mean(0), "rollout": rolled, "tensorlens": by_tensor}
    sums = {name: by_hand(map_of, corpus) for name, map_of in maps.items()}
    share = {name: (part.sum(0)[0] / part.sum(0)[1]).item() for name, part in sums.items()}
    summary = run(decoder, corpus, bootstrap_draws=2000).summary()
    for name in maps:
        assert summary[f"{name}_selectivity_no_self"]["value"] == pytest.approx(share[name], abs=1e-6)
    count, profiles_JQK = len(sums["raw"]), position_profiles(LENGTH).numpy()
    controls_NJ = np.stack([by_hand(lambda _, map_QK=map_QK: map_QK, corpus)[:, 0] for map_QK in profiles_JQK], axis=1)
    design_NJ = np.column_stack((np.ones(count), controls_NJ))
    for name in ("raw", "rollout"):
        found = summary[f"tensorlens_less_{name}_no_self"]
        assert found["value"] == pytest.approx(share["tensorlens"] - share[name], abs=1e-6)
        assert abs(found["value"]) > 1e-3 and found["n"] == count and found["null"] == 0 and 0 < found["p"] <= 1
        # Jackknife of the paired difference, and what position alone leaves of its spread.
        left_N = np.array(
            [
                np.subtract(*(np.divide(*np.delete(sums[which], n, axis=0).sum(0)) for which in ("tensorlens", name)))
                for n in range(count)
            ]
        )
        pseudo_N = count * found["value"] - (count - 1) * left_N
        errors_N = pseudo_N - design_NJ @ np.linalg.lstsq(design_NJ, pseudo_N, rcond=None)[0]
        half = 1.96 * np.sqrt((errors_N**2).sum() / (count - design_NJ.shape[1]) / count)
        assert (found["ci_high"] - found["ci_low"]) / 2 == pytest.approx(half, rel=0.15)


def test_what_a_head_writes_whatever_follows_is_no_finding(corpus):
    tokens_NT = np.minimum(np.random.default_rng(0).geometric(0.3, size=corpus.val.tokens_NT.shape), 29) - 1
    frequent = dataclasses.replace(corpus.val, tokens_NT=tokens_NT.astype(np.uint16))  # the same law at every place
    decoder = small_models.drawn(small_models.NEOX, dtype=torch.float32)
    with torch.no_grad():
        for block in decoder.blocks:
            block.attention.v.weight.zero_()  # z is the value's bias, whatever is read
    table = run(decoder, dataclasses.replace(corpus, val=frequent))
    value_LH, low_LH, high_LH, null_LH = (
        table.matrix("head_logit_nats", column) for column in ("value", "ci_low", "ci_high", "null")
    )
    assert ((low_LH > 0) | (high_LH < 0)).mean() > 0.5  # against 0 most heads would be a finding
    assert (table.matrix("head_logit_excess_nats", "q") > 0.05).all()
    np.testing.assert_allclose(table.matrix("head_logit_excess_nats"), value_LH - null_LH, atol=1e-12)


def test_what_a_head_writes_for_the_token_that_follows_is_one(corpus):
    decoder = topical(1.5)
    with torch.no_grad():  # the one head passes on the topics of what it reads, and topics persist
        attention = decoder.blocks[0].attention
        attention.v.weight.zero_()[:, :4] = torch.eye(4)
        attention.o.weight.zero_()[:4] = torch.eye(4)
    row = next(row for row in run(decoder, corpus).rows() if row["metric"] == "head_logit_excess_nats")
    assert row["ci_low"] > 0 and row["q"] < 0.05 and row["null"] == 0


def test_the_control_of_exactness_runs_on_the_sequences_it_is_set_beside(corpus):
    decoder = small_models.drawn(small_models.MHA, dtype=torch.float32)
    row = run(decoder, corpus).summary()["tensorlens_error"]
    chosen = np.random.default_rng(1).choice(len(corpus.val), FAST["sequences"], replace=False)
    errors, exact = [], small_models.drawn(small_models.MHA)
    for n in chosen:
        tokens_BT = torch.from_numpy(corpus.val.tokens_NT[n : n + 1].astype(np.int64))
        x_BTD, *_, y_BTD = freeze(exact, tokens_BT).residual
        beyond, short = (
            exact.trace(tokens_BT, start=(0, x_BTD * by), sites=("resid_post",), logits=None)["resid_post", 2]
            for by in (1 + 1e-5, 1 - 1e-5)
        )
        errors.append(((beyond - short) / 2e-5 - y_BTD).abs().max().item() / y_BTD.abs().max().item())
    assert row["null"] == pytest.approx(max(errors), rel=1e-3) and row["n"] == len(errors)
    assert errors[0] < 0.99 * max(errors)  # mutant: the control of the first sequence alone


def test_documents_reach_every_pass_on_the_decoders_device(corpus, monkeypatch):
    """The meta device stands for an accelerator: what a pass is given must already be there."""

    class Seen(Exception):
        pass

    given: list[torch.Tensor] = []

    def freezing(decoder, tokens_BT, *, branch, documents_BT):
        given.extend((tokens_BT, documents_BT))

    def jacobian(frozen, documents_BT):
        given.append(documents_BT)
        raise Seen

    monkeypatch.setattr("headdyn.analysis.tensorlens_measure.freeze", freezing)
    monkeypatch.setattr("headdyn.analysis.tensorlens_measure.jacobian_error", jacobian)
    split = dataclasses.replace(corpus.val, documents_NT=corpus.val.topics_NT.astype(np.uint16))
    with pytest.raises(Seen):
        run(Decoder(small_models.MHA).to("meta"), dataclasses.replace(corpus, val=split, mask_documents=True))
    assert [tensor.device.type for tensor in given] == ["meta"] * 3


@torch.no_grad()
def topical(strength: float) -> Decoder:
    """One layer whose heads look at tokens of the same topic: of `tiny`'s tokens each topic owns a third."""
    config = dataclasses.replace(
        small_models.NOPE, num_layers=1, d_model=16, num_heads=1, num_kv_heads=1, head_dim=4, qk_norm=False
    )
    decoder = small_models.drawn(config, dtype=torch.float32)
    own = config.vocab_size // 3
    for token in range(config.vocab_size):
        decoder.embed.weight[token, :4] = torch.eye(4)[min(token // own, 3)]
    attention = decoder.blocks[0].attention
    for linear in (attention.q, attention.k):
        linear.weight.zero_()
        linear.weight[:, :4] = strength * torch.eye(4)
    return decoder


def test_all_three_find_attention_that_follows_topics_and_none_that_does_not(corpus):
    following, blind = run(topical(1.5), corpus), run(topical(0.0), corpus)
    for name in ("raw", "rollout", "tensorlens"):
        found = following.summary()[f"{name}_selectivity_no_self"]
        assert found["ci_low"] > 0.02 and found["q"] < 0.01
    for name in ("raw", "rollout"):  # uniform attention, whatever the labels: exactly nothing
        assert abs(value(blind, f"{name}_selectivity")) < 1e-6
    assert value(following, "tensorlens_selectivity") < value(following, "tensorlens_selectivity_no_self")
    assert following.matrix("head_written_selectivity")[0, 0] > 0.02


def test_every_branch_is_exact_and_says_something_of_its_own(corpus):
    decoder = small_models.drawn(small_models.MHA, dtype=torch.float32)
    up, gate = run(decoder, corpus), run(decoder, corpus, branch="gate")
    for table in (up, gate):
        error = table.summary()["tensorlens_error"]
        assert error["value"] < 1e-5 and error["null"] > 0.1  # the Jacobian fails where the tensor is exact
    assert value(up, "tensorlens_selectivity") != value(gate, "tensorlens_selectivity")
    assert value(up, "raw_selectivity") == value(gate, "raw_selectivity")


def test_sequences_are_cut_to_the_tokens_asked_for(corpus):
    decoder = small_models.drawn(small_models.GPT2, dtype=torch.float32)
    short = dataclasses.replace(
        corpus,
        val=dataclasses.replace(corpus.val, **{n: getattr(corpus.val, n)[:, :16] for n in ("tokens_NT", "topics_NT")}),
    )
    assert run(decoder, corpus, tokens=16).rows() == run(decoder, short).rows()


def test_inside_documents_topic_figures_are_absent_with_the_reason(corpus):
    documents_NT = (corpus.val.topics_NT != corpus.val.topics_NT[:, :1]).cumsum(1) > 0
    split = dataclasses.replace(corpus.val, documents_NT=documents_NT.astype(np.uint16))
    masked = dataclasses.replace(corpus, val=split, mask_documents=True)
    found = TensorLens(**FAST)(
        small_models.drawn(small_models.MHA, dtype=torch.float32), masked, np.random.default_rng(1)
    )
    summary = found.table.summary()
    for name, row in summary.items():
        assert ("value" in row) == (name in ("tensorlens_self", "tensorlens_error")), name
    assert "inside documents" in summary["tensorlens_selectivity"]["reason"]
    assert np.isfinite(found.table.matrix("head_logit_nats")).all() and len(found.figures) == 4


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"branch": "down"}, "branch='down' must be one of up, gate"),
        ({"label_swaps": 5}, "label_swaps=5 must be at least 20"),
        ({"sequences": 20}, "sequences=20 must exceed label_swaps=20"),
        ({"tokens": 2}, "tokens=2 must be at least 8"),
        ({"targets": 0}, "targets=0 must be at least 1"),
        ({"sign_flips": 99}, "sign_flips=99 must be at least 9999"),
    ],
)
def test_impossible_settings_are_refused(settings, match):
    with pytest.raises(ValueError, match=f"^analysis.tensorlens.{match}"):
        build(TensorLens, settings, "analysis.tensorlens")
