"""A training step on the CPU against Hugging Face's Qwen3 with PyTorch's own optimizers; run as

    python -m tests.benchmarks.training_step                       # smoke, laptop and sanity, one thread
    python -m tests.benchmarks.training_step --shapes run1 v2      # the two for a GPU, on small batches
    python -m tests.benchmarks.training_step --out step.json       # and the numbers as JSON

Both sides train one random model on one batch in bfloat16, compiled: headdyn's `next_token_loss` with its `Optimizers`,
and transformers' Qwen3ForCausalLM with torch.optim.Muon for the hidden matrices and fused AdamW for the rest. That their
losses and gradients agree is checked before anything is timed. Steps take turns, and a ratio is of two steps one after
the other; printed are the median and the spread of ratios. The time of a step is the processor time of its process
(with one thread that is the wall's, whatever else the machine does); with more threads it is the wall's.

The limit is what the linear layers' products alone take: forward and both gradients of every one, contiguous, in
bfloat16. Attention's products, norms, softmax and the optimizer are not in it. Peak memory is the resident high-water
mark of a process that takes a few steps of one side.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headdyn.core.machine import keep_freed_memory
from headdyn.data.corpus import Split
from headdyn.models.config import DecoderConfig
from headdyn.models.decoder import Decoder
from headdyn.models.families import export_pretrained
from headdyn.training.objective import Batches, autocast, compiled_loss, reproducible
from headdyn.training.optimizers import Optimizers, split_parameters
from headdyn.training.settings import TrainSettings
from tests.benchmarks.attention_statistics import resident_bytes
from tests.benchmarks.figures import three
from tests.parity import hugging_face


class Shape(NamedTuple):
    """A mode of conf/mode, with the batch that is timed: the mode's own, or less where a step would take minutes."""

    d_model: int
    layers: int
    heads: int
    head_dim: int
    d_ff: int
    vocabulary: int
    length: int
    batch: int

    def config(self) -> DecoderConfig:
        return DecoderConfig(
            vocab_size=self.vocabulary,
            num_layers=self.layers,
            d_model=self.d_model,
            num_heads=self.heads,
            num_kv_heads=self.heads,
            head_dim=self.head_dim,
            d_ff=self.d_ff,
        )


SHAPES = {
    "smoke": Shape(64, 2, 4, 16, 172, 32, 64, 16),
    "laptop": Shape(128, 4, 4, 32, 344, 64, 128, 32),
    "sanity": Shape(256, 4, 4, 64, 688, 512, 256, 64),
    "run1": Shape(512, 8, 8, 64, 1376, 4096, 512, 4),
    "v2": Shape(768, 12, 12, 64, 2048, 4096, 512, 2),
}
LEAST_RATIO = {"smoke": 2.0, "laptop": 2.0, "sanity": 1.5, "run1": 1.5, "v2": 1.5}
SETTINGS = TrainSettings(steps=100, batch_size=1, snapshots=2, muon_lr=1e-4, adamw_lr=1e-5)  # so small that it stays
SIDES = ("headdyn", "Hugging Face")

Step = Callable[[], None]


def decoder_of(shape: Shape) -> Decoder:
    return Decoder(shape.config()).initialise(torch.Generator().manual_seed(0), std=shape.d_model**-0.5)


def batches_of(shape: Shape) -> Batches:
    tokens_BT = np.random.default_rng(0).integers(0, shape.vocabulary, (shape.batch, shape.length)).astype(np.uint16)
    return Batches(
        Split(tokens_NT=tokens_BT, topics_NT=np.zeros_like(tokens_BT, np.uint8)), "cpu", mask_documents=False
    )


def headdyn_side(shape: Shape) -> tuple[Callable[[], Tensor], Step, torch.nn.Module]:
    """Forward and backward, which returns the loss; the optimizers' step; the model."""
    decoder, batches, rows_B = decoder_of(shape), batches_of(shape), np.arange(shape.batch)
    optimizers = Optimizers(decoder, SETTINGS)
    function = compiled_loss(decoder, batches, rows_B, "bf16")

    def gradients() -> Tensor:
        with reproducible("cpu"):
            with autocast("bf16", "cpu"):
                loss = function(decoder, *batches(rows_B))
            loss.backward()
        return loss.detach()

    def update() -> None:
        optimizers.step(muon_lr=SETTINGS.muon_lr, adamw_lr=SETTINGS.adamw_lr, loss=torch.zeros(()))

    return gradients, update, decoder


def hugging_face_side(shape: Shape) -> tuple[Callable[[], Tensor], Step, torch.nn.Module]:
    decoder = decoder_of(shape)
    with tempfile.TemporaryDirectory() as folder:
        model = hugging_face.load(export_pretrained(decoder, Path(folder), "qwen3")).train()
    shapes = [parameter.shape for parameter in split_parameters(decoder).muon.values()]
    hidden = [parameter for name, parameter in model.named_parameters() if parameter.ndim == 2 and "embed" not in name]
    assert sorted(map(tuple, shapes)) == sorted(tuple(parameter.shape) for parameter in hidden)
    rest = [parameter for name, parameter in model.named_parameters() if parameter.ndim == 1 or "embed" in name]
    muon = torch.optim.Muon(hidden, lr=SETTINGS.muon_lr, weight_decay=0.0)
    adamw = torch.optim.AdamW(rest, lr=SETTINGS.adamw_lr, betas=SETTINGS.adamw_betas, weight_decay=0.0, fused=True)
    tokens_BT, _ = batches_of(shape)(np.arange(shape.batch))

    def loss_of(model: torch.nn.Module, tokens_BT: Tensor) -> Tensor:
        logits_BTV = model(tokens_BT, use_cache=False).logits[:, :-1]
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BT[:, 1:].flatten())

    compiled = torch.compile(loss_of, dynamic=False)

    def gradients() -> Tensor:
        with autocast("bf16", "cpu"):
            loss = compiled(model, tokens_BT)
        loss.backward()
        return loss.detach()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_([*hidden, *rest], SETTINGS.clip_norm)
        for optimizer in (muon, adamw):
            optimizer.step()
            optimizer.zero_grad()

    return gradients, update, model


