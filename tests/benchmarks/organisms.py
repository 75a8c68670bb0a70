"""A model organism: training the suite, and the emergence study on its eleven checkpoints with the null; run as

    python -m tests.benchmarks.organisms

It is the README's own command in a process of its own with an empty cache and output folder, so imports, integrity
checks and the report are inside: 400 steps on one thread whatever the machine, then 924 splits at each of the eleven
checkpoints and the test over all of them. The budget is 3 minutes of training and 3 more for everything else, on two
cores. The spread is over checkpoints; a suite is trained once.

What does not depend on the machine is the price of planting: a step's losses and gradients with the interventions,
against those of the same batch's text alone, on one thread and in turn. An intervention step runs the text, the other
prompt up to the planted layer, and the layers from there on for each of two rules.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from headdyn.models.decoder import Decoder
from headdyn.studies.organisms.settings import Organism
from headdyn.studies.organisms.text import draw_batch, tokenizer
from headdyn.studies.organisms.training import interchange_losses
from tests.benchmarks.figures import three
from tests.commands import command, environment, only

BUDGET_SECONDS = 180
REPETITIONS, STEPS = 5, 10


def study() -> None:
    """The command from nothing, its time split into the suite's training and the rest."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        variables = environment(root)
        del variables["OMP_NUM_THREADS"]  # as a user has it: every core
        begun, used = time.monotonic(), children_cpu_seconds()
        arguments = ("-m", "experiment=even_odd_emergence", "model=organism_planted")
        subprocess.run(command(*arguments), env=variables, cwd=root, check=True, capture_output=True)
        whole, used = time.monotonic() - begun, children_cpu_seconds() - used
        training = json.loads(only(root / "cache" / "organism", "*/manifest.json").read_text())["build_seconds"]
        manifests = [json.loads(path.read_text()) for path in (root / "out").glob("**/manifest.json")]
        assert all(manifest["status"] == "complete" for manifest in manifests)
        each = [manifest["seconds"]["total"] - manifest["seconds"]["training"] for manifest in manifests]
    rest = whole - training
    print(f"  training one suite: {training:.0f} s (at most {BUDGET_SECONDS}: {training / BUDGET_SECONDS:.2f} of it)")
    print(f"  its {len(each)} checkpoints with null, whole command without training: {rest:.0f} s "
          f"(at most {BUDGET_SECONDS}: {rest / BUDGET_SECONDS:.2f} of it), {rest / training:.2f} trainings")  # fmt: skip
    print(f"  a checkpoint: {three(each, ' s')}, {statistics.median(each) / training:.3f} trainings")
    print(f"  all of it used {used:.0f} s of processor time in {whole:.0f} s: {used / whole:.2f} cores", flush=True)


def children_cpu_seconds() -> float:
    """Of all processes waited for. Where it is well below the wall's, something else had the processor."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def planting() -> None:
    settings = Organism(name="organism_planted", organism="planted")
    config = settings.decoder_config(tokenizer().get_vocab_size())
    decoder = Decoder(config).initialise(torch.Generator().manual_seed(0), settings.init_std)
    batch = draw_batch(settings.suite, 0, settings.batch_size)

    def seconds(groups: tuple[tuple[int, ...], ...]) -> float:
        begun = time.perf_counter()
        for _ in range(STEPS):
            losses = interchange_losses(decoder, batch, settings.planted_layer, groups)
            torch.stack([*losses.values()]).sum().backward()
            decoder.zero_grad()
        return time.perf_counter() - begun

    torch.set_num_threads(1)  # as suites are trained
    groups = settings.planted_groups
    seconds(groups)
    ratios = [seconds(groups) / seconds(()) for _ in range(REPETITIONS)]
    print(f"  losses and gradients of a step that plants: {three(ratios)} times those of its text alone")


def main() -> None:
    print("organism suite, 3 layers × 12 heads, D96; even_odd_emergence at 11 checkpoints")
    planting()
    study()


if __name__ == "__main__":
    main()
