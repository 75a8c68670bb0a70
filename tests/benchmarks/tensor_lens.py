"""TensorLens: the whole tensor's time and memory, and a VJP readout in the model's own passes; run as

    python -m tests.benchmarks.tensor_lens

The model is a random Mini-Qwen3 of the laptop mode's size (D128 L4 H4). The tensor is that of 32 tokens, each
measurement in a process of its own; peak memory is the resident high-water mark above what was resident when the
decoder was frozen (Linux only). The budget is 5 s and 3 times the tensor's own size.

A VJP readout of one target token is everything it takes: the pass that freezes the decoder, one through the frozen map
and one backward. It is timed against a forward and backward pass of the model's loss on the same 128 tokens, in turn;
ratios come from the same repetition. The budget is 3. Beside it what each of 8 targets of one sequence costs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from headdyn.models.config import DecoderConfig
from headdyn.models.decoder import Decoder
from headdyn.models.frozen import freeze, pull
from headdyn.models.frozen_pairs import full_tensor
from tests.benchmarks.attention_statistics import resident_bytes
from tests.benchmarks.figures import three

CONFIG = DecoderConfig(vocab_size=64, num_layers=4, d_model=128, num_heads=4, num_kv_heads=4, head_dim=32, d_ff=344)
TENSOR_TOKENS, TOKENS, TARGETS = 32, 128, 8
REPETITIONS, PASSES = 5, 20


def decoder_and_tokens(length: int) -> tuple[Decoder, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    decoder = Decoder(CONFIG).initialise(generator, std=CONFIG.d_model**-0.5)
    return decoder, torch.randint(CONFIG.vocab_size, (1, length), generator=generator)


def one_tensor() -> dict[str, float]:
    """A single measurement; what a child process runs."""
    frozen = freeze(*decoder_and_tokens(TENSOR_TOKENS))
    full_tensor(frozen.tail(TENSOR_TOKENS - 2))  # loads kernels, which are not the tensor's memory
    base = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    begun = time.perf_counter()
    tensor = full_tensor(frozen)
    seconds = time.perf_counter() - begun
    size = tensor.numel() * tensor.element_size()
    x_JD, y_ID = frozen.residual[0][0], frozen.residual[-1][0]
    off = (torch.einsum("idje,je->id", tensor, x_JD) - y_ID).abs().max() / y_ID.abs().max()
    assert off < 1e-5, f"the tensor is off by {off:.1e}"
    return {"seconds": seconds, "sizes": (resident_bytes("VmHWM") - base) / size, "bytes": size}


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    for _ in range(PASSES):
        work()
    return time.perf_counter() - begun


def readouts() -> None:
    decoder, tokens = decoder_and_tokens(TOKENS)

    def training_pass() -> None:
        F.cross_entropy(decoder(tokens)[0, :-1], tokens[0, 1:]).backward()
        decoder.zero_grad()

    def readout(targets: int) -> None:
        frozen = freeze(decoder, tokens)
        at = torch.linspace(0, TOKENS - 2, targets + 1).round().long()[1:]
        cotangent = torch.zeros(targets, 1, TOKENS, CONFIG.d_model)
        cotangent[torch.arange(targets), 0, at] = frozen.unembedding(tokens.roll(-1))[0, at]
        pulled, _ = pull(frozen, cotangent)
        pulled.token_shares(frozen)

    for work in (training_pass, partial(readout, 1), partial(readout, TARGETS)):
        timed(work)
    one, each = [], []
    for _ in range(REPETITIONS):
        price = timed(training_pass)
        one.append(timed(lambda: readout(1)) / price)
        each.append(timed(lambda: readout(TARGETS)) / TARGETS / price)
    print(f"  a VJP readout of one target: {three(one)} forward and backward passes (at most 3)")
    print(f"  each of {TARGETS} targets of one sequence: {three(each)}", flush=True)


def main() -> None:
    print(f"TensorLens, D{CONFIG.d_model} L{CONFIG.num_layers}, {torch.get_num_threads()} threads")
    command = [sys.executable, "-m", "tests.benchmarks.tensor_lens", "tensor"]
    runs = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        for _ in range(REPETITIONS)
    ]
    print(f"  full tensor of {TENSOR_TOKENS} tokens, {runs[0]['bytes'] / 2**20:.0f} MiB: "
          f"{three([run['seconds'] for run in runs], ' s')} (at most 5), "
          f"peak {three([run['sizes'] for run in runs])} times its size (at most 3)")  # fmt: skip
    readouts()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(one_tensor()))
    else:
        main()
