"""What a first training step waits for: compiling the laptop shape's graph with every cache empty; run as

    python -m tests.benchmarks.compiling
    python -m tests.benchmarks.compiling --out experiments/speed/compiling.json

In processor seconds of one thread and of the C++ compiler, for the way in which headdyn compiles and for two others: a
graph for each block, which all layers share, and a graph's kernels in one C++ file (the compiler's `cpp_wrapper`). Each
is a process of its own with empty folders for caches and precompiled headers; a small function is compiled first, which
checks the processor's instruction sets and precompiles the headers. Losses are compared before steps are timed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headdyn.core.machine import resolve
from headdyn.models.decoder import Decoder
from headdyn.models.layers import rotary_tables
from headdyn.training.objective import autocast, compiled_loss, next_token_loss, reproducible
from tests.benchmarks.figures import three
from tests.benchmarks.shapes import SHAPES, machine

WAYS = ("whole", "by block", "one file")
STEPS = 40


def by_block() -> Callable[[Decoder, Tensor, None], Tensor]:
    """The next-token loss with one graph for every block and one for what follows them."""
    torch.compiler.assume_constant_result(rotary_tables)
    block_graph = torch.compile(lambda block, x_BTD, rotary: block(x_BTD, rotary, None)[0], dynamic=False)

    @torch.compile(dynamic=False)
    def loss(decoder: Decoder, x_BTD: Tensor, tokens_BT: Tensor) -> Tensor:
        logits_BTV = decoder.unembed(decoder.norm(x_BTD))[:, :-1]
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BT[:, 1:].flatten())

    def function(decoder: Decoder, tokens_BT: Tensor, _: None) -> Tensor:
        x_BTD, rotary = decoder.embeddings(tokens_BT, 0), decoder.rotary(tokens_BT.shape[1], 0)
        for block in decoder.blocks:
            x_BTD = block_graph(block, x_BTD, rotary)
        return loss(decoder, x_BTD, tokens_BT)

    return function


def processor_seconds() -> np.ndarray:
    """Of this process, and of the compilers that it has waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return np.array([usage.ru_utime + usage.ru_stime for usage in usages])


def one(way: str) -> dict[str, Any]:
    """A single measurement; what a child process runs."""
    torch.set_num_threads(1)
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    precision = resolve("cpu", "auto", 1).precision
    marks = [processor_seconds()]
    pick_vec_isa()
    marks.append(processor_seconds())
    torch.compile(lambda x: x.exp() + 1)(torch.ones(64))
    marks.append(processor_seconds())

    shape = SHAPES["laptop"]
    decoder, batches, rows_B = shape.decoder(), shape.batches(), np.arange(shape.batch)
    config.cpp_wrapper = way == "one file"
    function = by_block() if way == "by block" else None
    begun = time.perf_counter()

    def gradients() -> float:
        with reproducible("cpu"):
            with autocast(precision, "cpu"):
                loss = function(decoder, *batches(rows_B))
            loss.backward()
        decoder.zero_grad(set_to_none=True)
        return loss.item()

    function = function or compiled_loss(decoder, batches, rows_B, precision)
    loss = gradients()
    seconds = time.perf_counter() - begun
    marks.append(processor_seconds())
    with torch.no_grad(), autocast(precision, "cpu"):
        torch.testing.assert_close(loss, next_token_loss(decoder, *batches(rows_B)).item(), rtol=1e-3, atol=0)
    steps = []
    for _ in range(STEPS):
        before = time.process_time()
        gradients()
        steps.append(time.process_time() - before)
    checks, headers, graph = (after - before for before, after in itertools.pairwise(marks))
    files = [*Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).glob("**/*.main.cpp")]
    return {
        "checks": checks.sum(),
        "headers": headers.sum(),
        "python": graph[0],
        "c++": graph[1],
        "files": len(files) - 1,  # without the small function's
        "seconds": seconds,
        "step_ms": 1000 * statistics.median(steps),
        "precision": precision,
    }


def in_a_process(way: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        variables = {**os.environ, "TMPDIR": folder, "TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache"}
        command = [sys.executable, "-m", "tests.benchmarks.compiling", "--way", way]
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.compiling")
    parser.add_argument("--way", choices=WAYS, help="measure one way, in this process")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file")
    chosen = parser.parse_args()
    if chosen.way:
        print(json.dumps(one(chosen.way)))
        return
    rows: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(chosen.repetitions):
        for way in WAYS:
            rows[way].append(in_a_process(way))
    every = [row for way in rows.values() for row in way]
    for name, what in (("checks", "instruction sets checked"), ("headers", "headers precompiled")):
        print(f"{what}: {three([row[name] for row in every], ' s')} of a processor")
    for way, several in rows.items():
        python, cpp, step = ([row[name] for row in several] for name in ("python", "c++", "step_ms"))
        print(f"{way}: Python {three(python, ' s')}, C++ {three(cpp, ' s')} for {several[0]['files']} files; "
              f"then a step of {three(step, ' ms')} ({several[0]['precision']})")  # fmt: skip
    if chosen.out:
        record = {"machine": machine(), "shape": "laptop", "ways": rows}
        chosen.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
