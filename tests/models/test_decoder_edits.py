"""Interventions: what an Edit does at every site, how cells stack, gradients, and edits during generation."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import pytest
import torch

from headdyn.models.config import DecoderConfig
from headdyn.models.decoder import SITES, Decoder, Edit
from tests.models import reference
from tests.models.test_decoder import atol, fingerprint
from tests.small_models import CONFIGS, GPT2, GQA, MHA, NEOX, SLIDING, drawn, tokens

EVERY = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def noise_like(x: torch.Tensor, seed: int = 1) -> torch.Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@EVERY
@pytest.mark.parametrize("site", SITES)
@torch.no_grad()
def test_an_edit_replaces_the_value_and_nothing_else(config: DecoderConfig, site: str) -> None:
    decoder, x_BT = drawn(config), tokens(2, 6)
    plain = decoder.trace(x_BT, sites=SITES)
    value = noise_like(plain[site, 1])
    logits, sites = reference.run(decoder, x_BT, replaced={(site, 1): value})
    edited = decoder.trace(x_BT, sites=SITES, edits=[Edit(site=site, layer=1, value=value)])
    assert torch.equal(edited[site, 1], value)
    for key, expected in sites.items():
        # An edit after a layer's pattern leaves the pattern; what came before the edit is untouched to the bit.
        torch.testing.assert_close(edited[key], expected, atol=atol(config), rtol=0, msg=str(key))
        if key[1] == 0:
            assert torch.equal(edited[key], plain[key])
    torch.testing.assert_close(edited.logits, logits, atol=atol(config), rtol=0)
    assert (edited.logits - plain.logits).abs().max() > 0.1
    itself = decoder.trace(x_BT, sites=("pattern",), edits=[Edit(site=site, layer=1, value=plain[site, 1])])
    torch.testing.assert_close(itself.logits, plain.logits, atol=1e-13, rtol=0)


@torch.no_grad()
def test_a_pattern_edit_acts_though_no_pattern_is_asked_for() -> None:
    decoder, x_BT = drawn(GQA), tokens(2, 6)
    uniform_QK = torch.ones(6, 6, dtype=torch.float64).tril() / torch.arange(1, 7)[:, None]
    edit = Edit(
        site="pattern", layer=1, value=uniform_QK, where=torch.tensor([True, False, False, True])[:, None, None]
    )
    trace = decoder.trace(x_BT, sites=("v", "z"), edits=[edit])
    mean_BTGd = trace["v", 1].cumsum(1) / torch.arange(1, 7)[:, None, None]
    torch.testing.assert_close(
        trace["z", 1][:, :, [0, 3]], mean_BTGd, atol=1e-13, rtol=0
    )  # heads 0, 3 read groups 0, 1
    plain = decoder.trace(x_BT, sites=("z",))["z", 1]
    torch.testing.assert_close(trace["z", 1][:, :, [1, 2]], plain[:, :, [1, 2]], atol=1e-13, rtol=0)


@EVERY
@torch.no_grad()
def test_stacked_cells_equal_one_at_a_time(config: DecoderConfig) -> None:
    """One row per (head, layer) cell, `where` differing by row: the patching engine's way of working."""
    decoder, x_1T, donor_1T = drawn(config), tokens(1, 6, seed=0), tokens(1, 6, seed=1)
    donor = decoder.trace(donor_1T, sites=("z",))
    heads = torch.eye(config.num_heads, dtype=torch.bool)[:, None, :, None]  # [cells, 1, H, 1]
    for layer in range(config.num_layers):
        resid = decoder.trace(x_1T, sites=("resid_pre",))["resid_pre", layer]
        stacked = decoder.trace(
            x_1T.expand(config.num_heads, -1),
            edits=[Edit(site="z", layer=layer, value=donor["z", layer], where=heads)],
            start=(layer, resid.expand(config.num_heads, -1, -1)),
            logits="last",
        ).logits
        for head in range(config.num_heads):
            edit = Edit(site="z", layer=layer, value=donor["z", layer], where=heads[head])
            alone = decoder.trace(x_1T, edits=[edit]).logits[:, -1]
            torch.testing.assert_close(stacked[head], alone, atol=1e-12, rtol=0)  # measured 3.8e-15
        assert (
            torch.cdist(stacked[:, 0], stacked[:, 0]).add(torch.eye(config.num_heads)).min() > 0.05
        )  # cells differ: 0.37 at least


