"""Attention under a CPU's autocast against the fused kernel in float32: what a bfloat16 training on a CPU computes."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from headdyn.models.decoder import Decoder
from headdyn.models.layers import BlockwiseAttention, _attend, _blocks
from tests.small_models import GQA

# bfloat16 keeps 8 bits. Over these shapes outputs of standard deviation 0.5 to 1.1 are up to 0.018 off, and gradients up
# to 0.014 of their largest entry (or of 1); the outputs of the wrong variants below 1.2 to 3.2.
TOLERANCE = 0.025
LENGTHS = [1, 2, 9, 64, 129, 200, 259]  # one block up to 127 tokens, then two, three and four, also of unequal lengths


def drawn(groups: int, length: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = ((2, 4, length, 8), (2, groups, length, 8), (2, groups, length, 8))
    q, k, v = (torch.randn(shape, generator=generator, dtype=dtype, requires_grad=True) for shape in shapes)
    return q, k, v


def mask_of(kind: str, length: int) -> Tensor | None:
    """None for causal; a sliding window of three keys; documents that begin at other positions in every sequence."""
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    documents_BT = (torch.rand(2, length, generator=torch.Generator().manual_seed(1)) < 0.1).cumsum(1)
    documents_B1TT = causal & (documents_BT[:, None, :, None] == documents_BT[:, None, None, :])
    return {"causal": None, "window": causal.triu(-2), "documents": documents_B1TT}[kind]


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)


def gradients(z: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    return torch.autograd.grad((z * direction).sum(), inputs)


def test_blocks_follow_one_another_to_the_end() -> None:
    for length in range(1, 300):
        blocks = _blocks(length)
        assert blocks[0][0] == 0 and blocks[-1][1] == length
        assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(blocks))
    assert [len(_blocks(length)) for length in LENGTHS] == [1, 1, 1, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["causal", "window", "documents"])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("length", LENGTHS)
def test_in_bfloat16_it_is_the_fused_kernel_up_to_rounding(groups: int, length: int, kind: str) -> None:
    inputs, mask = drawn(groups, length), mask_of(kind, length)
    with torch.autocast("cpu", torch.bfloat16):
        z = _attend(*inputs, mask)
    exact = fused(*inputs, mask)
    assert z.dtype == torch.bfloat16 and z.shape == exact.shape
    assert (z - exact).abs().max() < TOLERANCE
    for mine, theirs in zip(gradients(z.float(), inputs), gradients(exact, inputs), strict=True):
        assert (mine - theirs).abs().max() < TOLERANCE * theirs.abs().max().clamp(min=1)


@pytest.mark.parametrize("kind", ["causal", "window", "documents"])
@pytest.mark.parametrize("groups", [4, 1])
@pytest.mark.parametrize("length", [9, 129, 259])
def test_the_written_gradient_is_autograds_in_float64(groups: int, length: int, kind: str) -> None:
    q, k, v = inputs = drawn(groups, length, torch.float64)
    mask = mask_of(kind, length)
    z = BlockwiseAttention.apply(q.unflatten(1, (groups, -1)) * 8**-0.5, k, v, mask).flatten(1, 2)
    exact = fused(*inputs, mask)
    torch.testing.assert_close(z, exact, atol=1e-12, rtol=0)
    for mine, theirs in zip(gradients(z, inputs), gradients(exact, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)


def test_a_wrong_mask_a_wrong_group_or_no_scale_is_seen() -> None:
    q, k, v = drawn(2, 130)
    with torch.autocast("cpu", torch.bfloat16):
        for wrong in (
            _attend(q.flip(2), k.flip(2), v.flip(2), None).flip(2),  # looks ahead
            _attend(q[:, [0, 2, 1, 3]], k, v, None)[:, [0, 2, 1, 3]],  # heads 1 and 2 read each other's group
            _attend(q * 8**0.5, k, v, None),
        ):
            assert (wrong - fused(q, k, v)).abs().max() > 4 * TOLERANCE


def test_generating_under_autocast_reads_earlier_keys() -> None:
    """With a cache there are more keys than queries, which the fused kernel takes."""
    decoder = Decoder(GQA).initialise(torch.Generator().manual_seed(0), std=0.3)
    tokens_BT = torch.randint(GQA.vocab_size, (2, 7), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        generated = decoder.generate(tokens_BT, 4)
        for step in range(7, 11):
            torch.testing.assert_close(generated[:, step], decoder(generated[:, :step])[:, -1].argmax(-1))
