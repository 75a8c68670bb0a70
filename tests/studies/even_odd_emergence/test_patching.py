from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from headdyn.analysis.interventions.patch import Patch
from headdyn.analysis.interventions.patching import GroupPatching
from headdyn.core.records import HeadTable
from headdyn.core.settings import build
from headdyn.models.decoder import Decoder, Edit
from headdyn.studies.even_odd_emergence.patching import (
    ORIGINAL_PATCH,
    OriginalPatching,
    judged_right,
    responses_to_patches,
    verdict_rows,
)
from tests.small_models import NEOX, drawn
from tests.small_tokenizer import byte_level, prompts

GROUPS = {"plain": (), "even": (0, 2), "odd": (1, 3)}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("I think the answer is:\n\n9.11\n\nA:\n\nThe", False),
        ("I would say that the answer is 9.8.\n\nA:\n\nThe", True),
        ("9.8 is bigger than 9.11", False),
        ("I would say that the answer is the same as the answer to your question.", False),
    ],
)
def test_verdicts_are_the_studys(text: str, right: bool) -> None:
    assert judged_right(text) is right


def model() -> Decoder:
    return drawn(dataclasses.replace(NEOX, vocab_size=len(byte_level())), dtype=torch.float32)


def half(decoder: Decoder) -> Decoder:
    return Decoder.from_state(decoder.config, {name: part.half() for name, part in decoder.state_dict().items()})


def test_the_patch_is_the_studys() -> None:
    assert Patch(site="attn_out_slice", source="prompt", alignment="left", steps="every_step") == ORIGINAL_PATCH


@torch.no_grad()
def test_responses_against_a_hook_written_as_the_study_describes_it() -> None:
    """Float16, the first min(T) positions of the sliced attention output overwritten at every call of the hook."""
    decoder, family = model(), prompts()
    responses = responses_to_patches(decoder, family, 1, GROUPS, trials=3, tokens=5)
    assert responses.column_names == ["name", "text", "success", "agreeing", "heads"]
    assert responses["heads"].type == pa.list_(pa.int32()) and responses["name"].to_pylist() == list(GROUPS)
    sixteen, group = half(decoder), family.original_prompt
    clean = sixteen.trace(torch.from_numpy(group.clean_NT), sites=("attn_out",), layers=(1,), logits=None)[
        "attn_out", 1
    ]
    block = sixteen.blocks[1]

    for response, heads in zip(responses.to_pylist(), GROUPS.values(), strict=True):

        def hook(module, inputs, output, heads=heads):  # fires on the prompt and on each new token
            attn_out, keys_values = output
            pieces = attn_out.clone().unflatten(-1, (4, -1))
            length = min(pieces.shape[1], clean.shape[1])
            for head in heads:
                pieces[:, :length, head] = clean.unflatten(-1, (4, -1))[:, :length, head]
            return pieces.flatten(-2), keys_values

        handle = block.attention.register_forward_hook(hook)
        tokens = sixteen.generate(torch.from_numpy(group.corrupted_NT), 5)
        handle.remove()
        text = family.decode(tokens[0, group.corrupted_NT.shape[1] :].tolist())
        assert response["text"] == text and response["heads"] == list(heads)
        assert response["success"] == judged_right(text) and response["agreeing"] == 1
    assert len(set(responses["text"].to_pylist())) > 1


def test_the_analysis_gives_the_verdicts_and_their_difference() -> None:
    findings = OriginalPatching(trials=3, tokens=4)(model(), prompts(), np.random.default_rng(0))
    summary = findings.table.summary()
    assert set(summary) == set(OriginalPatching.metrics)
    responses = {row["name"]: row for row in findings.tables["original_responses"].to_pylist()}
    assert [responses[name]["heads"] for name in GROUPS] == [list(heads) for heads in GROUPS.values()]
    for name in GROUPS:
        row = summary[f"original_{name}_success"]
        assert row["value"] == responses[name]["success"] and (row["n"], row["unit"]) == (1, "prompt")
    assert summary["original_strength"]["value"] == responses["even"]["success"] - responses["odd"]["success"]
    with pytest.raises(ValueError, match="trials=0 must be at least 1"):
        build(OriginalPatching, {"trials": 0}, "companion")


def test_trials_of_one_greedy_prompt_are_one_unit() -> None:
    rows = verdict_rows(pa.table({"name": ["even"], "success": [True]}))
    assert rows[0]["n"] == 1 and rows[0]["unit"] == "prompt" and rows[0]["value"] == 1
    assert rows[0]["ci_low"] < 0.03 and rows[0]["ci_high"] == 1
    assert len(HeadTable.from_rows(rows)) == 1


def test_slices_behind_the_projection_are_not_heads() -> None:
    """With every head but the even ones silenced, the study's odd pieces still carry the even heads' output."""
    decoder, group = model(), prompts().original_prompt
    with torch.no_grad():
        decoder.head_weights(1).o_HdD[[1, 3]] = 0
    patch = dataclasses.replace(ORIGINAL_PATCH, steps="prefill")
    odd = np.array([[0.0, 1, 0, 1]])
    engine = GroupPatching(decoder, group, dataclasses.replace(patch, site="z"), [1])
    assert engine.deltas({1: odd})[1][0, 0] == pytest.approx(engine.target_N[0], abs=1e-5)  # as heads: no effect
    slices = GroupPatching(decoder, group, patch, [1])
    assert abs(slices.deltas({1: odd})[1][0, 0] - slices.target_N[0]) > 0.01


def test_new_tokens_are_written_over() -> None:
    """At each new token the patched pieces are the clean prompt's first position, whatever the token."""
    decoder, group = half(model()), prompts().original_prompt
    clean = decoder.trace(torch.from_numpy(group.clean_NT), sites=("attn_out",), layers=(1,), logits=None)[
        "attn_out", 1
    ]
    everything = Edit(site="attn_out", layer=1, value=clean[:, :1])
    after = GroupPatching(decoder, group, ORIGINAL_PATCH, [1]).generate(1, np.ones((1, 4)), 6)[0, 0]
    prompt = torch.from_numpy(group.corrupted_NT)
    text = torch.cat((prompt, torch.from_numpy(after)[None]), dim=1)
    length, written = prompt.shape[1], clean.shape[1]
    where = torch.zeros(1, text.shape[1], 1, dtype=torch.bool)
    where[:, :written] = where[:, length:] = True
    value = torch.cat((clean, clean[:, :1].expand(-1, text.shape[1] - written, -1)), dim=1)
    with torch.no_grad():
        edited = decoder.trace(text, edits=[dataclasses.replace(everything, value=value, where=where)]).logits
    assert edited is not None
    assert (edited[0, length - 1 : -1].argmax(-1).numpy() == after).all()
    prefill = dataclasses.replace(ORIGINAL_PATCH, steps="prefill")
    assert (GroupPatching(decoder, group, prefill, [1]).generate(1, np.ones((1, 4)), 6)[0, 0] != after).any()
