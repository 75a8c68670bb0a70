"""Peak memory of a checkpoint sweep against that of one checkpoint; run as

    python -m tests.benchmarks.sweep_memory

The same runs over one revision and over four of a randomly drawn GPT-NeoX suite (D768 L6 H4, 210 MiB of float32
weights each), one after another in a process, as a sweep's worker does them. A peak is the largest resident size above
what was resident when the process had done the same with a small model, so that all modules were imported: they are
300 MiB, most of which a first run imports after its own peak (Linux only). A run counts its own peak and resets the
system's counter, so the process's is the largest of its runs'.

The budget is a ratio of 1. Beside it stands what the ratio would be if weights of earlier checkpoints stayed.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from headdyn.models.decoder import Decoder, DecoderConfig
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
SMALL = replace(CONFIG, vocab_size=512, num_layers=2, d_model=64, head_dim=16, d_ff=128)
REVISIONS = ("step1000", "step2000", "step3000", "step4000")
# Little to do for each checkpoint: it is weights that may pile up.
SETTINGS = ("experiment=even_odd_emergence", "data.bug_pairs=4", "data.control_pairs=2", *(
    f"analysis.specialization.{setting}" for setting in (
        "groups_per_size=1", "fractions=[0.0,1.0]", "sign_flips=999", "bootstrap_draws=100",
    )
))  # fmt: skip
REPETITIONS = 2


def draw_suite(folder: Path, config: DecoderConfig) -> int:
    """Revisions that differ in every weight; the bytes of one's weights."""
    for seed, revision in enumerate(REVISIONS):
        decoder = Decoder(config).initialise(torch.Generator().manual_seed(seed), std=config.d_model**-0.5)
        byte_level().save_pretrained(export_pretrained(decoder, folder / revision, "gpt_neox"))
    return sum(parameter.numel() * parameter.element_size() for parameter in decoder.parameters())


def one(suites: Path, count: int) -> dict[str, float]:
    """A single measurement; what a child process runs."""
    from headdyn import compose, pipeline
    from headdyn.core import machine

    def peak_of(suite: str, revisions: Sequence[str]) -> int:
        model = ("model=huggingface", f"model.name={suites / suite}", f"model.revisions={','.join(revisions)}")
        peaks = []
        for job in compose(*SETTINGS, *model):
            folder = Path(os.environ["HEADDYN_OUT"]) / suite / job.name
            pipeline.run(job, folder)
            manifest = json.loads((folder / "manifest.json").read_text())
            assert manifest["peak_memory_of"] == "run"
            peaks.append(manifest["peak_memory_bytes"])
        return max(peaks)

    peak_of("small", REVISIONS[:1])
    machine.return_freed_memory()
    base = resident_bytes("VmRSS")
    begun = time.perf_counter()
    peak = peak_of("large", REVISIONS[:count])
    return {"seconds": time.perf_counter() - begun, "bytes": peak - base, "base": base}


def in_a_process(suites: Path, count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-m", "tests.benchmarks.sweep_memory", str(suites), str(count)]
        variables = environment(Path(root))
        del variables["OMP_NUM_THREADS"]  # as a user has it: every core
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        draw_suite(Path(folder) / "small", SMALL)
        weights = draw_suite(Path(folder) / "large", CONFIG)
        runs: dict[int, list[dict[str, float]]] = {1: [], len(REVISIONS): []}
        for _ in range(REPETITIONS):
            for count, results in runs.items():
                results.append(in_a_process(Path(folder), count))
    alone, sweep = ([run["bytes"] for run in results] for results in runs.values())
    kept = 1 + (len(REVISIONS) - 1) * weights / statistics.median(alone)
    mib = 2**20
    print(f"checkpoint sweep, L{CONFIG.num_layers} D{CONFIG.d_model}, {weights / mib:.0f} MiB of weights a checkpoint; "
          f"{runs[1][0]['base'] / mib:.0f} MiB resident before, which is left out")  # fmt: skip
    print(f"  peak of one checkpoint: {three([value / mib for value in alone], ' MiB')}")
    print(f"  peak of {len(REVISIONS)} checkpoints: {three([value / mib for value in sweep], ' MiB')}")
    ratios = [many / single for many, single in zip(sweep, alone, strict=True)]
    print(f"  ratio: {three(ratios)} (at most about 1; {kept:.1f} if weights stayed)")
    times = [many["seconds"] / single["seconds"] for single, many in zip(*runs.values(), strict=True)]
    print(f"  time: {three(times)} times that of one checkpoint")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(one(Path(sys.argv[1]), int(sys.argv[2]))))
    else:
        main()
