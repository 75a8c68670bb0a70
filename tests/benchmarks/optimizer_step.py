"""A Muon step of a whole model against torch.optim.Muon's, matrices in turn; run as

    python -m tests.benchmarks.optimizer_step                   # the shape of mode run1: 27 M parameters
    python -m tests.benchmarks.optimizer_step --shape laptop

Both optimizers get the same gradients, and that they move the weights alike is checked before anything is timed. The
limit is Newton–Schulz' products alone: five times X Xᵀ, its square and their product with X, as stacks in bfloat16.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from headdyn.training.optimizers import Muon, split_parameters
from tests.benchmarks.figures import three
from tests.benchmarks.shapes import SHAPES, machine
from tests.benchmarks.training_step import timed

LR, MOMENTUM = 0.02, 0.95


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

    limit = products([(len(stack), shape) for shape, stack in muon.stacks.items()])
    seconds = np.array(
        [[timed(lambda: muon.step(LR, finite)), timed(peer.step), timed(limit)] for _ in range(arguments.repetitions)]
    )
    ratio, share = seconds[:, 1] / seconds[:, 0], seconds[:, 2] / seconds[:, 0]
    parameters = sum(matrix.numel() for matrix in ours)
    median = np.median(seconds, axis=0)
    print(f"{arguments.shape}, {parameters / 1e6:.1f} M parameters in {len(ours)} matrices, one thread")
    print(f"  {three(ratio)} times torch.optim.Muon (at least 2), {three(share)} of its products alone")
    print(f"  headdyn {median[0]:.3g} s, torch.optim.Muon {median[1]:.3g} s; steps differ by {max(off):.1%} at most")
    if arguments.out:
        record = {"shape": arguments.shape, "parameters": parameters, "ratio": ratio.tolist()}
        record |= {"share_of_limit": share.tolist(), "seconds": median.tolist(), "largest_difference": max(off)}
        arguments.out.write_text(json.dumps(record | {"machine": machine()}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
