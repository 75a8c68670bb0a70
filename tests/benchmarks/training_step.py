"""A training step on the CPU against Hugging Face's Qwen3 with PyTorch's own optimizers; run as

    python -m tests.benchmarks.training_step                       # smoke, laptop and sanity, one thread
    python -m tests.benchmarks.training_step --shapes run1 v2      # the two for a GPU, a few sequences at a time
    python -m tests.benchmarks.training_step --out step.json       # and the numbers as JSON, beside the shapes in it

Both sides train one random model on one batch in bfloat16, compiled: headdyn's `next_token_loss` with its `Optimizers`,
and transformers' Qwen3ForCausalLM with torch.optim.Muon for the hidden matrices and fused AdamW for the rest. That their
losses and gradients agree is checked before anything is timed. Steps take turns, and a ratio is of two steps one after
the other; printed are the median and the spread of ratios. The time of a step is the processor time of its process
(with one thread that is the wall's, whatever else the machine does); with more threads it is the wall's.

At run1 and v2 the gradients timed are those of a few sequences: a step of the mode's batch takes them that many times
more (as `train.accumulate` does) and updates once, and that is the step in the figures.

The limit is what the linear layers' products alone take: forward and both gradients of every one, contiguous, in
bfloat16. Attention's two products and their four gradients are timed apart, over all pairs of positions. Norms, softmax
and the optimizer are in neither. Peak memory is the resident high-water mark of a process that takes a few compiled
steps of one side, Python and its libraries included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headdyn.core.machine import begin_peak_memory, keep_freed_memory, peak_memory_bytes
from headdyn.models.families import export_pretrained
from headdyn.training.objective import autocast
from headdyn.training.optimizers import split_parameters
from tests.benchmarks.figures import three
from tests.benchmarks.shapes import CPU_SHAPES, SETTINGS, SHAPES, Shape, TrainingStep, machine
from tests.parity import hugging_face

LEAST_RATIO = {"smoke": 2.0, "laptop": 2.0, "sanity": 1.5, "run1": 1.5, "v2": 1.5}
SIDES = ("headdyn", "Hugging Face")
PARTS = ("gradients", "update")


class Side(Protocol):
    """One way to train: forward and backward, which returns the loss, and the optimizers' step."""

    @property
    def parameters(self) -> Sequence[torch.nn.Parameter]: ...

    def gradients(self) -> Tensor: ...

    def update(self) -> None: ...


class HuggingFaceStep:
    """The same model and batch as headdyn's, trained by transformers and torch.optim."""

    def __init__(self, shape: Shape) -> None:
        self.decoder = shape.decoder(std=shape.d_model**-0.5)
        with tempfile.TemporaryDirectory() as folder:
            self.model = hugging_face.load(export_pretrained(self.decoder, Path(folder), "qwen3")).train()
        named = dict(self.model.named_parameters())
        hidden = {name: parameter for name, parameter in named.items() if parameter.ndim == 2 and "embed" not in name}
        muon = split_parameters(self.decoder).muon.values()
        assert sorted(parameter.shape for parameter in muon) == sorted(matrix.shape for matrix in hidden.values())
        rest = [parameter for name, parameter in named.items() if name not in hidden]
        self.parameters = list(named.values())
        self.optimizers = (
            torch.optim.Muon(hidden.values(), lr=SETTINGS.muon_lr, weight_decay=0.0),
            torch.optim.AdamW(rest, lr=SETTINGS.adamw_lr, betas=SETTINGS.adamw_betas, weight_decay=0.0, fused=True),
        )
        self.tokens_BT, _ = shape.batches()(np.arange(shape.batch))
        self.loss_function = torch.compile(_their_loss, dynamic=False)

    def gradients(self) -> Tensor:
        with autocast("bf16", "cpu"):
            loss = self.loss_function(self.model, self.tokens_BT)
        loss.backward()
        return loss.detach()

    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, SETTINGS.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()


def _their_loss(model: torch.nn.Module, tokens_BT: Tensor) -> Tensor:
    logits_BTV = model(tokens_BT, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BT[:, 1:].flatten())


def make(side: str, shape: Shape) -> Side:
    return TrainingStep(shape, std=shape.d_model**-0.5) if side == "headdyn" else HuggingFaceStep(shape)


def products(shape: Shape) -> Callable[[], None]:
    """The linear layers' products of one step and nothing else."""
    sizes = shape.linear_sizes()
    operands = {
        (i, o): tuple(torch.randn(a, b).to(torch.bfloat16) for a, b in ((shape.tokens, i), (o, i), (shape.tokens, o)))
        for i, o in set(sizes)
    }

    def work() -> None:
        for size in sizes:
            x_NI, weight_OI, gradient_NO = operands[size]
            x_NI @ weight_OI.mT
            gradient_NO @ weight_OI
            gradient_NO.mT @ x_NI

    return work


def attention_products(shape: Shape) -> Callable[[], None]:
    """The products of attention in one step, scores and values with their gradients, and nothing else."""
    count = shape.batch * shape.heads
    q_NTD, k_NTD, v_NTD = (torch.randn(count, shape.length, shape.head_dim).to(torch.bfloat16) for _ in range(3))
    pattern_NQK = q_NTD @ k_NTD.mT

    def work() -> None:
        for _ in range(shape.layers):
            q_NTD @ k_NTD.mT
            pattern_NQK @ v_NTD
            v_NTD @ v_NTD.mT
            pattern_NQK.mT @ v_NTD
            pattern_NQK @ k_NTD
            pattern_NQK.mT @ q_NTD

    return work


