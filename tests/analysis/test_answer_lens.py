from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from headdyn.analysis.answer_lens import AnswerLens
from headdyn.analysis.answer_lens_measure import answer_directions
from headdyn.analysis.interventions.patch import Patch
from headdyn.analysis.interventions.patching import PromptPatching
from headdyn.core.figures import Figure
from headdyn.core.settings import build
from headdyn.data.prompts import Prompts
from headdyn.models.decoder import Decoder
from headdyn.models.frozen import freeze
from headdyn.models.frozen_pairs import full_tensor
from tests import small_models
from tests.small_tokenizer import BIGGER, byte_level, prompts

QUICK = {"dtype": "float64", "sign_flips": 999, "bootstrap_draws": 100}
FAMILIES = {
    "mini_qwen3": small_models.GQA,
    "qwen2": dataclasses.replace(small_models.GQA, qk_norm=False, qkv_bias=True),
    "llama": dataclasses.replace(small_models.GQA, qk_norm=False, tied_embeddings=False),
    "neox": small_models.NEOX,
    "gpt2": dataclasses.replace(small_models.GPT2, max_positions=64),
}


def model(name: str = "neox") -> Decoder:
    return small_models.drawn(dataclasses.replace(FAMILIES[name], vocab_size=len(byte_level())))


def run(decoder: Decoder, family: Prompts, **settings):
    return AnswerLens(**{**QUICK, **settings})(decoder, family, np.random.default_rng(0)).table


@pytest.fixture(scope="module")
def family() -> Prompts:
    return prompts(bug_pairs=5, control_pairs=3)


def rows_of(family: Prompts, *, clean: bool = False):
    """Every prompt of the bug pairs with the answer's first tokens, and how many of its tokens are the prompt's."""
    bugs = family.where(family.is_bug_P)
    for group in bugs.groups:
        for n, unit in enumerate(group.units_N):
            prompt = group.clean_NT[n] if clean else group.corrupted_NT[n]
            tokens = torch.from_numpy(np.concatenate((prompt, group.shared_NC[n])))[None]
            yield unit, group, tokens, len(prompt), int(group.right_NA[n, 0]), int(group.wrong_NA[n, 0])


def over_pairs(values: list[tuple[int, float]]) -> float:
    """Mean over pairs of the mean over a pair's prompts."""
    units = sorted({unit for unit, _ in values})
    return float(np.mean([np.mean([value for at, value in values if at == unit]) for unit in units]))


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_and_parts_are_those_of_the_tensor_and_sum_to_what_the_model_answers(name, family):
    decoder = model(name)
    summary = run(decoder, family).summary()
    answers, blocks, others, prefixes, biases = [], [], [], [], []
    with torch.no_grad():
        for unit, group, tokens, prompt, right, wrong in rows_of(family):
            logits = decoder(tokens)[0, -1]
            answers.append((unit, float(logits[right] - logits[wrong])))
            frozen = freeze(decoder, tokens)
            direction = decoder.unembed.weight[right] - decoder.unembed.weight[wrong]
            c_D = frozen.affine()[0, -1]
            centred = c_D - c_D.mean() if decoder.norm.bias is not None else c_D
            scale = frozen.final_scale_BT[0, -1]
            beside = 0 if decoder.norm.bias is None else decoder.norm.bias
            biases.append((unit, float(direction @ (centred * scale * decoder.norm.weight + beside))))
            put_JD = torch.einsum("dje,je->jd", full_tensor(frozen)[-1], frozen.residual[0][0])
            if decoder.norm.bias is not None:
                put_JD = put_JD - put_JD.mean(-1, keepdim=True)
            share_J = (put_JD * scale * decoder.norm.weight) @ direction
            start, length = group.span.target_start, group.span.length
            blocks.append((unit, float(share_J[start : start + length].sum())))
            prefixes.append((unit, float(share_J[prompt:].sum())))
            others.append((unit, float(share_J[:prompt].sum()) - blocks[-1][1]))
            assert float(share_J.sum()) + biases[-1][1] == pytest.approx(answers[-1][1], abs=1e-9)
    for metric, values in {
        "answer_nats": answers,
        "answer_block_nats": blocks,
        "answer_wording_nats": others,
        "answer_prefix_nats": prefixes,
        "answer_biases_nats": biases,
    }.items():
        assert summary[metric]["value"] == pytest.approx(over_pairs(values), abs=1e-9), metric
        assert summary[metric]["n"] == 5 and summary[metric]["unit"] == "pair"
    parts = ("embedding", "heads", "mlps", "biases")
    assert sum(summary[f"answer_{part}_nats"]["value"] for part in parts) == pytest.approx(
        over_pairs(answers), abs=1e-9
    )
    error = summary["answer_lens_error"]
    assert error["value"] < 1e-10 and error["null"] > 0.1  # gradient × input fails where the tensor is exact
    has_biases = name in ("neox", "gpt2", "qwen2")
    assert (abs(summary["answer_biases_nats"]["value"]) > 1e-4) == has_biases


