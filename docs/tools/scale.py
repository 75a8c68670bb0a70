"""What large designs cost, from the speeds in experiments/speed/: the page scale.md, written when the site is built.

A cost is a count (of tokens, of bytes, of passes) that the configuration gives, over a speed that was measured
(tests/benchmarks). What is extrapolated, and how, stands beside the number. `python -m docs.tools.scale` writes what the
experiments that were not run would cost: experiments/{pythia,run1,v2}/cost.json.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import headdyn
from headdyn.config import RunConfig
from headdyn.core.json_files import write_json
from headdyn.models.config import DecoderConfig
from headdyn.models.revisions import LISTS
from headdyn.studies.organisms.settings import Organism
from tests.benchmarks.shapes import CPU_SHAPES

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SPEED = EXPERIMENTS / "speed"

# Layers, width and vocabulary of Pythia's ten sizes, as their configurations on the hub have them.
PYTHIA = {
    "14m": (6, 128, 4, 50304),
    "31m": (6, 256, 8, 50304),
    "70m": (6, 512, 8, 50304),
    "160m": (12, 768, 12, 50304),
    "410m": (24, 1024, 16, 50304),
    "1b": (16, 2048, 8, 50304),
    "1.4b": (24, 2048, 16, 50304),
    "2.8b": (32, 2560, 32, 50304),
    "6.9b": (32, 4096, 32, 50432),
    "12b": (36, 5120, 40, 50688),
}
CHECKPOINTS, SEEDS = 154, 9
HUB_BYTES_PER_SECOND = 1e8  # assumed: a line of 1 Gbit/s at 80 %
HUB_BYTES, FLOAT32_BYTES = 2, 4  # of a weight: float16 on the hub; float32 in a snapshot, and in memory while analysed
WORKERS = 2  # one a core
ARRAY = 64  # tasks at once of a SLURM array
PROMPTS, PROMPT_TOKENS = (
    96,
    17,
)  # data=comparisons: 48 pairs, each in the wording that is patched and the one patched from
GPU_BFLOAT16, GPU_FLOAT32 = 1e14, 2e13  # operations a second, assumed where no GPU was measured: trainings, patching
STATE_BYTES = 16  # a weight while trained, at most: itself, its gradient and two moments in float32


@dataclass(frozen=True)
class Suite:
    """One size of a public suite: `weights` with embedding and unembedding, `blocks` without them."""

    name: str
    layers: int
    heads: int
    weights: int
    blocks: int

    @classmethod
    def of(cls, name: str) -> Suite:
        """Embedding and unembedding apart from the blocks."""
        layers, width, heads, vocabulary = PYTHIA[name]
        blocks = _neox_blocks(layers, width)
        return cls(name, layers, heads, blocks + 2 * vocabulary * width, blocks)


def _neox_blocks(layers: int, width: int) -> int:
    """12 D² weights, 13 D biases and norms a layer, and the last norm."""
    return layers * (12 * width * width + 13 * width) + 2 * width


@dataclass(frozen=True)
class Design:
    """What a matrix of trainings asks for, counted from its composed jobs."""

    runs: int
    trainings: int
    weights: int  # of the first job's model
    tokens: int  # of all trainings, recalibrations included
    most_tokens: int  # where no recalibration recovers, and each goes on for as long as it may
    snapshot_bytes: int
    corpus_bytes: int

    @property
    def operations(self) -> int:
        """Floating-point operations of all trainings: 6 a weight and token."""
        return 6 * self.weights * self.tokens


@cache
def design(*overrides: str, seeds: int) -> Design:
    """The counts of a matrix over `seeds` random seeds. Arms that differ in positions alone share a training."""
    jobs = headdyn.compose(*overrides, "seed=0")
    trainings = {(job.attention.name, str(job.data_ordering)): job for job in jobs}
    recalibrated = [job for job in jobs if job.position_enc.recalibration]
    tokens = sum(_tokens(job, job.train.steps) for job in trainings.values())
    most_tokens = tokens + sum(_tokens(job, _most_steps(job)) for job in recalibrated)
    tokens += sum(_tokens(job, job.position_enc.recalibration.count(job.train.steps)) for job in recalibrated)
    snapshots = [job for job in trainings.values() for _ in range(job.train.snapshots)] + recalibrated
    data = jobs[0].data
    sequences = (data.train_sequences or 0) + data.val_sequences  # no number: as much text as is streamed
    return Design(
        runs=len(jobs) * seeds,
        trainings=len(trainings) * seeds,
        weights=_weights(_config(jobs[0])),
        tokens=tokens * seeds,
        most_tokens=most_tokens * seeds,
        snapshot_bytes=FLOAT32_BYTES * sum(_weights(_config(job)) for job in snapshots) * seeds,
        corpus_bytes=3 * sequences * data.sequence_length * seeds,  # uint16 token, uint8 topic; a corpus each seed
    )


def _tokens(job: RunConfig, steps: int) -> int:
    return steps * job.train.batch_size * job.data.sequence_length


def _most_steps(job: RunConfig) -> int:
    settings = job.position_enc.recalibration
    goes_on = settings.until_recovered and settings.steps is None
    return max(settings.count(job.train.steps), job.train.steps if goes_on else 0)


def _config(job: RunConfig) -> DecoderConfig:
    return job.decoder_config(job.data.vocab_size)


def _weights(c: DecoderConfig) -> int:
    attention = c.d_model * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    norms = 2 * c.d_model + 2 * c.head_dim
    return c.vocab_size * c.d_model + c.num_layers * (attention + 3 * c.d_model * c.d_ff + norms) + c.d_model


def page() -> str:
    """The page, in Markdown."""
    gpu = _record("gpu.json")
    estimated = [] if gpu else [_ESTIMATED]
    return (
        "\n".join([_INTRODUCTION, *estimated, *_trainings(gpu, _seconds_of_a_seed()), *_suites(gpu), *_limits()]) + "\n"
    )


def _seconds_of_a_seed() -> dict[str, float]:
    """What the eight runs of one seed of the matrix took on two CPU cores, by mode: the mean of the recorded sweeps."""
    sweeps = [s for s in (_record("run_seconds.json") or {}).values() if s["runs"] == 8 * s["seeds"]]
    by_mode = {mode: [s["per_seed"] for s in sweeps if s["mode"] == mode] for mode in {s["mode"] for s in sweeps}}
    return {mode: sum(seconds) / len(seconds) / WORKERS for mode, seconds in by_mode.items()}


_INTRODUCTION = """# At scale