def timed(work: Callable[[], object]) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begun = clock()
    work()
    return clock() - begun


def check_agreement(sides: Mapping[str, Side]) -> None:
    """Both sides' loss and the norm of all gradients, before any update."""
    numbers = []
    for side in sides.values():
        loss = side.gradients().item()
        norms = [parameter.grad.norm() for parameter in side.parameters if parameter.grad is not None]
        numbers.append((loss, torch.stack(norms).norm().item()))
        side.update()
    (loss, norm), (their_loss, their_norm) = numbers
    assert abs(loss - their_loss) < 5e-3 * their_loss and abs(norm - their_norm) < 0.03 * their_norm, numbers


def measure(name: str, repetitions: int) -> dict[str, Any]:
    """One shape's row: ratios, tokens per second, share of the limit and peak memory."""
    shape = CPU_SHAPES[name]
    sides = {side: make(side, shape) for side in SIDES}
    check_agreement(sides)
    works = {
        "products": products(shape),
        "attention products": attention_products(shape),
        **{f"{side} {part}": getattr(sides[side], part) for side in SIDES for part in PARTS},
    }
    parts: dict[str, list[float]] = {part: [] for part in works}
    times = SHAPES[name].batch // shape.batch
    for repetition in range(repetitions + 1):
        seconds = {part: timed(work) * (1 if part.endswith("update") else times) for part, work in works.items()}
        if repetition:  # the first loads kernels
            for part, value in seconds.items():
                parts[part].append(value)
    ours, theirs = (np.sum([parts[f"{side} {part}"] for part in PARTS], axis=0) for side in SIDES)
    return {
        "shape": name,
        "batch": f"{SHAPES[name].batch} x {shape.length}",
        "sequences_at_once": shape.batch,
        "threads": torch.get_num_threads(),
        "ratio": (theirs / ours).tolist(),
        "share_of_limit": (np.array(parts["products"]) / ours).tolist(),
        "tokens_per_second": {
            side: times * shape.tokens / float(np.median(steps))
            for side, steps in zip(SIDES, (ours, theirs), strict=True)
        },
        "seconds": {part: statistics.median(values) for part, values in parts.items()},
        "peak_bytes": {side: peak_bytes(name, side) for side in SIDES},
        "machine": machine(),
    }


def peak_bytes(name: str, side: str) -> int:
    """The resident high-water mark of three steps, in a process of their own that has compiled before."""
    line = [sys.executable, "-m", "tests.benchmarks.training_step", "--peak", side, "--shapes", name]
    return int(subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(name: str, side: str) -> None:
    step = make(side, CPU_SHAPES[name])
    for repetition in range(3):
        if repetition == 1:
            begin_peak_memory()  # what compiling took does not count
        step.gradients()
        step.update()
    print(peak_memory_bytes())


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows of a JSON file as Markdown, with the machines that they were measured on."""
    lines = [
        "| shape | batch | times Hugging Face | at least | headdyn, tokens/s | Hugging Face | share of the products "
        "| with attention's | update, share of a step | peak MiB: headdyn, Hugging Face |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        speed, seconds, memory = row["tokens_per_second"], row["seconds"], row["peak_bytes"]
        whole = seconds["headdyn update"] + seconds["headdyn gradients"]
        update, all_products = seconds["headdyn update"] / whole, seconds["products"] + seconds["attention products"]
        cells = [name, row["batch"], three(row["ratio"]), LEAST_RATIO[name], *(f"{speed[side]:,.0f}" for side in SIDES)]
        cells += [
            three(row["share_of_limit"]),
            f"{all_products / whole:.0%}",
            f"{update:.0%}",
            ", ".join(f"{memory[s] / 2**20:.0f}" for s in SIDES),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    machines = dict.fromkeys(json.dumps(row["machine"]) for row in rows.values())
    for m in map(json.loads, machines):
        about = f"{m['processor']}, {m['cores']} cores ({', '.join(m['bfloat16']) or 'no bfloat16 products'})"
        lines += ["", f"{about}; Python {m['python']}, torch {m['torch']}; revision {m['revision']}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=CPU_SHAPES, default=list(CPU_SHAPES)[:3], metavar="SHAPE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers; other shapes that it holds stay in it")
    parser.add_argument("--peak", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    if arguments.peak:
        print_peak(arguments.shapes[0], arguments.peak)
        return
    for name in arguments.shapes:
        row = measure(name, arguments.repetitions)
        speed, memory, seconds = row["tokens_per_second"], row["peak_bytes"], row["seconds"]
        print(f"{name}, {row['batch']} tokens: {three(row['ratio'])} times Hugging Face (at least {LEAST_RATIO[name]})")
        for side in SIDES:
            print(
                f"  {side:14}{speed[side]:8.0f} tokens/s, gradients {1e3 * seconds[f'{side} gradients']:.0f} ms, "
                f"update {1e3 * seconds[f'{side} update']:.0f} ms, peak {memory[side] / 2**20:.0f} MiB"
            )
        print(f"  share of the linear layers' products alone: {three(row['share_of_limit'])}", flush=True)
        if arguments.out:
            rows = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
            rows = {shape: row if shape == name else rows.get(shape) for shape in CPU_SHAPES}
            rows = {shape: row for shape, row in rows.items() if row}
            arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            arguments.out.with_suffix(".md").write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
