"""What benchmarks of training share: the shapes of the modes, headdyn's step at each, and what a record says of itself."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headdyn.data.corpus import Split
from headdyn.models.config import DecoderConfig
from headdyn.models.decoder import Decoder
from headdyn.training.objective import Batches, autocast, compiled_loss, reproducible
from headdyn.training.optimizers import Optimizers
from headdyn.training.settings import TrainSettings

# Rates so small that the model stays where it is however many steps are timed; a step takes as long as at any other.
SETTINGS = TrainSettings(steps=100, batch_size=1, snapshots=2, muon_lr=1e-4, adamw_lr=1e-5)


@dataclass(frozen=True)
class Shape:
    """A mode's model and batch (conf/mode)."""

    d_model: int
    layers: int
    heads: int
    head_dim: int
    d_ff: int
    vocabulary: int
    length: int
    batch: int

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch * self.length

    @property
    def config(self) -> DecoderConfig:
        return DecoderConfig(
            vocab_size=self.vocabulary,
            num_layers=self.layers,
            d_model=self.d_model,
            num_heads=self.heads,
            num_kv_heads=self.heads,
            head_dim=self.head_dim,
            d_ff=self.d_ff,
        )

    def decoder(self, device: str = "cpu", seed: int = 0, std: float = 0.02) -> Decoder:
        return Decoder(self.config).initialise(torch.Generator().manual_seed(seed), std=std).to(device)

    def batches(self, device: str = "cpu", count: int = 1) -> Batches:
        """Random sequences, enough for `count` different batches."""
        size = (count * self.batch, self.length)
        tokens_NT = np.random.default_rng(0).integers(0, self.vocabulary, size).astype(np.uint16)
        split = Split(tokens_NT=tokens_NT, topics_NT=np.zeros_like(tokens_NT, np.uint8))
        return Batches(split, device, mask_documents=False)

    @property
    def operations_per_token(self) -> float:
        """Floating-point operations of forward and backward: 6 a weight, and causal attention's 6·T·H·d a layer."""
        linear = sum(inputs * outputs for inputs, outputs in self.linear_sizes())
        return 6.0 * (linear + self.layers * self.length * self.heads * self.head_dim)

    def linear_sizes(self) -> list[tuple[int, int]]:
        """Inputs and outputs of every linear layer."""
        inner = self.heads * self.head_dim
        layer = [(self.d_model, inner)] * 3 + [(inner, self.d_model)]
        layer += [(self.d_model, self.d_ff)] * 2 + [(self.d_ff, self.d_model)]
        return layer * self.layers + [(self.d_model, self.vocabulary)]


SHAPES = {
    "smoke": Shape(64, 2, 4, 16, 172, 32, 64, 16),
    "laptop": Shape(128, 4, 4, 32, 344, 64, 128, 32),
    "sanity": Shape(256, 4, 4, 64, 688, 512, 256, 64),
    "run1": Shape(512, 8, 8, 64, 1376, 4096, 512, 64),
    "v2": Shape(768, 12, 12, 64, 2048, 16384, 512, 64),
}
TINY = Shape(32, 2, 2, 16, 40, 32, 16, 4)
# A step of the two shapes for a GPU takes minutes on a CPU: there its gradients are taken on a part of the batch, and
# v2's vocabulary is smaller.
CPU_SHAPES = SHAPES | {
    "run1": dataclasses.replace(SHAPES["run1"], batch=4),
    "v2": dataclasses.replace(SHAPES["v2"], batch=2, vocabulary=4096),
}


class TrainingStep:
    """headdyn's training step as its loop makes it, compiled, in bfloat16, nothing read from the device."""

    def __init__(self, shape: Shape, device: str = "cpu", *, batches: int = 1, std: float = 0.02) -> None:
        self.device, self.decoder = device, shape.decoder(device, std=std)
        self.batches = shape.batches(device, batches)
        self.rows_NB = np.arange(batches * shape.batch).reshape(batches, -1)
        self.optimizers = Optimizers(self.decoder, SETTINGS, compiled=device != "cpu")
        self.loss_function = compiled_loss(self.decoder, self.batches, self.rows_NB[0], "bf16")
        self.parameters = self.optimizers.parameters
        self.done = 0

    def gradients(self) -> Tensor:
        """Forward and backward on the next batch; the loss."""
        rows_B = self.rows_NB[self.done % len(self.rows_NB)]
        self.done += 1
        with reproducible(self.device):
            with autocast("bf16", self.device):
                loss = self.loss_function(self.decoder, *self.batches(rows_B))
            loss.backward()
        self.loss = loss.detach()
        return self.loss

    def update(self) -> None:
        """The optimizers' part, with the gradients that are there."""
        self.optimizers.step(muon_lr=SETTINGS.muon_lr, adamw_lr=SETTINGS.adamw_lr, loss=self.loss)


def machine() -> dict[str, Any]:
    """What the figures of a record belong to."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        processor = re.search(r"model name\s*: (.*)", info)
        flags = set(re.search(r"flags\s*: (.*)", info)[1].split())  # type: ignore[index]
    except OSError:
        processor, flags = None, set[str]()
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "processor": processor[1] if processor else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "bfloat16": sorted(flags & {"avx512_bf16", "amx_bf16"}),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "revision": git.stdout.strip(),
    }