What two large designs would cost. `docs/tools/scale.py` counts tokens, bytes and operations from the configuration, and divides by
speeds: on CPUs those that the benchmarks in `experiments/speed/` measured; for downloads, and for GPUs where none was measured, assumed
ones. headdyn has no scheduler of its own: [the launchers](machines.md) distribute the runs. Runs are independent of one another, except
that RoPE and DroPE runs share a training.
"""

_ESTIMATED = f"""
**All GPU hours on this page, marked ≈, are estimates: no GPU was measured.** They are the number of floating-point operations, divided by
a fraction of the speed that NVIDIA publishes for an H100: {GPU_BFLOAT16 / 1e12:.0f} TFLOP/s for trainings in bfloat16 (a tenth of its peak) and {GPU_FLOAT32 / 1e12:.0f} TFLOP/s for patching
in float32 (a third). They can tell days from months and no more. The table has no GPU hours (–) for the laptop's model: it is so small
that a GPU would mostly wait for kernels to start. To measure instead, on a machine with a GPU, run
`python tests/benchmarks/gpu.py --out experiments/speed/gpu.json`; the next `make docs` then puts the measured hours here.
"""


def _record(name: str) -> dict[str, Any] | None:
    path = SPEED / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _trainings(gpu: dict[str, Any] | None, seed_on_cpu: dict[str, float]) -> list[str]:
    """The matrix of 32 random seeds, at the size of the pilot, of a first study on a GPU, and of the next."""
    designs = {mode: design("experiment=matrix", f"mode={mode}", seeds=32) for mode in ("laptop", "run1", "v2")}
    whole = designs["laptop"]
    longest = max(counts.most_tokens / counts.tokens for counts in designs.values())
    lines = [
        "## A matrix of 32 random seeds",
        "",
        "`headdyn run -m experiment=matrix mode=MODE 'seed=range(32)'`: eight conditions,",
        f"{whole.runs} runs, and {whole.trainings} trainings, since RoPE and DroPE runs",
        "share one. DroPE runs are counted with their shortest recalibration. One that has not recovered by then goes on, for at most as many",
        f"steps in all as its training had; if all do, the tokens are up to {longest:.1f} times those counted. A training step takes 6 operations",
        "for each weight and token. GPU hours are those of training steps alone; analyses and evaluation come on top.",
        "The column disk counts snapshots and corpora, the column memory one training; ≈ there leaves out activations.",
        f"The SLURM array does {ARRAY} trainings at once, each on a GPU of its own (`hydra.launcher.array_parallelism={ARRAY}`).",
        "",
        "| mode | weights | tokens | one GPU | eight GPUs | SLURM array | two CPU cores | disk | memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for mode, counts in designs.items():
        step = (gpu or {}).get("steps", {}).get(mode)
        seconds = counts.tokens / step["tokens_per_second"] if step else counts.operations / GPU_BFLOAT16
        at_once = {count: math.ceil(counts.trainings / count) / counts.trainings for count in (1, 8, ARRAY)}
        cells = [
            f"`{mode}`",
            f"{counts.weights / 1e6:.1f} M",
            f"{counts.tokens / 1e9:.3g} G",
            *(
                "≈ " * (not step) + _hours(seconds * share) if step or mode != "laptop" else "–"
                for share in at_once.values()
            ),
            _hours(32 * seed_on_cpu[mode])
            if mode in seed_on_cpu
            else "≈ " + _hours(_core_seconds(counts, mode) / WORKERS),
            _bytes(counts.snapshot_bytes + counts.corpus_bytes),
            f"{step['peak_memory_gib']:.1f} GiB" if step else "≈ " + _bytes(STATE_BYTES * counts.weights),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [
        *lines,
        "",
        "Two CPU cores do two runs side by side. Their hours without ≈ were measured on whole runs: corpora, trainings, full recalibrations,",
        "evaluation and analyses, two seeds at a time, while other work ran on the machine (`experiments/speed/run_seconds.json`); the sweep's",
        "statistics and page come on top. Their hours with ≈ are of training steps alone, from the tokens a second that one core was measured at",
        "with a model of that size (`experiments/speed/training_step.json`). The step of v2 was measured with a smaller vocabulary of",
        f"{CPU_SHAPES['v2'].vocabulary:,}; its time is scaled up in proportion to the weights.",
        "",
    ]


def _suites(gpu: dict[str, Any] | None) -> list[str]:
    """Ten suites of 154 checkpoints and nine training seeds."""
    patch = (gpu or {}).get("patching", {}).get("batch 8", {}).get("headdyn_seconds")
    base = Suite.of("160m")
    how = (
        "timed on the GPU at Pythia-160m's size and scaled to the others"
        if patch
        else "counted as 2 operations for each weight of the blocks and each token"
    )
    lines = [
        f"## Ten suites × {CHECKPOINTS} checkpoints × {SEEDS} training seeds",
        "",
        "Pythia's ten sizes, counted as if each had nine seeds (PolyPythias have nine up to 410m). Weights are float16 on the hub and float32",
        f"in memory. Downloads are assumed to run at {HUB_BYTES_PER_SECOND / 1e6:.0f} MB/s. GPU hours are those of patching every head on {PROMPTS} prompts of",
        f"{PROMPT_TOKENS} tokens (`analysis=[patching]`): one forward pass for each head and prompt, {how}.",
        "Reading checkpoints from disk comes on top. Disk and memory share a column: two float16 checkpoints on disk (with",
        "`model.keep_downloads=false`) are as large as one float32 checkpoint in memory; activations are left out.",
        f"The SLURM array does {ARRAY} revisions at once.",
        "",
        "| suite | weights | a checkpoint | all downloads | at 100 MB/s | disk, memory | one GPU | eight GPUs | SLURM array |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    total_bytes, total_seconds = 0, 0.0
    for suite in map(Suite.of, PYTHIA):
        revisions = CHECKPOINTS * SEEDS
        size = HUB_BYTES * suite.weights
        passes = PROMPTS * suite.layers * suite.heads
        seconds = revisions * passes * 2 * suite.blocks * PROMPT_TOKENS / GPU_FLOAT32
        if patch:
            work = (suite.layers * suite.heads * suite.blocks) / (base.layers * base.heads * base.blocks)
            seconds = patch / 8 * PROMPTS * work * revisions
        total_bytes, total_seconds = total_bytes + size * revisions, total_seconds + seconds
        cells = [
            suite.name,
            f"{suite.weights / 1e6:,.0f} M",
            _bytes(size),
            _bytes(size * revisions),
            _hours(size * revisions / HUB_BYTES_PER_SECOND),
            _bytes(FLOAT32_BYTES * suite.weights),
            *("≈ " * (not patch) + _hours(seconds / gpus) for gpus in (1, 8, ARRAY)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    whole = ["**all**", "", "", _bytes(total_bytes), _hours(total_bytes / HUB_BYTES_PER_SECOND), ""]
    whole += ["≈ " * (not patch) + _hours(total_seconds / gpus) for gpus in (1, 8, ARRAY)]
    return [*lines, "| " + " | ".join(whole) + " |", ""]


def _limits() -> list[str]:
    """What breaks first, in the order in which it does."""
    every = [Suite.of(name) for name in PYTHIA]
    downloads = sum(HUB_BYTES * suite.weights for suite in every) * CHECKPOINTS * SEEDS
    largest = {
        gib: max((s for s in every if FLOAT32_BYTES * s.weights < 0.8 * gib * 2**30), key=lambda s: s.weights)
        for gib in (24, 80)
    }
    v2 = design("experiment=matrix", "mode=v2", seeds=32)
    return [
        "## What breaks first",
        "",
        f"1. **The download.** {_bytes(downloads)} for all ten suites. With `model.keep_downloads=false` the disk holds two revisions at a time,",
        "   but more GPUs do not make the network faster. Begin with the small suites: the two largest are",
        f"   {100 * sum(s.weights for s in every[-2:]) / sum(s.weights for s in every):.0f} % of all bytes.",
        f"2. **Memory.** In float32, with a fifth left for activations, a GPU of 24 GiB holds {largest[24].name} and one of 80 GiB {largest[80].name};",
        "   `model.dtype=bfloat16` needs half of that, but changes results slightly.",
        f"3. **Disk.** The snapshots of the matrix at v2 take {_bytes(v2.snapshot_bytes)}; `train.snapshots=8` takes a third of that. All jobs",
        "   share one `HEADDYN_CACHE`, so a cluster needs that space on a disk that every node sees.",
        f"4. **The number of files.** A sweep of {CHECKPOINTS * SEEDS:,} revisions makes as many run folders, and a page with as many rows. Sweep one",
        "   training seed at a time, and merge with `headdyn report A B … --out ALL`.",
    ]


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    if seconds < 60:
        return "< 1 min"
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.0f} h" if hours < 72 else f"{hours / 24:,.0f} days"


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e6:.0f} MB"


# -- what the experiments that were not run would cost ----------------------------------------------------------------

NOT_RUN = {"run1": ("experiment=matrix", "mode=run1", "protocol=original"), "v2": ("experiment=wiki",)}  # by mode


def training_cost(mode: str, *overrides: str) -> dict[str, float]:
    """One seed of a design, whose models are of a mode's size. The peak is that of the benchmark's process on a CPU."""
    counts, measured = design(*overrides, seeds=1), _training_step(mode)
    return {
        "runs": counts.runs,
        "trainings": counts.trainings,
        "weights": counts.weights,
        "tokens": counts.tokens,
        "operations": counts.operations,
        "core_hours": _core_seconds(counts, mode) / 3600,
        "state_bytes": STATE_BYTES * counts.weights,
        "snapshot_bytes": counts.snapshot_bytes,
        "step_peak_bytes": measured["peak_bytes"]["headdyn"],
        "step_sequences": measured["sequences_at_once"],
    }


def _training_step(mode: str) -> dict[str, Any]:
    """What a training step of the mode's size was measured at."""
    record = json.loads((SPEED / "training_step.json").read_text(encoding="utf-8"))
    return dict(record[mode])