def test_the_answer_is_the_log_odds_that_patching_reads(family):
    decoder, bugs = model(), family.where(family.is_bug_P)
    plain = PromptPatching(decoder, bugs, Patch(), [0])
    for wording, delta_P in (("corrupted", plain.target_P), ("clean", plain.source_P)):
        found = run(decoder, family, wording=wording).summary()["answer_nats"]
        assert found["value"] == pytest.approx(delta_P.mean(), abs=1e-9)


@pytest.mark.parametrize("name", ["llama", "mini_qwen3"])
def test_heads_and_mlps_are_what_a_trace_shows_them_write(name, family):
    decoder, c = model(name), FAMILIES[name]
    table = run(decoder, family)
    heads, mlps = {}, {}
    with torch.no_grad():
        for unit, _, tokens, _, right, wrong in rows_of(family):
            trace = decoder.trace(tokens, sites=("z", "mlp_out", "resid_post"))
            y_D = trace["resid_post", c.num_layers - 1][0, -1]
            u_D = (decoder.unembed.weight[right] - decoder.unembed.weight[wrong]) * decoder.norm.weight
            u_D = u_D * (y_D.pow(2).mean() + c.norm_eps).rsqrt()
            for layer in range(c.num_layers):
                mlps.setdefault(layer, []).append((unit, float(trace["mlp_out", layer][0, -1] @ u_D)))
                for head, o_dD in enumerate(decoder.head_weights(layer).o_HdD):
                    written = trace["z", layer][0, -1, head] @ o_dD @ u_D
                    heads.setdefault((layer, head), []).append((unit, float(written)))
    for (layer, head), values in heads.items():
        assert table.matrix("answer_direct_nats")[layer, head] == pytest.approx(over_pairs(values), abs=1e-9)
    for layer, values in mlps.items():
        assert table.layer_series("layer_mlp_answer_nats")[layer] == pytest.approx(over_pairs(values), abs=1e-9)
    np.testing.assert_allclose(
        table.layer_series("layer_heads_answer_nats"), table.matrix("answer_direct_nats").sum(1), atol=1e-9
    )


def test_what_a_head_carries_is_what_the_frozen_answer_loses_without_it(family):
    decoder = model("gpt2")
    table = run(decoder, family)
    carried, direct = (table.matrix(f"answer_{kind}_nats") for kind in ("carried", "direct"))
    for layer, head in ((0, 1), (1, 3)):
        lost = []
        with torch.no_grad():
            for unit, _, tokens, _, right, wrong in rows_of(family):
                frozen = freeze(decoder, tokens)
                pattern_BHQK = frozen.layers[layer].pattern_BHQK.clone()
                pattern_BHQK[:, head] = 0
                layers = list(frozen.layers)
                layers[layer] = dataclasses.replace(layers[layer], pattern_BHQK=pattern_BHQK)
                without = dataclasses.replace(frozen, layers=layers)
                *_, y_NBTD = without.states(frozen.residual[0][None])
                moved_D = (frozen.residual[-1] - y_NBTD[0])[0, -1]
                moved_D = (moved_D - moved_D.mean()) * frozen.final_scale_BT[0, -1] * decoder.norm.weight
                lost.append((unit, float((decoder.unembed.weight[right] - decoder.unembed.weight[wrong]) @ moved_D)))
        assert carried[layer, head] == pytest.approx(over_pairs(lost), abs=1e-9)
    assert np.abs(carried[:2] - direct[:2]).min() > 1e-6  # the last layer's heads have no later one to go through
    assert not np.allclose(carried[2], direct[2], atol=1e-9)  # but what biases give them counts as theirs


def test_the_null_is_the_same_prompt_read_for_other_pairs_answers(family):
    decoder, bugs = model("llama"), family.where(family.is_bug_P)
    found = run(decoder, family).summary()["answer_nats"]
    values = []
    with torch.no_grad():
        for unit, _, tokens, _, _, _ in rows_of(family):
            logits = decoder(tokens)[0, -1]
            others = [
                (other, float(logits[right] - logits[wrong]))
                for other, _, _, _, right, wrong in rows_of(family)
                if other != unit
            ]
            values.append((unit, over_pairs(others)))
    assert found["null"] == pytest.approx(over_pairs(values), abs=1e-9) != pytest.approx(found["value"], abs=1e-3)
    own_ND, other_ND = answer_directions(decoder, bugs)[0]
    assert own_ND.shape == other_ND.shape and not torch.allclose(own_ND, other_ND)


