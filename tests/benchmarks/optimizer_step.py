"""A Muon step of a whole model against torch.optim.Muon's, matrices in turn; run as

    python -m tests.benchmarks.optimizer_step                   # the shape of mode run1: 27 M parameters
    python -m tests.benchmarks.optimizer_step --shape laptop

Both optimizers get the same gradients, and that they move the weights alike is checked before anything is timed. The
limit is Newton–Schulz' products alone: five times X Xᵀ, its square and their product with X, as stacks in bfloat16.
Other ways to iterate are timed beside muon-optimizer's, which headdyn uses, and compared with the same in float64.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headdyn.training.optimizers import Muon, split_parameters
from tests.benchmarks.figures import three
from tests.benchmarks.shapes import SHAPES, machine
from tests.benchmarks.training_step import timed

LR, MOMENTUM = 0.02, 0.95
A, B, C = 3.4445, -4.7750, 2.0315  # of the quintic polynomial


def products(stacks: list[tuple[int, tuple[int, int]]]) -> Callable[[], None]:
    """Newton–Schulz' products for these numbers of matrices of these shapes, and nothing else."""
    operands = []
    for count, shape in stacks:
        x_NOI = torch.randn(count, min(shape), max(shape)).to(torch.bfloat16)
        operands.append((x_NOI, x_NOI @ x_NOI.mT))

    def work() -> None:
        for x_NOI, square_NOO in operands:
            for _ in range(5):
                x_NOI @ x_NOI.mT
                square_NOO @ square_NOO
                square_NOO @ x_NOI

    return work


def as_the_package(x_NOI: Tensor) -> Tensor:
    """One iteration as muon-optimizer writes it: scaled and added apart from the products."""
    square_NOO = x_NOI @ x_NOI.mT
    return A * x_NOI + (B * square_NOO + C * square_NOO @ square_NOO) @ x_NOI


def added_within(x_NOI: Tensor) -> Tensor:
    """Scaled and added by the products themselves, as torch.optim.Muon does for one matrix."""
    square_NOO = x_NOI @ x_NOI.mT
    return torch.baddbmm(x_NOI, torch.baddbmm(square_NOO, square_NOO, square_NOO, beta=B, alpha=C), x_NOI, beta=A)


def by_halves(x_NOI: Tensor) -> Tensor:
    """Three quarters of the blocks of the two symmetric products: the fourth is one of them transposed."""

    def square(x_NOI: Tensor) -> Tensor:
        upper, lower = x_NOI.chunk(2, dim=1)
        across = upper @ lower.mT
        rows = torch.cat([upper @ upper.mT, across], 2), torch.cat([across.mT, lower @ lower.mT], 2)
        return torch.cat(rows, 1)

    square_NOO = square(x_NOI)
    return torch.baddbmm(x_NOI, B * square_NOO + C * square(square_NOO), x_NOI, beta=A)


def from_squares(x_NOI: Tensor) -> Tensor:
    """All iterations on X Xᵀ alone, in float32, and one product with X at the end."""
    product_NOO, total_NOO = (x_NOI @ x_NOI.mT).float(), torch.eye(x_NOI.shape[1])
    for _ in range(5):
        step_NOO = torch.baddbmm(product_NOO, product_NOO, product_NOO, beta=B, alpha=C)
        step_NOO.diagonal(dim1=1, dim2=2).add_(A)
        total_NOO, product_NOO = step_NOO @ total_NOO, step_NOO @ product_NOO @ step_NOO
    return total_NOO.to(x_NOI.dtype) @ x_NOI


def iterated(iteration: Callable[[Tensor], Tensor], x_NOI: Tensor) -> Tensor:
    for _ in range(1 if iteration is from_squares else 5):
        x_NOI = iteration(x_NOI)
    return x_NOI


def ways(stacks: list[tuple[int, tuple[int, int]]], repetitions: int) -> dict[str, dict[str, Any]]:
    """How fast each way is in units of muon-optimizer's, and how far it ends from the same in float64."""
    drawn = [torch.randn(count, min(shape), max(shape)) for count, shape in stacks]
    starts = [(x_NOI / x_NOI.norm(dim=(1, 2), keepdim=True)).bfloat16() for x_NOI in drawn]
    tried = (as_the_package, added_within, by_halves, from_squares)
    seconds = np.array(
        [
            [timed(lambda way=way: [iterated(way, start) for start in starts]) for way in tried]  # type: ignore[misc]
            for _ in range(repetitions)
        ]
    )
    off: dict[str, list[float]] = {way.__name__: [] for way in tried}
    for start in starts:
        exact = iterated(as_the_package, start[:1].double())
        for way in tried:
            off[way.__name__].append(((iterated(way, start[:1]) - exact).norm() / exact.norm()).item())
    return {
        way.__name__: {"ratio": (seconds[:, 0] / seconds[:, i]).tolist(), "difference": max(off[way.__name__])}
        for i, way in enumerate(tried)
    }


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="run1")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    ours, theirs = (list(split_parameters(SHAPES[arguments.shape].decoder(std=0.1)).muon.values()) for _ in range(2))
    for our, their in zip(ours, theirs, strict=True):
        our.grad = torch.randn(our.shape, generator=torch.Generator().manual_seed(our.numel()))
        their.grad = our.grad.clone()
    before = [our.detach().clone() for our in ours]
    muon = Muon(ours, MOMENTUM)
    peer = torch.optim.Muon(theirs, lr=LR, momentum=MOMENTUM, weight_decay=0.0)
    finite = torch.ones((), dtype=torch.bool)
    muon.step(LR, finite)
    peer.step()
    # 3 % of the step's length: the two round differently in bfloat16, five times over.
    off = [((a - b).norm() / (a - c).norm()).item() for a, b, c in zip(ours, theirs, before, strict=True)]
    assert max(off) < 0.03, max(off)

    stacks = [(len(stack), shape) for shape, stack in muon.stacks.items()]
    limit = products(stacks)
    seconds = np.array(
        [[timed(lambda: muon.step(LR, finite)), timed(peer.step), timed(limit)] for _ in range(arguments.repetitions)]
    )
    ratio, share = seconds[:, 1] / seconds[:, 0], seconds[:, 2] / seconds[:, 0]
    parameters = sum(matrix.numel() for matrix in ours)
    median = np.median(seconds, axis=0)
    print(f"{arguments.shape}, {parameters / 1e6:.1f} M parameters in {len(ours)} matrices, one thread")
    print(f"  {three(ratio)} times torch.optim.Muon (at least 2), {three(share)} of its products alone")
    print(f"  headdyn {median[0]:.3g} s, torch.optim.Muon {median[1]:.3g} s; steps differ by {max(off):.1%} at most")
    others = ways(stacks, arguments.repetitions)
    for name, way in others.items():
        print(f"  {name:16}{three(way['ratio'])} times the package, {way['difference']:.1%} from float64")
    if arguments.out:
        record: dict[str, object] = {"shape": arguments.shape, "parameters": parameters, "ratio": ratio.tolist()}
        record |= {
            "share_of_limit": share.tolist(),
            "seconds": median.tolist(),
            "largest_difference": max(off),
            "ways": others,
        }
        arguments.out.write_text(json.dumps(record | {"machine": machine()}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
