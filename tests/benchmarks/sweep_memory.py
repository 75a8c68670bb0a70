"""Peak memory of a checkpoint sweep against that of one checkpoint; run as

    python -m tests.benchmarks.sweep_memory

The same command over one revision and over four of a randomly drawn GPT-NeoX suite (D768 L6 H4, 210 MiB of float32
weights each), each in a process of its own, in turn. A peak is the largest resident size above what was resident when
everything had been imported (Linux only). A run counts its own peak and resets the system's counter, so the process's
is the largest of its runs' and what the counter says at the end, when the sweep's report is written.

The budget is a ratio of 1. Beside it stands what the ratio would be if weights of earlier checkpoints stayed.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from headdyn.models.decoder import Decoder
from headdyn.models.families import export_pretrained
from tests.benchmarks.attention_statistics import resident_bytes
from tests.benchmarks.figures import three
from tests.commands import environment
from tests.small_models import NEOX
from tests.small_tokenizer import byte_level

CONFIG = replace(
    NEOX,
    vocab_size=8192,
    num_layers=6,
    d_model=768,
    head_dim=192,
    d_ff=3072,
    norm_eps=1e-5,
    rotary_fraction=0.25,
    rotary_theta=1e4,
)
ARGUMENTS = ("-m", "experiment=even_odd_emergence")
REVISIONS = ("step1000", "step2000", "step3000", "step4000")
# Little to do for each checkpoint: it is weights that may pile up.
LITTLE = ("data.bug_pairs=4", "data.control_pairs=2", *(f"analysis.specialization.{setting}" for setting in (
    "groups_per_size=1", "fractions=[0.0,1.0]", "sign_flips=999", "bootstrap_draws=100",
)))  # fmt: skip
REPETITIONS = 2


def draw_suite(folder: Path) -> int:
    """Revisions that differ in every weight; the bytes of one's weights."""
    for seed, revision in enumerate(REVISIONS):
        decoder = Decoder(CONFIG).initialise(torch.Generator().manual_seed(seed), std=CONFIG.d_model**-0.5)
        byte_level().save_pretrained(export_pretrained(decoder, folder / revision, "gpt_neox"))
    return sum(parameter.numel() * parameter.element_size() for parameter in decoder.parameters())


def one(suite: str, revisions: str) -> dict[str, float]:
    """A single measurement; what a child process runs. The command prints before it."""
    from headdyn.run import main as run

    for module in ("headdyn.finish", "headdyn.analysis.interventions.specialization", "transformers"):
        importlib.import_module(module)
    base = resident_bytes("VmRSS")
    begun = time.perf_counter()
    model = ("model=huggingface", f"model.name={suite}", f"model.revisions={revisions}")
    status = run([*ARGUMENTS, *model, *LITTLE])
    seconds = time.perf_counter() - begun
    assert status == 0, status
    manifests = [json.loads(path.read_text()) for path in Path(os.environ["HEADDYN_OUT"]).glob("**/manifest.json")]
    assert len(manifests) == revisions.count("step")
    assert all(manifest["peak_memory_of"] == "run" for manifest in manifests)
    peaks = [manifest["peak_memory_bytes"] for manifest in manifests]
    return {"seconds": seconds, "bytes": max(*peaks, resident_bytes("VmHWM")) - base, "base": base}


def in_a_process(suite: Path, revisions: tuple[str, ...]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-m", "tests.benchmarks.sweep_memory", str(suite), ",".join(revisions)]
        variables = environment(Path(root))
        del variables["OMP_NUM_THREADS"]  # as a user has it: every core
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        weights = draw_suite(Path(folder))
        runs: dict[int, list[dict[str, float]]] = {1: [], len(REVISIONS): []}
        for _ in range(REPETITIONS):
            for count, results in runs.items():
                results.append(in_a_process(Path(folder), REVISIONS[:count]))
    alone, sweep = ([run["bytes"] for run in results] for results in runs.values())
    kept = 1 + (len(REVISIONS) - 1) * weights / statistics.median(alone)
    mib = 2**20
    print(f"checkpoint sweep, L{CONFIG.num_layers} D{CONFIG.d_model}, {weights / mib:.0f} MiB of weights a checkpoint; "
          f"{runs[1][0]['base'] / mib:.0f} MiB resident after imports, which is left out")  # fmt: skip
    print(f"  peak of one checkpoint: {three([value / mib for value in alone], ' MiB')}")
    print(f"  peak of {len(REVISIONS)} checkpoints: {three([value / mib for value in sweep], ' MiB')}")
    ratios = [many / single for many, single in zip(sweep, alone, strict=True)]
    print(f"  ratio: {three(ratios)} (at most about 1; {kept:.1f} if weights stayed)")
    times = [many["seconds"] / single["seconds"] for many, single in zip(*runs.values(), strict=True)]
    print(f"  time: {three(times)} times that of one checkpoint")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(one(*sys.argv[1:])))
    else:
        main()
