"""A head held at an ideal pattern: the patterns by hand, what the held head can still learn, and the training's record."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from headdyn.core.settings import ConfigError, build
from headdyn.models.decoder import Decoder, Edit
from headdyn.plan import make_plan
from headdyn.training.clamp import clamped_loss, copies, match, previous_token, uniform
from headdyn.training.loop import TrainingInterrupted
from headdyn.training.settings import Clamp, TrainSettings
from tests.small_models import MHA, drawn, tokens
from tests.training.tiny import SETTINGS, trained, weights

QUICK = dataclasses.replace(SETTINGS, steps=8, eval_every_steps=2, eval_sequences=16, snapshots=2)
TOKENS_15 = torch.tensor([[7, 3, 7, 7, 3]])


def test_the_previous_token_is_attended_alone() -> None:
    assert previous_token(TOKENS_15)[0].argmax(-1).tolist() == [0, 0, 1, 2, 3]
    assert (previous_token(TOKENS_15).sum(-1) == 1).all()


def test_matches_are_what_followed_the_same_token_before() -> None:
    # Token 7 was followed by 3 (place 1) and, at place 2, by 7 (place 3); place 3 itself counts for query 3 and not later
    # ones alone; 3 was followed by 7 (place 2).
    expected = [
        [1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 0.5, 0, 0.5, 0],
        [0, 0, 1, 0, 0],
    ]
    torch.testing.assert_close(match(TOKENS_15)[0], torch.tensor(expected))


def test_uniform_attention_is_even_over_what_came_before() -> None:
    expected = [[1 / (query + 1) if key <= query else 0 for key in range(5)] for query in range(5)]
    torch.testing.assert_close(uniform(TOKENS_15)[0], torch.tensor(expected))


def test_a_model_whose_heads_are_all_held_evenly_knows_the_order_of_two_tokens_alone() -> None:
    """Without positions and with even attention a query sees a set of tokens: swapping two earlier ones changes nothing.

    A model with one free head can tell them apart.
    """
    decoder = drawn(MHA)
    clamp = Clamp(pattern="uniform", layer="all", head="all")
    assert clamp.layers_of(MHA.num_layers) == tuple(range(MHA.num_layers))
    clamped_loss(clamp)(decoder, tokens(3, 9), None).backward()
    for block in decoder.blocks:
        assert all(getattr(block.attention, name).weight.grad.abs().max() == 0 for name in "qk")
        assert block.attention.v.weight.grad.abs().max() > 0
    ids, swapped = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[2, 1, 3, 4]])
    # The first two targets differ; those behind position 2 are predicted from the same sets where layers are few.
    one_layer = drawn(dataclasses.replace(MHA, num_layers=1))
    even, one_free = (
        [_last_loss(one_layer, pattern, row) for row in (ids, swapped)]
        for pattern in (clamp, Clamp(pattern="uniform", layer=0, head=0))
    )
    assert even[0] == pytest.approx(even[1], abs=1e-6)
    assert abs(one_free[0] - one_free[1]) > 1e-4


def _last_loss(decoder: Decoder, clamp: Clamp, ids: torch.Tensor) -> float:
    """The loss on the last token: the loss of three targets less that of two."""
    loss = clamped_loss(clamp)
    return 3 * loss(decoder, ids, None).item() - 2 * loss(decoder, ids[:, :-1], None).item()


def test_heads_are_held_from_the_step_that_is_asked_for(tmp_path: Path) -> None:
    """Before it the training is the free one, to the bit; the loss at that step is already taken with the heads held."""
    free = trained(tmp_path / "free", QUICK).val_loss_nats
    clamp = Clamp(pattern="uniform", layer="all", head="all", from_step=4)
    held = trained(tmp_path / "held", dataclasses.replace(QUICK, clamp=clamp)).val_loss_nats
    assert {step: free[step] == held[step] for step in free} == {0: True, 2: True, 4: False, 6: False, 8: False}


def test_a_training_that_is_stopped_before_the_clamp_begins_ends_as_one_that_was_not(tmp_path: Path) -> None:
    clamp = Clamp(pattern="uniform", layer="all", head="all", from_step=4)
    settings = dataclasses.replace(QUICK, clamp=clamp, resume_every_seconds=0.0)
    whole = weights(trained(tmp_path / "whole", settings).decoder)
    asked = iter([False, False, True])
    with pytest.raises(TrainingInterrupted):
        trained(tmp_path / "stopped", settings, should_stop=lambda: next(asked))
    again = weights(trained(tmp_path / "stopped", settings).decoder)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize(("pattern", "layer"), [("previous_token", 0), ("match", 2)])
def test_the_held_head_learns_no_pattern_and_all_others_do(pattern: str, layer: int) -> None:
    decoder, head, d = drawn(MHA), 1, MHA.head_dim
    clamp = Clamp(pattern=pattern, head=head)  # type: ignore[arg-type]
    assert clamp.layers_of(MHA.num_layers) == (layer,)
    clamped_loss(clamp)(decoder, tokens(3, 9), None).backward()
    held = torch.arange(MHA.num_heads * d) // d == head
    for other in range(MHA.num_layers):
        for name in "qkv":
            gradient = getattr(decoder.blocks[other].attention, name).weight.grad.abs().sum(1)
            silent = gradient == 0
            assert torch.equal(silent, held if (other == layer and name != "v") else torch.zeros_like(held)), (
                other,
                name,
            )


def test_the_loss_is_that_of_the_model_with_the_pattern_put_in() -> None:
    decoder, ids = drawn(MHA), tokens(2, 7)
    pattern = decoder.trace(ids, sites=("pattern",), layers=(0,), logits=None)["pattern", 0].clone()
    pattern[:, 2] = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 2, 3, 4, 5]), 7)
    logits = decoder.trace(ids, edits=[Edit(site="pattern", layer=0, value=pattern)]).logits
    assert logits is not None
    expected = -logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None]).mean()
    loss = clamped_loss(Clamp(pattern="previous_token", head=2))(decoder, ids, None)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    other = clamped_loss(Clamp(pattern="previous_token", head=1))(decoder, ids, None)
    assert abs(other.item() - loss.item()) > 1e-4  # it is that head's and no other's


def test_copies_are_of_what_the_head_attends_to() -> None:
    """Against the model run layer by layer by hand, its last layer's head 1 writing rows of the unembedding."""
    decoder, ids, head, last = drawn(MHA), tokens(2, 7), 1, MHA.num_layers - 1
    sites = ("resid_pre", "z", "pattern")
    traced = decoder.trace(ids, sites=sites, layers=(last,), logits=None)
    rows = decoder.unembed.weight.detach()
    own = torch.zeros(2, 7, MHA.d_model)
    for row, query, key in torch.cartesian_prod(torch.arange(2), torch.arange(7), torch.arange(7)):
        direction = rows[ids[row, key]]
        weight = traced["pattern", last][row, head, query, key]
        own[row, query] += weight * direction * MHA.d_model**0.5 / direction.norm()
    others = traced["z", last].clone()
    others[:, :, head] = 0
    block = decoder.blocks[last]
    resid = traced["resid_pre", last] + block.attention.o(others.flatten(2)) + own
    logits = decoder.unembed(decoder.norm(resid + block.mlp(block.norm2(resid))))
    expected = -logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None]).mean()
    loss = clamped_loss(Clamp(pattern="copy", head=head))(decoder, ids, None)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    unheld = clamped_loss(Clamp(pattern="copy", head=2))(decoder, ids, None)
    assert abs(unheld.item() - loss.item()) > 1e-4
    assert copies(decoder, ids).square().mean(-1).sub(1).abs().max() < 1e-6


