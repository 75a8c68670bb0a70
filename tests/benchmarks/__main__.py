"""`make bench`: every benchmark, one after the other, each in a process of its own. None of them is a test.

    python -m tests.benchmarks                        # all, in ten to twenty minutes on two cores with nothing else to do
    python -m tests.benchmarks patching tensor_lens   # these two
    python -m tests.benchmarks --long                 # all, with what takes long
    python -m tests.benchmarks tensor_lens --out DIR  # keeps what it prints in DIR/bench.json, beside others'

Each prints its budget beside what it measured, as ratios within one run or as median and spread. Absolute seconds
belong to the machine and to what else it does: the load is printed before each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.shapes import machine


class Benchmark(NamedTuple):
    """What it measures, and the option that makes it take long."""

    about: str
    long: tuple[str, ...] = ()


BENCHMARKS = {
    "matrix": Benchmark("the smoke matrix in trainings, its report built and opened; a wrong setting's answer"),
    "sweep": Benchmark(
        "the smoke matrix side by side and one after another: from nothing, its first step, again; "
        "long: the laptop matrix in its place",
        ("--mode", "laptop"),
    ),
    "training_step": Benchmark(
        "a training step against Hugging Face's with PyTorch's optimizers; long: at the shapes for a GPU too",
        ("--shapes", "smoke", "laptop", "sanity", "run1", "v2"),
    ),
    "optimizer_step": Benchmark("a Muon step of 27 M parameters against torch.optim.Muon"),
    "scaling": Benchmark("exponents: how cost grows with sequences, length, heads, layers, checkpoints and seeds"),
    "probes": Benchmark("topic probes of all layers against a loop with scikit-learn"),
    "corpus_generation": Benchmark("the micro-languages against a loop over tokens"),
    "attention_statistics": Benchmark("time and memory against Hugging Face with output_attentions"),
    "patching": Benchmark("head patching against TransformerLens, and a split of the null"),
    "organisms": Benchmark("training a suite, and the emergence study on its eleven checkpoints"),
    "sweep_memory": Benchmark("peak memory of four checkpoints against that of one"),
    "tensor_lens": Benchmark("the whole tensor, and a VJP readout in passes of the model"),
    "install": Benchmark("installing the wheel without and with extras: seconds, size on disk, the first commands"),
    "text_pipeline": Benchmark("100,000 documents to a corpus; long: 400,000 too", ("--more",)),
}


def run(name: str, options: Sequence[str]) -> list[str]:
    """Run a benchmark, show what it prints as it comes, and return its lines; without any if it fails."""
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", *options]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    if process.returncode:
        print(f"   {name} failed with status {process.returncode}", flush=True)
        return []
    return lines


def keep(folder: Path, name: str, record: dict[str, object]) -> None:
    """Write what a benchmark printed into the folder's bench.json; other benchmarks' lines stay."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "bench.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(kept | {name: record}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    assert __doc__ is not None
    listed = "\n".join(f"  {name:22}{benchmark.about}" for name, benchmark in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        epilog=f"benchmarks:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones (default: all)")
    parser.add_argument(
        "--long", action="store_true", help="with the laptop matrix (ten minutes) and 400,000 documents"
    )
    parser.add_argument(
        "--out", type=Path, help="a folder for bench.json: what each of them printed, the processor, and the load"
    )
    chosen = parser.parse_args()
    unknown = [name for name in chosen.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark is named {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    begun, failed = time.monotonic(), []
    for name in chosen.names or BENCHMARKS:
        load = os.getloadavg()[0]
        print(f"\n== {name} (load {load:.1f} on {os.cpu_count()} cores)", flush=True)
        started = time.monotonic()
        lines = run(name, BENCHMARKS[name].long if chosen.long else ())
        took = time.monotonic() - started
        print(f"   took {took:.0f} s", flush=True)
        failed += [] if lines else [name]
        if chosen.out and lines:
            record = {"processor": machine()["processor"], "load": round(load, 2), "seconds": round(took, 1)}
            keep(chosen.out, name, record | {"printed": [line for line in lines if line]})
    if not chosen.names and not chosen.long:
        print(f"\nall in {time.monotonic() - begun:.0f} s")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