@torch.no_grad()
def test_several_edits_apply_in_the_order_given() -> None:
    decoder, x_BT = drawn(MHA), tokens(2, 6)
    zero = torch.zeros((), dtype=torch.float64)
    first = Edit(site="z", layer=1, value=zero + 1.0)
    second = Edit(site="z", layer=1, value=zero, where=(torch.arange(6) < 2)[:, None, None])
    z_BTHd = decoder.trace(x_BT, sites=("z",), edits=[first, second])["z", 1]
    assert z_BTHd[:, :2].eq(0).all() and z_BTHd[:, 2:].eq(1).all()
    assert decoder.trace(x_BT, sites=("z",), edits=[second, first])["z", 1].eq(1).all()
    both = [first, Edit(site="mlp_out", layer=2, value=zero), Edit(site="resid_post", layer=0, value=zero + 0.5)]
    trace = decoder.trace(x_BT, sites=SITES, edits=both)
    assert trace["resid_pre", 1].eq(0.5).all() and trace["z", 1].eq(1).all() and trace["mlp_out", 2].eq(0).all()
    assert torch.equal(trace["resid_post", 2], trace["resid_pre", 2] + trace["attn_out", 2])


@torch.no_grad()
def test_an_edit_takes_the_models_dtype() -> None:
    decoder, x_BT = drawn(MHA, dtype=torch.float32), tokens(2, 6)
    trace = decoder.trace(
        x_BT, sites=("z",), edits=[Edit(site="z", layer=0, value=torch.zeros((), dtype=torch.float64))]
    )
    assert trace["z", 0].dtype == trace.logits.dtype == torch.float32


def test_an_edit_that_does_not_fit_is_refused() -> None:
    decoder, x_BT = drawn(GQA), tokens(2, 6)
    wrong = {
        r"value of shape \(8, 6, 4, 6\) does not broadcast to the site's \(2, 6, 4, 6\)": (
            torch.zeros(8, 6, 4, 6),
            None,
        ),
        r"value of shape \(3, 4, 6\)": (torch.zeros(3, 4, 6), None),
        r"value of shape \(1, 2, 6, 4, 6\)": (torch.zeros(1, 2, 6, 4, 6), None),
        r"where of shape \(2, 6, 1\)": (torch.zeros(()), torch.ones(2, 6, 1, dtype=torch.bool)),
    }
    for message, (value, where) in wrong.items():
        with pytest.raises(ValueError, match=f"edit of 'z' at layer 1: {message}"):
            decoder.trace(x_BT, edits=[Edit(site="z", layer=1, value=value, where=where)])
    with pytest.raises(ValueError, match="unknown site 'attn'"):
        decoder.trace(x_BT, edits=[Edit(site="attn", layer=1, value=torch.zeros(()))])
    with pytest.raises(ValueError, match="layer 3 is out of range"):
        decoder.trace(x_BT, edits=[Edit(site="z", layer=3, value=torch.zeros(()))])


