"""Attention statistics against Hugging Face with `output_attentions=True`, time and peak memory; run as

    python -m tests.benchmarks.attention_statistics

Both sides compute the sums of science.md §6 for the same random Qwen3 of the sanity mode's size (D256 L4 H4 T256), with
the same 20 label swaps; that they agree is checked. The baseline is eager attention over batches of 32 sequences (16 and
8 are timed too, the fastest counts), its statistics vectorised over layers, heads, queries and keys, one masked pass over
the patterns per swap. Every measurement is a process of its own, sides in turn. Peak memory is the resident high-water
mark above what was resident when model and inputs were loaded and one short sequence had run (Linux only).

The budget: half of its fastest's time, a tenth of that one's memory, and no more of it for more sequences.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from headdyn.analysis.pattern_sums import Sums, collect
from headdyn.analysis.sequences import Sequences
from headdyn.models.config import DecoderConfig
from headdyn.models.decoder import Decoder
from headdyn.models.families import export_pretrained
from tests.benchmarks.figures import three

CONFIG = DecoderConfig(vocab_size=512, num_layers=4, d_model=256, num_heads=4, num_kv_heads=4, head_dim=64, d_ff=688)
LENGTH, TOPICS, SWAPS = 256, 3, 20
SEQUENCES, MORE_SEQUENCES = 64, 256
REPETITIONS = 5


def inputs(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    tokens_NT = rng.integers(CONFIG.vocab_size, size=(count, LENGTH))
    topics_NT = np.repeat(rng.integers(TOPICS, size=(count, 4)), LENGTH // 4, axis=1)
    return tokens_NT, topics_NT, (np.arange(count)[:, None] + 1 + np.arange(SWAPS)) % count


def our_decoder() -> Decoder:
    return Decoder(CONFIG).initialise(torch.Generator().manual_seed(0), std=CONFIG.d_model**-0.5)


def our_collect(decoder: Decoder, count: int) -> Sums:
    tokens_NT, topics_NT, swaps_NR = inputs(count)
    return collect(decoder, Sequences(tokens_NT, topics_NT), swaps_NR, TOPICS)


def plain_sums(
    pattern_LBHQK: Tensor, tokens_BT: Tensor, topics_BT: Tensor, swapped: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """The sums as one would write them on tensors: [L, B, H] each, `topics` and `topics_swapped` [L, B, H, S]. `swapped` is [R, B, T]."""
    length = tokens_BT.shape[1]
    position_T = torch.arange(length)
    causal_QK = position_T[:, None] >= position_T

    def induction_keys(tokens_BT: Tensor) -> Tensor:
        twin_BQK = tokens_BT[:, :, None] == tokens_BT[:, None, :]
        return torch.nn.functional.pad(twin_BQK[..., :-1], (1, 0)) & (position_T[:, None] > position_T)

    def entropy(weights: Tensor, keys_BQK: Tensor) -> tuple[Tensor, Tensor]:
        chosen = weights * keys_BQK[:, None]
        mass = chosen.sum(-1, keepdim=True)
        there = mass > 1e-20
        rows = torch.special.entr(chosen / mass.where(there, 1)).sum(-1)
        return rows.sum(-1), there[..., 0].sum(-1)

    def by_topic(mass_LBHQ: Tensor) -> Tensor:
        return torch.stack([(mass_LBHQ * (topics_BT == s)[:, None]).sum(-1) for s in range(TOPICS)], dim=-1)

    same_BQK = (topics_BT[:, :, None] == topics_BT[:, None, :]) & causal_QK
    entropy_LBHQ = torch.special.entr(pattern_LBHQK).sum(-1)
    within_LBHQ = (pattern_LBHQK * same_BQK[:, None]).sum(-1)
    sums = {
        "entropy": entropy_LBHQ.sum(-1),
        "entropy_normalised": (entropy_LBHQ[..., 1:] / torch.log(position_T[1:] + 1.0)).sum(-1),
        "within": within_LBHQ.sum(-1),
        "cross": (pattern_LBHQK * (~same_BQK & causal_QK)[:, None]).sum((-1, -2)),
        "self": pattern_LBHQK.diagonal(dim1=-2, dim2=-1).sum(-1),
        "topics": by_topic(within_LBHQ),
        "sink": pattern_LBHQK[..., 1:, 0].sum(-1),
        "previous": pattern_LBHQK.diagonal(offset=-1, dim1=-2, dim2=-1).sum(-1),
        "induction": (pattern_LBHQK * induction_keys(tokens_BT)[:, None]).sum((-1, -2)),
        "distance": (pattern_LBHQK * (position_T[:, None] - position_T)).sum((-1, -2)),
    }
    sums["entropy_within"], sums["entropy_within_queries"] = entropy(pattern_LBHQK, same_BQK)
    sums["entropy_cross"], sums["entropy_cross_queries"] = entropy(pattern_LBHQK, ~same_BQK & causal_QK)
    keys_BQK, swapped_LBHQ = torch.zeros_like(same_BQK, dtype=torch.float32), torch.zeros_like(within_LBHQ)
    for tokens, topics in zip(*swapped, strict=True):
        other_BQK = topics[:, :, None] == topics[:, None, :]
        swapped_LBHQ += (pattern_LBHQK * other_BQK[:, None]).sum(-1) / SWAPS
        keys_BQK += induction_keys(tokens)
    sums |= {"swapped": swapped_LBHQ.sum(-1), "topics_swapped": by_topic(swapped_LBHQ)}
    sums["induction_swapped"] = (pattern_LBHQK * keys_BQK[:, None]).sum((-1, -2))
    return sums


@torch.no_grad()
def plain_collect(model: torch.nn.Module, count: int, batch: int, device: str = "cpu") -> dict[str, np.ndarray]:
    *arrays, swaps_NR = inputs(count)
    tokens_NT, topics_NT = (torch.from_numpy(array_NT).to(device) for array_NT in arrays)
    parts = []
    for start in range(0, count, batch):
        rows = slice(start, start + batch)
        swaps_RB = torch.from_numpy(swaps_NR[rows].T.copy()).to(device)
        attentions = torch.stack(model(tokens_NT[rows], output_attentions=True, use_cache=False).attentions)
        swapped = tokens_NT[swaps_RB], topics_NT[swaps_RB]
        with torch.device(device):
            parts.append(plain_sums(attentions, tokens_NT[rows], topics_NT[rows], swapped))
    return {name: torch.cat([part[name] for part in parts], dim=1).transpose(0, 1).cpu().numpy() for name in parts[0]}


def hugging_face(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def resident_bytes(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return 1024 * int(match[1])


def measure(model: torch.nn.Module, work: Callable[[], object]) -> dict[str, float]:
    """Peak bytes of the first run of `work` in this process, and seconds of the second."""
    with torch.no_grad():
        model(torch.zeros(1, 8, dtype=torch.long))  # loads kernels, which are neither side's memory
    base = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    work()
    peak = resident_bytes("VmHWM") - base
    begun = time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - begun, "bytes": peak}


def one(side: str, count: int, folder: Path) -> dict[str, float]:
    """A single measurement; what a child process runs."""
    if side == "ours":
        decoder = our_decoder()
        return measure(decoder, lambda: our_collect(decoder, count))
    model = hugging_face(folder)
    return measure(model, lambda: plain_collect(model, count, int(side)))


def in_a_process(side: str, count: int, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.attention_statistics", side, str(count), str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def agree(folder: Path) -> float:
    """The largest difference between the two sides' sums, per query."""
    ours = our_collect(our_decoder(), 1 + SWAPS).heads
    theirs = plain_collect(hugging_face(folder), 1 + SWAPS, 1 + SWAPS)
    assert set(ours) == set(theirs), set(ours) ^ set(theirs)
    return max(float(np.abs(ours[name] - theirs[name]).max()) / LENGTH for name in ours)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = export_pretrained(our_decoder(), Path(name) / "qwen3")
        difference = agree(folder)
        assert difference < 1e-4, difference
        print(f"attention statistics, {CONFIG.num_layers} layers × {CONFIG.num_heads} heads, T {LENGTH}, R {SWAPS}")
        print(f"  largest difference between the sides: {difference:.1e} per query")
        sides: dict[str, list[dict[str, float]]] = {side: [] for side in ("ours", "32", "16", "8")}
        for _ in range(REPETITIONS):
            for side, results in sides.items():
                results.append(in_a_process(side, SEQUENCES, folder))
        ours = sides.pop("ours")
        best = min(sides, key=lambda side: statistics.median(run["seconds"] for run in sides[side]))
        for side, results in sides.items():
            time_ratios = [theirs["seconds"] / mine["seconds"] for theirs, mine in zip(results, ours, strict=True)]
            memory = [mine["bytes"] / theirs["bytes"] for theirs, mine in zip(results, ours, strict=True)]
            fastest = "  <- its fastest: at least 2, at most 0.1" if side == best else ""
            print(f"  Hugging Face in batches of {side}: {three(time_ratios)} times our time; our peak is "
                  f"{three(memory)} of its{fastest}")  # fmt: skip
        print(f"  ours: {three([1e3 * run['seconds'] / SEQUENCES for run in ours], ' ms')} a sequence, "
              f"peak {three([run['bytes'] / 2**20 for run in ours], ' MiB')} above the weights")  # fmt: skip
        more = [in_a_process("ours", MORE_SEQUENCES, folder)["bytes"] / 2**20 for _ in range(REPETITIONS)]
        growth = [more_mib / (run["bytes"] / 2**20) for more_mib, run in zip(more, ours, strict=True)]
        print(f"  peak with {MORE_SEQUENCES} sequences in place of {SEQUENCES}: {three(more, ' MiB')}, "
              f"{three(growth)} times as much (flat: about 1)")  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(one(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))))
    else:
        main()