MAKE = dict(zip(SIDES, (headdyn_side, hugging_face_side), strict=True))


def products(shape: Shape) -> Step:
    """The linear layers' products of one step and nothing else."""
    rows = shape.batch * shape.length
    inner = shape.heads * shape.head_dim
    layer = [(shape.d_model, inner)] * 3 + [(inner, shape.d_model)]
    layer += [(shape.d_model, shape.d_ff)] * 2 + [(shape.d_ff, shape.d_model)]
    sizes = layer * shape.layers + [(shape.d_model, shape.vocabulary)]
    made = {
        (i, o): tuple(torch.randn(a, b).to(torch.bfloat16) for a, b in ((rows, i), (o, i), (rows, o)))
        for i, o in set(sizes)
    }

    def work() -> None:
        for size in sizes:
            x_NI, weight_OI, gradient_NO = made[size]
            x_NI @ weight_OI.mT
            gradient_NO @ weight_OI
            gradient_NO.mT @ x_NI

    return work


def timed(work: Callable[[], object]) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begun = clock()
    work()
    return clock() - begun


def check_agreement(sides: Mapping[str, tuple[Callable[[], Tensor], Step, torch.nn.Module]]) -> None:
    """Both sides' loss and the norm of all gradients, before any update."""
    numbers = []
    for gradients, _, model in sides.values():
        loss = gradients().item()
        norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm().item()  # type: ignore[union-attr]
        model.zero_grad()
        numbers.append((loss, norm))
    (loss, norm), (their_loss, their_norm) = numbers
    assert abs(loss - their_loss) < 5e-3 * their_loss and abs(norm - their_norm) < 0.03 * their_norm, numbers


def measure(name: str, repetitions: int) -> dict[str, Any]:
    """One shape's row: ratios, tokens per second, share of the limit and peak memory."""
    shape = SHAPES[name]
    sides, limit = {side: make(shape) for side, make in MAKE.items()}, products(shape)
    check_agreement(sides)
    parts: dict[str, list[float]] = {f"{side} {part}": [] for side in SIDES for part in ("gradients", "update")}
    parts["products"] = []
    for repetition in range(repetitions + 1):
        seconds = {"products": timed(limit)}
        for side, (gradients, update, _) in sides.items():
            seconds |= {f"{side} gradients": timed(gradients), f"{side} update": timed(update)}
        if repetition:  # the first loads kernels
            for part, value in seconds.items():
                parts[part].append(value)
    steps = {
        side: [a + b for a, b in zip(parts[f"{side} gradients"], parts[f"{side} update"], strict=True)]
        for side in SIDES
    }
    ours, theirs = (np.array(steps[side]) for side in SIDES)
    tokens = shape.batch * shape.length
    return {
        "shape": name,
        "batch": f"{shape.batch} x {shape.length}",
        "threads": torch.get_num_threads(),
        "ratio": (theirs / ours).tolist(),
        "share_of_limit": (np.array(parts["products"]) / ours).tolist(),
        "tokens_per_second": {side: tokens / statistics.median(values) for side, values in steps.items()},
        "seconds": {part: statistics.median(values) for part, values in parts.items()},
        "peak_bytes": {side: peak_bytes(name, side) for side in SIDES},
    }


def peak_bytes(name: str, side: str) -> int:
    """The resident high-water mark of three steps, in a process of their own that has compiled before."""
    line = [sys.executable, "-m", "tests.benchmarks.training_step", "--peak", side, "--shapes", name]
    return int(subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()[-1])


def peak(name: str, side: str) -> None:
    gradients, update, _ = MAKE[side](SHAPES[name])
    gradients()
    update()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM: what compiling took does not count
    for _ in range(2):
        gradients()
        update()
    print(resident_bytes("VmHWM"))


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["smoke", "laptop", "sanity"], metavar="SHAPE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    parser.add_argument("--peak", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    if arguments.peak:
        peak(arguments.shapes[0], arguments.peak)
        return
    print(f"torch {torch.__version__}, {arguments.threads} threads of {os.cpu_count()} cores")
    rows = []
    for name in arguments.shapes:
        row = measure(name, arguments.repetitions)
        rows.append(row)
        speed, memory, seconds = row["tokens_per_second"], row["peak_bytes"], row["seconds"]
        print(f"{name}, {row['batch']} tokens: {three(row['ratio'])} times Hugging Face (at least {LEAST_RATIO[name]})")
        for side in SIDES:
            print(
                f"  {side:14}{speed[side]:8.0f} tokens/s, gradients {1e3 * seconds[f'{side} gradients']:.0f} ms, "
                f"update {1e3 * seconds[f'{side} update']:.0f} ms, peak {memory[side] / 2**20:.0f} MiB"
            )
        print(f"  share of the linear layers' products alone: {three(row['share_of_limit'])}", flush=True)
    if arguments.out:
        machine = {"processor": platform.processor(), "cores": os.cpu_count(), "torch": torch.__version__}
        arguments.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