def _core_seconds(counts: Design, mode: str) -> float:
    """A design's trainings on one CPU core: its tokens over the measured tokens a second of the mode's training step.

    The measured model may have another vocabulary (v2's has): a step is taken to last longer in proportion to the weights.
    """
    measured = _weights(CPU_SHAPES[mode].config)
    return counts.tokens * counts.weights / (_training_step(mode)["tokens_per_second"]["headdyn"] * measured)


def pythia_cost() -> dict[str, float]:
    """Even against odd heads at the study's checkpoints of Pythia-160m. Core hours: those of the organisms' analysis on
    record, with the same prompts and splits, times the ratio of the blocks' weights."""
    suite, small = Suite.of("160m"), Organism(name="planted", organism="planted")
    files = sorted((EXPERIMENTS / "model_organisms" / "suites").glob("*.json"))
    seconds = statistics.median(json.loads(file.read_text())["analysis_cpu_seconds"] for file in files)
    checkpoints = len({*LISTS["original_11"], *LISTS["original_8"]})
    return {
        "weights": suite.weights,
        "checkpoints": len(LISTS["original_11"]),
        "checkpoints_of_both_studies": checkpoints,
        "download_bytes": HUB_BYTES * suite.weights * checkpoints,
        "weight_bytes": FLOAT32_BYTES * suite.weights,
        "core_hours": seconds * suite.blocks / _neox_blocks(small.num_layers, small.d_model) / 3600,
    }


def costs() -> dict[str, dict[str, float]]:
    """What each experiment that was not run would cost."""
    return {"pythia": pythia_cost(), **{mode: training_cost(mode, *overrides) for mode, overrides in NOT_RUN.items()}}


if __name__ == "__main__":
    for name, cost in costs().items():
        write_json(EXPERIMENTS / name / "cost.json", cost)
