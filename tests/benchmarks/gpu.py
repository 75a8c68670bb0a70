"""What headdyn does on one GPU, in one table and one JSON file, in under eight minutes:

    python tests/benchmarks/gpu.py --out gpu.json              # everything
    python tests/benchmarks/gpu.py --sections facts steps      # some of it
    python tests/benchmarks/gpu.py --small                     # tiny shapes on the CPU: does it run?

facts       the device; the rate of one large bfloat16 product and of a device-to-device copy, measured in place
parity      logits in float32 against Hugging Face's Qwen3 with the same weights, both on the device
resume      an interrupted training against one that was not: are the weights equal to the bit?
steps       whole training steps at the shapes of the modes laptop, run1 and v2: tokens/s, share of the measured peak
            (6 floating-point operations a weight of a linear layer and token, 6·T·H·d a token and layer of causal
            attention), peak memory, and the kernels that take the time
seeds       K models of the laptop mode trained as one stacked model, against K times one: time, and do they agree?
statistics  attention statistics against Hugging Face with `output_attentions`, the same numbers
patching    a patch of every head against TransformerLens, where it can be imported

A section that fails is reported and the others go on. Every time is the median of several, the device waited for.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from headdyn.models.decoder import Decoder
from headdyn.training.objective import Precision, autocast
from headdyn.training.optimizers import Muon, Optimizers, split_parameters
from headdyn.training.settings import TrainSettings
from tests.benchmarks.shapes import SHAPES, TINY, Shape, TrainingStep, machine

Record = dict[str, Any]
MEASURED = ("laptop", "run1", "v2")
LEARNING = TrainSettings(steps=100, batch_size=1, snapshots=2)  # rates at which five steps move the losses
RUN1_STEPS = 4 * 10_000  # four trainings of Run 1


class Bench:
    """The device and the sizes that are measured."""

    def __init__(self, device: str, small: bool) -> None:
        self.device, self.small = device, small
        self.shapes = {name: TINY if small else SHAPES[name] for name in MEASURED}
        self.on_gpu = device != "cpu"
        self.matmul_per_second = 1e11

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], repetitions: int = 5, inner: int = 1) -> list[float]:
        """Of one call of `work`, each the mean of `inner` calls in a row; one untimed call comes first."""
        work()
        times = []
        for _ in range(repetitions):
            self.wait()
            begun = time.perf_counter()
            for _ in range(inner):
                work()
            self.wait()
            times.append((time.perf_counter() - begun) / inner)
        return times

    # -- facts --------------------------------------------------------------------------------------------------------

    def facts(self) -> Record:
        size = 256 if self.small else 8192
        a, b = (torch.randn(size, size, device=self.device).bfloat16() for _ in range(2))
        product = statistics.median(self.seconds(lambda: a @ b, inner=5))
        self.matmul_per_second = 2 * size**3 / product
        source = torch.randn(1000 if self.small else 2**29, device=self.device)
        target = torch.empty_like(source)
        copy = statistics.median(self.seconds(lambda: target.copy_(source)))
        gpu = torch.cuda.get_device_properties(0) if self.on_gpu else None
        return {
            **machine(),
            "device": gpu.name if gpu else "CPU",
            "memory_gib": gpu.total_memory / 2**30 if gpu else None,
            "matmul_tflops": self.matmul_per_second / 1e12,
            "copy_gb_per_second": 2 * source.numel() * 4 / copy / 1e9,
        }

    # -- parity -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def parity(self) -> Record:
        from headdyn.models.families import export_pretrained
        from tests.parity import hugging_face

        record = {}
        for name, groups in (("mha", 1), ("gqa", 2)):
            shape = self.shapes["run1"]
            config = dataclasses.replace(shape.config, num_layers=2, num_kv_heads=shape.heads // groups)
            decoder = Decoder(config).initialise(torch.Generator().manual_seed(0), std=config.d_model**-0.5)
            tokens_BT = torch.randint(config.vocab_size, (2, shape.length), device=self.device)
            with tempfile.TemporaryDirectory() as folder:
                theirs = hugging_face.load(export_pretrained(decoder, Path(folder), "qwen3")).to(self.device)
            expected = theirs(tokens_BT, use_cache=False).logits
            decoder = decoder.to(self.device)
            logits, traced = decoder(tokens_BT), decoder.trace(tokens_BT, sites=("pattern", "z")).logits
            assert traced is not None
            scale = expected.abs().max()
            record[name] = {
                "difference": ((logits - expected).abs().max() / scale).item(),
                "difference_of_trace": ((traced - expected).abs().max() / scale).item(),
            }
            decoder.blocks[1].attention.q.weight.zero_()  # type: ignore[union-attr,operator]
            record[name]["difference_of_a_mutant"] = ((decoder(tokens_BT) - expected).abs().max() / scale).item()
            assert record[name]["difference"] < 1e-5 < 1e-2 < record[name]["difference_of_a_mutant"], record
        return record

    # -- resume -------------------------------------------------------------------------------------------------------

    def resume(self) -> Record:
        """In processes of their own, since deterministic algorithms are a setting of the process."""
        record = {}
        for name in ("as_headdyn_trains", "deterministic_algorithms"):
            line = [sys.executable, __file__, "--resume", name, "--device", self.device, *["--small"] * self.small]
            environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if "determ" in name else dict(os.environ)
            done = subprocess.run(line, check=False, capture_output=True, text=True, env=environment)
            record[name] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr[-600:]
        return record

    def resume_here(self) -> Record:
        """One whole training, the same again, and one interrupted at step 13: do all end with the same bits?"""
        from headdyn.training.loop import TrainingInterrupted
        from tests.training import tiny

        shape = self.shapes["laptop"]
        config = dataclasses.replace(shape.config, vocab_size=tiny.VOCAB)
        settings = dataclasses.replace(tiny.SETTINGS, compile=not self.small, batch_size=8)

        def trained(folder: Path, stop_after: int | None = None) -> tuple[dict[str, Tensor], float]:
            asked = iter(range(1, 10**6))
            result = tiny.trained(
                folder,
                settings,
                decoder=Decoder(config).initialise(torch.Generator().manual_seed(0)),
                precision="bf16",
                device=self.device,
                should_stop=None if stop_after is None else lambda: next(asked) >= stop_after,
            )
            return tiny.weights(result.decoder), result.val_loss_nats[result.steps]

        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            whole, loss = trained(root / "whole")
            again, _ = trained(root / "again")
            try:
                trained(root / "parts", stop_after=13)
            except TrainingInterrupted:
                parts, _ = trained(root / "parts")
        gap = max((whole[name] - parts[name]).abs().max().item() for name in whole)
        return {
            "same_training_twice": all(torch.equal(whole[name], again[name]) for name in whole),
            "interrupted_and_continued": all(torch.equal(whole[name], parts[name]) for name in whole),
            "largest_difference": gap,
            "final_loss_nats": loss,
        }

    # -- steps --------------------------------------------------------------------------------------------------------

    def steps(self) -> Record:
        return {name: self.training_step(shape) for name, shape in self.shapes.items()}

    def training_step(self, shape: Shape) -> Record:
        """Steps as the loop makes them: nothing is read from the device between them."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        training = TrainingStep(shape, self.device, batches=4)

        def step() -> None:
            training.gradients()
            training.update()

        step()
        self.wait()
        compile_seconds = time.perf_counter() - begun
        inner = 2 if self.small else 20
        whole = statistics.median(self.seconds(step, inner=inner))
        alone = statistics.median(self.seconds(training.gradients, inner=inner))
        training.decoder.zero_grad()
        record = {
            "parameters": sum(parameter.numel() for parameter in training.decoder.parameters()),
            "batch": [shape.batch, shape.length],
            "compile_seconds": compile_seconds,
            "step_ms": 1e3 * whole,
            "gradients_ms": 1e3 * alone,
            "tokens_per_second": shape.tokens / whole,
            "share_of_peak": shape.tokens * shape.operations_per_token / whole / self.matmul_per_second,
            "minutes_of_4_trainings_of_10000_steps": RUN1_STEPS * whole / 60,
            "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if self.on_gpu else None,
        }
        return record | (self.profile(step) if self.on_gpu else {})

    def profile(self, step: Callable[[], None], steps: int = 5) -> Record:
        """The kernels that take the most time, and how much of the time the device works at all."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            begun = time.perf_counter()
            for _ in range(steps):
                step()
            self.wait()
            elapsed = time.perf_counter() - begun
        kernels = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
        busy = sum(event.self_device_time_total for event in kernels) / 1e6
        return {
            "device_busy_ms": 1e3 * busy / steps,
            "wall_ms_while_profiled": 1e3 * elapsed / steps,
            "kernels_per_step": sum(event.count for event in kernels) / steps,
            "top_kernels": [
                {"ms": event.self_device_time_total / 1e3 / steps, "calls": event.count / steps, "name": event.key[:90]}
                for event in kernels[:18]
            ],
        }

    # -- many seeds as one model --------------------------------------------------------------------------------------

    def seeds(self) -> Record:
        shape = self.shapes["laptop"]
        record: Record = {"agreement": self.agreement(shape)}
        one = None
        for count in (1, 2) if self.small else (1, 4, 8, 16, 32):
            decoders = [shape.decoder(self.device, seed) for seed in range(count)]
            # A CPU's attention in bfloat16 has a gradient of its own, which vmap cannot take.
            stacked = Stacked(decoders, self.device, self.on_gpu, "bf16" if self.on_gpu else "fp32")
            tokens_KBT = torch.randint(shape.vocabulary, (count, shape.batch, shape.length), device=self.device)
            milliseconds = 1e3 * statistics.median(
                self.seconds(partial(stacked.step, tokens_KBT), inner=2 if self.small else 10)
            )
            one = one or milliseconds
            record[f"{count} models"] = {
                "step_ms": milliseconds,
                "tokens_per_second": count * shape.batch * shape.length / milliseconds * 1e3,
                "times_one_model": milliseconds / one,
                "faster_than_one_after_the_other": count * one / milliseconds,
            }
        return record

    def agreement(self, shape: Shape) -> float:
        """The largest relative difference of losses over five steps, stacked in float32 against alone."""
        decoders = [shape.decoder(self.device, seed) for seed in range(3)]
        stacked = Stacked([shape.decoder(self.device, seed) for seed in range(3)], self.device, False, "fp32")
        alone = [Optimizers(decoder, LEARNING) for decoder in decoders]
        worst = 0.0
        for _ in range(5):
            tokens_KBT = torch.randint(shape.vocabulary, (3, shape.batch, shape.length), device=self.device)
            losses_K = stacked.step(tokens_KBT)
            for decoder, optimizers, tokens_BT, loss in zip(decoders, alone, tokens_KBT, losses_K, strict=True):
                expected = plain_loss(decoder(tokens_BT), tokens_BT)
                expected.backward()
                optimizers.step(muon_lr=LEARNING.muon_lr, adamw_lr=LEARNING.adamw_lr, loss=expected.detach())
                worst = max(worst, (loss - expected.detach()).abs().item() / expected.item())
        assert worst < 1e-3, worst  # Newton–Schulz is in bfloat16
        return worst

    # -- analyses -----------------------------------------------------------------------------------------------------

    def statistics(self) -> Record:
        from headdyn.models.families import export_pretrained
        from tests.benchmarks import attention_statistics as theirs

        decoder, count = theirs.our_decoder(), 24 if self.small else 256
        with tempfile.TemporaryDirectory() as folder:
            model = theirs.hugging_face(export_pretrained(decoder, Path(folder), "qwen3")).to(self.device)
        decoder = decoder.to(self.device)
        ours = theirs.our_collect(decoder, count).heads
        expected = theirs.plain_collect(model, count, 16, self.device)
        difference = max(float(np.abs(ours[name] - expected[name]).max()) / theirs.LENGTH for name in expected)
        repetitions = 1 if self.small else 3
        our_seconds = self.seconds(lambda: theirs.our_collect(decoder, count), repetitions)
        their_seconds = self.seconds(lambda: theirs.plain_collect(model, count, 16, self.device), repetitions)
        return {
            "sequences": count,
            "difference_per_query": difference,
            "headdyn_seconds": statistics.median(our_seconds),
            "hugging_face_seconds": statistics.median(their_seconds),
            "ratio": statistics.median(their_seconds) / statistics.median(our_seconds),
        }

    def patching(self) -> Record:
        try:
            from tests.benchmarks import patching as theirs
        except ImportError as error:
            return {"not_measured": f"TransformerLens cannot be imported here: {error}"}
        config = dataclasses.replace(theirs.PYTHIA_160M, num_layers=2) if self.small else theirs.PYTHIA_160M
        decoder = Decoder(config).initialise(torch.Generator().manual_seed(0), std=config.d_model**-0.5)
        bridge = theirs.bridge_of(decoder, self.device)
        decoder = decoder.to(self.device)
        record = {}
        for rows in (1, 8):
            prompts = theirs.group(rows, 17, 17, 0, theirs.Block(0, 0, 17))
            found = theirs.by_headdyn(decoder, prompts)
            expected = theirs.by_transformer_lens(bridge, prompts)
            difference = float(np.abs(found - expected).max())
            assert difference < 1e-3, difference
            ours = statistics.median(self.seconds(partial(theirs.by_headdyn, decoder, prompts), 3))
            their = statistics.median(self.seconds(partial(theirs.by_transformer_lens, bridge, prompts), 1))
            record[f"batch {rows}"] = {
                "difference": difference,
                "headdyn_seconds": ours,
                "transformer_lens_seconds": their,
                "ratio": their / ours,
            }
        return record


def plain_loss(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), tokens_BT[:, 1:].flatten())


class Stacked:
    """K decoders of one shape trained as one: every parameter has a leading axis K, every model its own clip."""

    def __init__(self, decoders: list[Decoder], device: str, compiled: bool, precision: Precision = "bf16") -> None:
        self.device, self.precision = device, precision
        names = dict(decoders[0].named_parameters())
        stacked = stack_module_state(list(decoders))[0]
        self.parameters = {name: stacked[name].detach() for name in names}
        with torch.device("meta"):
            skeleton = Decoder(decoders[0].config)

        def loss_of(parameters: dict[str, Tensor], tokens_BT: Tensor) -> Tensor:
            return plain_loss(functional_call(skeleton, parameters, (tokens_BT,), tie_weights=True), tokens_BT)

        self.gradients = vmap(grad_and_value(loss_of))
        self.hidden = list(split_parameters(decoders[0]).muon)
        self.rest = [name for name in names if name not in self.hidden]
        self.muon = Muon([torch.nn.Parameter(m) for name in self.hidden for m in self.parameters[name]], 0.95)
        for shape in self.muon.stacks:  # the stacks of all models, as views of the stacked parameters
            self.muon.stacks[shape] = [
                m for name in self.hidden if self.parameters[name].shape[1:] == shape for m in self.parameters[name]
            ]
        self.adamw = torch.optim.AdamW(
            [self.parameters[name] for name in self.rest],
            lr=LEARNING.adamw_lr,
            betas=LEARNING.adamw_betas,
            weight_decay=0.0,
            fused=True,
        )
        if compiled:
            self.gradients = torch.compile(self.gradients, dynamic=False)
            self.muon._update = torch.compile(self.muon._direction, dynamic=False)

    @torch.no_grad()
    def step(self, tokens_KBT: Tensor) -> Tensor:
        """One step of every model on its own batch; their losses [K]."""
        with autocast(self.precision, self.device):
            gradients, losses_K = self.gradients(self.parameters, tokens_KBT)
        squares_K = torch.stack([g.float().square().flatten(1).sum(1) for g in gradients.values()]).sum(0)
        scale_K = (LEARNING.clip_norm / (squares_K.sqrt() + 1e-6)).clamp(max=1.0)
        for name, gradient in gradients.items():
            clipped = gradient * scale_K.view(-1, *[1] * (gradient.ndim - 1))
            self.parameters[name].grad = clipped
            if name in self.hidden:
                for matrix, its_gradient in zip(self.matrices(name), clipped, strict=True):
                    matrix.grad = its_gradient
        self.muon.step(LEARNING.muon_lr, torch.ones((), dtype=torch.bool, device=self.device))
        self.adamw.step()
        return losses_K

    def matrices(self, name: str) -> list[Tensor]:
        """The views that the optimizer holds of one stacked parameter."""
        shape = tuple(self.parameters[name].shape[1:])
        same = [other for other in self.hidden if self.parameters[other].shape[1:] == shape]
        count, place = len(self.parameters[name]), same.index(name)
        return self.muon.stacks[shape][place * count : (place + 1) * count]


SECTIONS = ("facts", "parity", "resume", "steps", "seeds", "statistics", "patching")


def flat(record: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A record's numbers by dotted name, as a table has them."""
    if isinstance(record, dict):
        return [row for key, value in record.items() for row in flat(value, f"{prefix}{key}.")]
    if isinstance(record, list):
        if record and isinstance(record[0], dict):
            return [(f"{prefix}{i}", "  ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
                    for i, row in enumerate(record)]  # fmt: skip
        return [(prefix[:-1], " x ".join(map(str, record)))]
    return [(prefix[:-1], f"{record:.4g}" if isinstance(record, float) else str(record))]


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file for everything that was measured")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--small", action="store_true", help="tiny shapes, on the CPU unless --device says otherwise")
    parser.add_argument("--device", help="default: cuda, or with --small cpu")
    parser.add_argument("--resume", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    device = chosen.device or ("cpu" if chosen.small else "cuda")
    if device != "cpu" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --small runs everything on the CPU at tiny shapes")
    bench = Bench(device, chosen.small)
    if chosen.resume:
        torch.use_deterministic_algorithms(chosen.resume == "deterministic_algorithms", warn_only=True)
        print(json.dumps(bench.resume_here()))
        return
    record: Record = {}
    for name in dict.fromkeys(("facts", *chosen.sections)):  # the others are measured against its peak
        begun = time.perf_counter()
        try:
            record[name] = getattr(bench, name)()
        except Exception:
            record[name] = {"failed": traceback.format_exc(limit=-3)}
        took = time.perf_counter() - begun
        print(f"\n== {name} ({took:.0f} s)", flush=True)
        for key, value in flat(record[name]):
            print(f"  {key:58} {value}", flush=True)
        record[name]["took_seconds"] = took
        if chosen.out:
            chosen.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