def test_a_head_that_writes_for_short_answers_whatever_the_numbers_is_no_finding():
    family = prompts(bug_pairs=16, control_pairs=0, formats=(BIGGER,))
    decoder = model("llama")
    rights, wrongs = ({row[i] for row in rows_of(family)} for i in (4, 5))
    unembed = decoder.unembed.weight
    with torch.no_grad():
        for token in range(len(unembed)):  # one direction for all answers with one digit, another for all with two
            unembed[token, :2] = torch.tensor([float(token in rights), float(token in wrongs)])
            if token in rights | wrongs:
                unembed[token, 2:] = 0.1 * unembed[token, 2:]
        o_HdD = decoder.head_weights(2).o_HdD
        o_HdD[1, :, 2:] = 0
        v_GDd = decoder.head_weights(2).v_GDd
        v_GDd[0] = 0
        v_GDd[0, 3] = 1.0  # of group 0, heads 0 and 1 pass one number on
        o_HdD[1, :, 0] = 1.0
    table = run(decoder, family)
    value, null, q = (
        table.matrix("answer_direct_nats")[2, 1],
        table.matrix("answer_direct_nats", "null")[2, 1],
        table.matrix("answer_direct_excess_nats", "q")[2, 1],
    )
    low, high = (table.matrix("answer_direct_nats", part)[2, 1] for part in ("ci_low", "ci_high"))
    assert low > 0 or high < 0  # against 0 it would be one
    assert null == pytest.approx(value, rel=1e-6) and q > 0.05
    summary = table.summary()  # and Δ is far from 0, so that there are shares
    shares = {part: summary[f"answer_{part}_share"]["value"] for part in ("embedding", "heads", "mlps", "biases")}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-9)
    heads, answer = (summary[f"answer_{name}nats"]["value"] for name in ("heads_", ""))
    assert shares["heads"] == pytest.approx(heads / answer, abs=1e-9) != 0


def test_the_pictured_tokens_are_of_prompts_in_one_order(monkeypatch):
    family, pictured = prompts(bug_pairs=9, control_pairs=2, formats=(BIGGER,)), []
    monkeypatch.setattr(
        "headdyn.analysis.answer_lens_measure.tokens_figure", lambda *given: pictured.append(given) or Figure(None)
    )
    decoder = model()
    run(decoder, family)
    ((rows, labels, places, words),) = pictured
    assert words == "format bigger, the right answer first"
    values = []
    with torch.no_grad():
        for unit, _, tokens, _, right, wrong in rows_of(family):
            pair, text = family.pairs[unit], family.decode(tokens[0].tolist())
            if text.index(pair.right) > text.index(pair.wrong):
                continue
            frozen = freeze(decoder, tokens)
            u_D = (decoder.unembed.weight[right] - decoder.unembed.weight[wrong]) * decoder.norm.weight
            u_D = (u_D - u_D.mean()) * frozen.final_scale_BT[0, -1]
            values.append(torch.einsum("d,dje,je->j", u_D, full_tensor(frozen)[-1], frozen.residual[0][0]))
    assert [row["n"] for row in rows] == [len(values)] * len(rows) == [5] * len(rows)
    np.testing.assert_allclose([row["value"] for row in rows], torch.stack(values).mean(0), atol=1e-9)
    assert labels[:3] == ["Q", ":", "\u2423Which"] and labels[-1] == "." and labels[-2].endswith(" …")
    assert places[0] == places[-3] == "rest of the prompt" and places[-1] == "of the answer"


def test_prompts_frozen_a_few_at_once_say_the_same(family, monkeypatch):
    whole = run(model(), family).rows()
    monkeypatch.setattr("headdyn.analysis.answer_lens_measure._MOST_FLOATS", 1)
    for row, other in zip(run(model(), family).rows(), whole, strict=True):
        assert row["metric"] == other["metric"]
        assert row["value"] == pytest.approx(other["value"], abs=1e-9) and row["p"] == other["p"]


def test_what_is_not_there_is_absent(family):
    groups = [dataclasses.replace(group, shared_NC=group.shared_NC[:, :0]) for group in family.groups]
    summary = run(model(), dataclasses.replace(family, groups=tuple(groups))).summary()
    assert summary["answer_prefix_nats"]["reason"] == "the prompts have no such tokens"
    assert "value" in summary["answer_block_nats"] and "value" in summary["answer_wording_nats"]
    untrained = model()
    with torch.no_grad():
        untrained.unembed.weight.zero_()
    summary = run(untrained, family).summary()
    assert "Δ is 0 nats, within noise" in summary["answer_heads_share"]["reason"]
    assert summary["answer_lens_error"]["reason"] == "Δ is 0 for every prompt"
    assert summary["answer_prefix_nats"]["value"] == 0


def test_what_cannot_be_done_is_refused(family):
    with pytest.raises(ValueError, match=r"hold 1 bug pairs.*set data\.bug_pairs to 2 or more"):
        run(model(), prompts(bug_pairs=1))
    for settings, match in (
        ({"wording": "seed"}, "wording='seed' must be one of clean, corrupted"),
        ({"dtype": "bfloat16"}, "dtype='bfloat16' must be one of float64, float32"),
        ({"branch": "down"}, "branch='down' must be one of up, gate"),
        ({"sign_flips": 9}, "sign_flips=9 must be at least 999"),
    ):
        with pytest.raises(ValueError, match=f"^analysis.answer_lens.{match}"):
            build(AnswerLens, settings, "analysis.answer_lens")