# -- gradients --------------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("explicit", [(), ("pattern",)], ids=["fused", "explicit"])
def test_gradients_through_an_edit_equal_finite_differences(config: DecoderConfig, explicit: Sequence[str]) -> None:
    decoder, x_BT = drawn(config), tokens(2, 6)
    before = fingerprint(decoder)
    with torch.no_grad():
        value = decoder.trace(x_BT, sites=("z",))["z", 1]
    direction = noise_like(value)

    def loss(z_BTHd: torch.Tensor) -> torch.Tensor:
        trace = decoder.trace(x_BT, sites=explicit, edits=[Edit(site="z", layer=1, value=z_BTHd)], logits="last")
        return trace.logits.square().sum()

    value.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(value), value)
    with torch.no_grad():
        numeric = (loss(value + 1e-5 * direction) - loss(value - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-6, atol=0)  # measured 9.4e-9
    assert gradient.abs().sum() > 0.1
    assert fingerprint(decoder) == before
    assert all(parameter.grad is None for parameter in decoder.parameters())


def test_gradients_reach_the_weights_through_trace() -> None:
    """Interchange training's case: the loss of an edited run, by parameter, equals the fast path's where nothing is edited."""
    decoder, x_BT = drawn(NEOX), tokens(2, 6)
    fast = torch.autograd.grad(decoder(x_BT).logsumexp(-1).sum(), list(decoder.parameters()))
    traced = torch.autograd.grad(
        decoder.trace(x_BT, sites=("z",)).logits.logsumexp(-1).sum(), list(decoder.parameters())
    )
    for mine, its in zip(fast, traced, strict=True):
        torch.testing.assert_close(mine, its, atol=1e-12, rtol=0)
    donor = decoder.trace(tokens(2, 6, seed=1), sites=("z",), layers=(1,), logits=None)["z", 1]
    edited = decoder.trace(x_BT, edits=[Edit(site="z", layer=1, value=donor)]).logits.logsumexp(-1).sum()
    gradient = torch.autograd.grad(edited, decoder.blocks[1].attention.v.weight)[0]
    assert gradient.abs().max() > 1e-3  # only the donor's run reads layer 1's values


def test_trace_leaves_the_model_as_it_was() -> None:
    decoder, x_BT = drawn(MHA), tokens(2, 6)
    before, modules = fingerprint(decoder), dict(decoder.named_modules())
    plain = decoder(x_BT)
    decoder.trace(x_BT, sites=SITES, edits=[Edit(site="z", layer=1, value=torch.zeros((), dtype=torch.float64))])
    assert fingerprint(decoder) == before and torch.equal(decoder(x_BT), plain)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in modules.values())


# -- generation -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def uncached(decoder: Decoder, tokens_BT: torch.Tensor, steps: int, edits: Sequence[Edit] = ()) -> torch.Tensor:
    """Greedy continuation that runs the whole sequence again for every token; edits must suit the final length."""
    length = tokens_BT.shape[1] + steps - 1
    for _ in range(steps):
        padded = torch.nn.functional.pad(tokens_BT, (0, length - tokens_BT.shape[1]))
        logits = decoder.trace(padded, edits=edits).logits[:, tokens_BT.shape[1] - 1]
        tokens_BT = torch.cat((tokens_BT, logits.argmax(-1, keepdim=True)), dim=1)
    return tokens_BT


@EVERY
@torch.no_grad()
def test_the_cache_changes_nothing(config: DecoderConfig) -> None:
    decoder, x_BT = drawn(config), tokens(4, 5)
    generated = decoder.generate(x_BT, 12)
    assert generated.shape == (4, 17) and torch.equal(generated[:, :5], x_BT)
    assert torch.equal(generated, uncached(decoder, x_BT, 12))
    assert torch.equal(decoder.generate(x_BT, 0), x_BT)
    # A mutant that must fail: positions counted from the step and not from the sequence.
    if config.rotary_dim or config.max_positions:
        mutant = copy.deepcopy(decoder)
        for method in ("rotary", "embeddings"):
            real = getattr(mutant, method)
            object.__setattr__(mutant, method, lambda first, offset, real=real: real(first, 0))
        assert not torch.equal(mutant.generate(x_BT, 12), generated)


def extended(edit: Edit, prompt: int, length: int, every_step: bool, rows: int, width: tuple[int, ...]) -> Edit:
    """The edit on the whole sequence: as given on the prompt, its first position (or nothing) on each later token."""
    value = edit.value.expand(rows, prompt, *width)
    where = torch.ones((), dtype=torch.bool) if edit.where is None else edit.where
    where = where.expand(rows, prompt, *width)
    later = where[:, :1].expand(rows, length - prompt, *width)
    return dataclasses.replace(
        edit,
        value=torch.cat((value, value[:, :1].expand(rows, length - prompt, *width)), dim=1),
        where=torch.cat((where, later if every_step else torch.zeros_like(later)), dim=1),
    )


ROWS, PROMPT, STEPS = 6, 5, 8
WIDTHS = {
    "resid_pre": (16,),
    "q": (4, 6),
    "k": (2, 6),
    "v": (2, 6),
    "z": (4, 6),
    "attn_out": (16,),
    "mlp_out": (16,),
    "resid_post": (16,),
}


