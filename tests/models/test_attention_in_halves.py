"""Attention under a CPU's autocast against the fused kernel in float32: what a bfloat16 training on a CPU computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from headdyn.models.layers import _attend, _attend_in_halves

# bfloat16 keeps 8 bits. Over these shapes outputs of standard deviation 0.5 to 1.1 are up to 0.012 off and gradients
# 0.025; the wrong variants below 1.2 to 3.2.
TOLERANCE = 0.025


def drawn(groups: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = ((2, 4, length, 8), (2, groups, length, 8), (2, groups, length, 8))
    q, k, v = (torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes)
    return q, k, v


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("length", [1, 2, 3, 9, 16])
def test_halves_make_the_whole(groups: int, length: int) -> None:
    q, k, v = drawn(groups, length)
    with torch.autocast("cpu", torch.bfloat16):
        z = _attend(q, k, v, None)
    exact = fused(q, k, v)
    assert z.dtype == torch.bfloat16 and z.shape == exact.shape
    assert (z - exact).abs().max() < TOLERANCE
    direction = torch.randn(exact.shape, generator=torch.Generator().manual_seed(0))
    mine = torch.autograd.grad((z.float() * direction).sum(), (q, k, v))
    theirs = torch.autograd.grad((exact * direction).sum(), (q, k, v))
    assert max((a - b).abs().max() for a, b in zip(mine, theirs, strict=True)) < 2 * TOLERANCE


def test_a_wrong_mask_a_wrong_group_or_no_scale_is_seen() -> None:
    q, k, v = drawn(2, 9)
    with torch.autocast("cpu", torch.bfloat16):
        for wrong in (
            _attend_in_halves(q.flip(2), k.flip(2), v.flip(2)).flip(2),  # looks ahead
            _attend_in_halves(q[:, [0, 2, 1, 3]], k, v)[:, [0, 2, 1, 3]],  # heads 1 and 2 read each other's group
            _attend_in_halves(q * 8**0.5, k, v),
        ):
            assert (wrong - fused(q, k, v)).abs().max() > 4 * TOLERANCE


def test_a_mask_goes_to_the_fused_kernel_in_float32() -> None:
    q, k, v = drawn(2, 9)
    mask = torch.ones(9, 9, dtype=torch.bool).tril().triu(-2)
    with torch.autocast("cpu", torch.bfloat16):
        z = _attend(q, k, v, mask)
    assert torch.equal(z, F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True))
