"""How cost grows: steps and statistics with the model's shape, whole commands with checkpoints and seeds; run as

    python -m tests.benchmarks.scaling --out FOLDER      # scaling.json and scaling.svg

Sequences, length, heads or layers are varied, one at a time, around one small model (D128 L4 H4 d32, 8 sequences of 128
tokens; heads keep their width). A step is not compiled here, in bfloat16 where the processor multiplies it: one
compilation for each of the shapes would take an hour. The commands are `experiment=head_emergence` on the checkpoints of
a training that is there already, and a sweep of seeds, at `mode=smoke`, with the processor time of all their processes.

Printed is the exponent of a power law, fitted by least squares to the logarithms of the median times: 1 is
proportional, 2 is quadratic, less than 1 says that a part of the cost does not grow.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headdyn.analysis.pattern_sums import collect
from headdyn.analysis.sequences import Sequences
from headdyn.core.figures import Curve, Figure, curves
from headdyn.core.machine import bf16_is_faster, keep_freed_memory
from headdyn.core.records import log_spaced
from headdyn.training.objective import Precision, autocast, next_token_loss
from headdyn.training.optimizers import Optimizers
from tests.benchmarks.shapes import SETTINGS, SHAPES, Shape, machine
from tests.benchmarks.training_step import timed
from tests.commands import command, environment

BASE = dataclasses.replace(SHAPES["laptop"], batch=8)
FIELDS = {"sequences": "batch", "length": "length", "heads": "heads", "layers": "layers"}
FACTORS = (1, 2, 4)
TOPICS, SWAPS = 3, 20
TRAINING = ("mode=smoke", "train.snapshots=10")
CHECKPOINTS = [f"step{step}" for step in log_spaced(80, 10)]


def training_step(shape: Shape) -> Callable[[], object]:
    decoder, (tokens_BT, _) = shape.decoder(), shape.batches()(np.arange(shape.batch))
    optimizers = Optimizers(decoder, SETTINGS)
    precision: Precision = "bf16" if bf16_is_faster("cpu") else "fp32"

    def work() -> None:
        with autocast(precision, "cpu"):
            loss = next_token_loss(decoder, tokens_BT, None)
        loss.backward()
        optimizers.step(muon_lr=SETTINGS.muon_lr, adamw_lr=SETTINGS.adamw_lr, loss=loss.detach())

    return work


def attention_statistics(shape: Shape) -> Callable[[], object]:
    decoder, generator = shape.decoder(std=shape.d_model**-0.5), np.random.default_rng(0)
    tokens_NT = generator.integers(shape.vocabulary, size=(shape.batch, shape.length))
    topics_NT = generator.integers(TOPICS, size=(shape.batch, 4)).repeat(shape.length // 4, axis=1)
    swaps_NR = (np.arange(shape.batch)[:, None] + 1 + np.arange(SWAPS)) % shape.batch
    return lambda: collect(decoder, Sequences(tokens_NT, topics_NT), swaps_NR, TOPICS)


WORKS = {"training step": training_step, "attention statistics": attention_statistics}


def command_seconds(root: Path, *arguments: str) -> float:
    """Processor seconds of a command and of all its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command("-m", *arguments), env=environment(root), cwd=root, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def series_of(count: int) -> tuple[str, ...]:
    revisions = f"model.revision={','.join(CHECKPOINTS[-count:])}"
    return "experiment=head_emergence", "model=trained", "model.revisions=null", revisions, *TRAINING


def seeds(count: int) -> tuple[str, ...]:
    return "mode=smoke", f"seed={','.join(map(str, range(count)))}"


COMMANDS = {"checkpoints": (series_of, (2, 4, 8)), "seeds": (seeds, FACTORS)}


def exponent(factors: Sequence[int], seconds: Sequence[float]) -> float:
    return float(np.polyfit(np.log(factors), np.log(seconds), 1)[0])


def measure_commands() -> dict[str, Any]:
    """Each count with a cache of its own, in which the series' training is done before."""
    record: dict[str, Any] = {}
    for axis, (arguments, counts) in COMMANDS.items():
        seconds = []
        for count in counts:
            with tempfile.TemporaryDirectory() as folder:
                if axis == "checkpoints":
                    command_seconds(Path(folder), *TRAINING)
                seconds.append(command_seconds(Path(folder), *arguments(count)))
        record[axis] = {"counts": counts, "seconds": seconds, "exponent": exponent(counts, seconds)}
        print(
            f"{'a command':22}{axis:11}exponent {record[axis]['exponent']:.2f}   {seconds[0]:.0f} to {seconds[-1]:.0f} s"
        )
    return record


def measure(repetitions: int) -> dict[str, Any]:
    record: dict[str, Any] = {"machine": machine(), "base": dataclasses.asdict(BASE), "factors": FACTORS}
    for name, make in WORKS.items():
        record[name] = {}
        for axis, field in FIELDS.items():
            seconds = []
            for factor in FACTORS:
                work = make(dataclasses.replace(BASE, **{field: factor * getattr(BASE, field)}))
                work()
                seconds.append(float(np.median([timed(work) for _ in range(repetitions)])))
            slope = exponent(FACTORS, seconds)
            record[name][axis] = {"seconds": seconds, "exponent": slope}
            print(f"{name:22}{axis:11}exponent {slope:.2f}   {1e3 * seconds[0]:.0f} to {1e3 * seconds[-1]:.0f} ms")
    return record | {"a command": measure_commands()}


def draw(record: dict[str, Any]) -> Figure:
    lines = [
        Curve(
            label=f"{name}, {axis}",
            x=np.log2(FACTORS),
            y=np.log2(np.array(row["seconds"]) / row["seconds"][0]),
            look={"varied": axis, "work": name},
        )
        for name in (*WORKS, "a command")
        for axis, row in record[name].items()
    ]
    return curves(
        lines,
        xlabel="doublings of what is varied",
        ylabel="doublings of the time",
        whole_x=True,
        caption="How the time of a training step, of attention statistics and of whole commands grows. A line's slope is "
        "the exponent.",
    )


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a folder for scaling.json and scaling.svg")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    record = measure(arguments.repetitions)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "scaling.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        draw(record).save(arguments.out / "scaling.svg")


if __name__ == "__main__":
    main()