def test_a_head_that_copies_learns_where_to_look_and_nothing_of_what_to_write() -> None:
    decoder, head, d, last = drawn(MHA), 1, MHA.head_dim, MHA.num_layers - 1
    clamp = Clamp(pattern="copy", head=head)
    assert clamp.layers_of(MHA.num_layers) == (last,)
    clamped_loss(clamp)(decoder, tokens(3, 9), None).backward()
    held = torch.arange(MHA.num_heads * d) // d == head
    attention = decoder.blocks[last].attention
    silent = {name: getattr(attention, name).weight.grad.abs().sum(1) == 0 for name in "qkv"}
    assert not silent["q"].any() and not silent["k"].any() and torch.equal(silent["v"], held)
    assert torch.equal(attention.o.weight.grad.abs().sum(0) == 0, held)


def test_several_documents_and_partial_batches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.clamp holds a head across documents; set data\.mask_documents=false"):
        clamped_loss(Clamp(pattern="match"))(drawn(MHA), tokens(1, 4), torch.zeros(1, 4))
    plain = dataclasses.asdict(TrainSettings(steps=20, batch_size=3, eval_sequences=7))
    with pytest.raises(ConfigError, match=r"train\.eval_sequences=7 must be a multiple of train\.batch_size=3"):
        build(TrainSettings, {**plain, "clamp": {"pattern": "match"}}, "train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train.clamp.head=4",), r"train\.clamp\.head=4 is out of range; the model has heads 0 to 3"),
        (("train.clamp.layer=2", "train.clamp.pattern=match"), r"train\.clamp\.layer=2 is out of range"),
        (
            ("train.clamp.pattern=sink",),
            r"train\.clamp\.pattern='sink' must be one of none, previous_token, match, copy, uniform",
        ),
        (("train.clamp.pattern=copy", "train.clamp.layer=all"), r"train\.clamp\.pattern=copy holds one head's output"),
        (("train.clamp.pattern=match", "train.clamp.from_step=80"), r"train\.clamp\.from_step=80 is after the last of"),
        (("train.clamp.pattern=match", "train.clamp.head=every"), r"train\.clamp\.head"),
        (
            ("data=wikipedia", "data.mask_documents=true", "train.clamp.pattern=match"),
            r"train\.clamp\.pattern=match holds heads across documents",
        ),
        (
            ("position_enc=drope", "train.clamp.pattern=uniform", "train.clamp.from_step=40"),
            r"train\.clamp\.pattern=uniform holds heads in the first training only, and position_enc=drope adds",
        ),
    ],
)
def test_a_head_that_is_not_there_is_refused_before_training(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(("mode=smoke", *arguments))
