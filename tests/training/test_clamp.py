"""A head held at an ideal pattern: the patterns by hand, what the held head can still learn, and the training's record."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from headdyn.core.settings import ConfigError, build
from headdyn.models.decoder import Edit
from headdyn.plan import make_plan
from headdyn.training.clamp import clamped_loss, copies, match, previous_token
from headdyn.training.settings import Clamp, TrainSettings
from tests.small_models import MHA, drawn, tokens

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


@pytest.mark.parametrize(("pattern", "layer"), [("previous_token", 0), ("match", 2)])
def test_the_held_head_learns_no_pattern_and_all_others_do(pattern: str, layer: int) -> None:
    decoder, head, d = drawn(MHA), 1, MHA.head_dim
    clamp = Clamp(pattern=pattern, head=head)  # type: ignore[arg-type]
    assert clamp.layer_of(MHA.num_layers) == layer
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
    assert clamp.layer_of(MHA.num_layers) == last
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
        (("train.clamp.head=4",), r"train\.clamp\.head=4 is out of range; this model's are 0 to 3"),
        (("train.clamp.layer=2", "train.clamp.pattern=match"), r"train\.clamp\.layer=2 is out of range"),
        (
            ("train.clamp.pattern=sink",),
            r"train\.clamp\.pattern='sink' must be one of none, previous_token, match, copy",
        ),
    ],
)
def test_a_head_that_is_not_there_is_refused_before_training(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(("mode=smoke", *arguments))