def edits_of(site: str) -> dict[str, Edit]:
    """The ways a value and a mask may broadcast to [B, T, *width]."""
    width = WIDTHS[site]
    whole = torch.zeros(ROWS, PROMPT, *width)
    value = noise_like(whole, seed=SITES.index(site))
    by_row = (torch.arange(ROWS) % 2 == 0).view(ROWS, 1, *(1 for _ in width))
    by_unit = torch.arange(width[0]) < width[0] / 2
    by_unit = by_unit[:, None] if len(width) == 2 else by_unit
    later_half = (torch.arange(PROMPT) >= 2).view(PROMPT, *(1 for _ in width))
    return {
        "everywhere": Edit(site=site, layer=1, value=value),
        "by row": Edit(site=site, layer=1, value=value, where=by_row),
        "by unit": Edit(site=site, layer=1, value=value, where=by_unit),
        "not the first position": Edit(site=site, layer=1, value=value, where=later_half),
        "one row's value": Edit(site=site, layer=1, value=value[0]),
        "no positions": Edit(site=site, layer=1, value=value[0, 0], where=by_row),
        "a scalar": Edit(site=site, layer=1, value=torch.zeros(()), where=by_unit),
    }


@pytest.mark.parametrize("site", WIDTHS)
@pytest.mark.parametrize("kind", edits_of("z"))
@torch.no_grad()
def test_edits_while_generating(site: str, kind: str) -> None:
    decoder, x_BT, edit = drawn(GQA), tokens(ROWS, PROMPT), edits_of(site)[kind]
    results = {}
    for mode in ("prefill", "every_step"):
        emulated = extended(edit, PROMPT, PROMPT + STEPS - 1, mode == "every_step", ROWS, WIDTHS[site])
        results[mode] = decoder.generate(x_BT, STEPS, edits=[edit], edit_steps=mode)
        assert torch.equal(results[mode], uncached(decoder, x_BT, STEPS, [emulated])), mode
    if kind == "not the first position":
        assert torch.equal(results["prefill"], results["every_step"])  # its first position edits nothing


@torch.no_grad()
def test_the_two_kinds_of_generation_differ() -> None:
    """And both from no edit: else the test above could not fail."""
    decoder, x_BT = drawn(GQA), tokens(ROWS, PROMPT)
    for site in ("resid_pre", "z", "resid_post"):
        edit = edits_of(site)["everywhere"]
        prefill, every_step = (
            decoder.generate(x_BT, STEPS, edits=[edit], edit_steps=mode) for mode in ("prefill", "every_step")
        )
        plain = decoder.generate(x_BT, STEPS)
        assert not torch.equal(prefill, plain) and not torch.equal(every_step, plain), site
        assert not torch.equal(prefill, every_step), site
        last = dataclasses.replace(edit, value=edit.value.flip(1))  # the last position stands for the new token
        wrong = extended(last, PROMPT, PROMPT + STEPS - 1, True, ROWS, WIDTHS[site])
        wrong = dataclasses.replace(wrong, value=torch.cat((edit.value, wrong.value[:, PROMPT:]), dim=1))
        assert not torch.equal(every_step, uncached(decoder, x_BT, STEPS, [wrong])), site


def test_impossible_generation_is_refused() -> None:
    decoder, x_BT = drawn(GPT2), tokens(2, 5)
    zero = torch.zeros(())
    with pytest.raises(ValueError, match="pattern edits cannot act on every decoding step; use edit_steps='prefill'"):
        decoder.generate(x_BT, 2, edits=[Edit(site="pattern", layer=0, value=zero)], edit_steps="every_step")
    with pytest.raises(ValueError, match="unknown site 'head'"):
        decoder.generate(x_BT, 2, edits=[Edit(site="head", layer=0, value=zero)])
    with pytest.raises(ValueError, match="layer 7 is out of range"):
        decoder.generate(x_BT, 2, edits=[Edit(site="z", layer=7, value=zero)])
    with pytest.raises(ValueError, match="25 tokens exceed the model's 24 learned positions"):
        decoder.generate(x_BT, 21)
    assert decoder.generate(x_BT, 20).shape == (2, 25)


@torch.no_grad()
def test_a_pattern_edit_in_the_prompt() -> None:
    decoder, x_BT = drawn(SLIDING), tokens(2, 5)
    edit = Edit(site="pattern", layer=1, value=torch.eye(5, dtype=torch.float64))
    z_BTHd = decoder.trace(x_BT, sites=("z",), edits=[edit])["z", 1]
    as_z = Edit(site="z", layer=1, value=z_BTHd)
    assert torch.equal(decoder.generate(x_BT, 6, edits=[edit]), decoder.generate(x_BT, 6, edits=[as_z]))
