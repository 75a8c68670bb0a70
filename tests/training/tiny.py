"""A training small enough to run dozens of times: counting modulo 16 in steps of one or two, 2 layers of width 16."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headdyn.core.json_files import read_json
from headdyn.data.corpus import Corpus, Split
from headdyn.models.checkpoints.snapshots import snapshot_steps
from headdyn.models.config import DecoderConfig
from headdyn.models.decoder import Decoder
from headdyn.training.loop import Observer
from headdyn.training.next_token import NextToken, train
from headdyn.training.settings import TrainSettings

VOCAB, LENGTH = 16, 24
CONFIG = DecoderConfig(vocab_size=VOCAB, num_layers=2, d_model=16, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=24)
SETTINGS = TrainSettings(
    steps=30,
    batch_size=8,
    warmup_share=5 / 30,
    adamw_lr=3e-3,
    snapshots=5,
    eval_every_steps=10,
    eval_sequences=20,
    resume_every_seconds=1e9,
    compile=False,
)
SNAPSHOTS = (0, 1, 3, 10, 30)  # log-spaced over 30 steps


def counting(sequences: int, seed: int) -> Split:
    """Every token is the one before plus the sequence's stride, and one in ten is anything."""
    generator = np.random.default_rng(seed)
    first, stride = generator.integers(0, VOCAB, (sequences, 1)), generator.integers(1, 3, (sequences, 1))
    tokens_NT = (first + stride * np.arange(LENGTH)) % VOCAB
    noise_NT = generator.random((sequences, LENGTH)) < 0.1
    tokens_NT = np.where(noise_NT, generator.integers(0, VOCAB, tokens_NT.shape), tokens_NT)
    topics_NT = np.broadcast_to(stride - 1, tokens_NT.shape).astype(np.uint8)
    return Split(tokens_NT=tokens_NT.astype(np.uint16), topics_NT=topics_NT)


def corpus(**changes: Any) -> Corpus:
    whole = Corpus(
        name="counting",
        train=counting(200, seed=1),
        val=counting(40, seed=2),
        vocab_size=VOCAB,
        topic_names=("by one", "by two"),
        reference_nats={"random": float(np.log(VOCAB)), "floor": 0.75},
        facts={},
    )
    return dataclasses.replace(whole, **changes)


@dataclass(frozen=True)
class Drawn:
    """A schedule that draws every batch from (seed, step)."""

    batch_size: int = SETTINGS.batch_size
    seed: int = 0

    def indices(self, step: int) -> np.ndarray:
        return np.random.default_rng((self.seed, step)).integers(0, 200, self.batch_size)


def decoder(seed: int = 0) -> Decoder:
    return Decoder(CONFIG).initialise(torch.Generator().manual_seed(seed), std=0.1)


def task(folder: Path, settings: TrainSettings = SETTINGS, **changes: Any) -> NextToken:
    usual = {
        "decoder": decoder(),
        "corpus": corpus(),
        "schedule": Drawn(settings.batch_size),
        "precision": "fp32",
        "device": "cpu",
    }
    return NextToken(settings=settings, folder=folder, **{**usual, **changes})


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished training, as its folder has it."""

    decoder: Decoder
    steps: int
    val_loss_nats: Mapping[int, float]
    snapshots: Mapping[int, Path]
    seconds: float
    tokens_per_second: float
    compiled: bool


def trained(
    folder: Path,
    settings: TrainSettings = SETTINGS,
    *,
    seed: int = 0,
    observer: Observer | None = None,
    should_stop: Callable[[], bool] | None = None,
    **changes: Any,
) -> Trained:
    this = task(folder, settings, **{"decoder": decoder(seed), **changes})
    losses, facts = train(this, observer, should_stop), read_json(folder / "result.json")
    snapshots = snapshot_steps(folder / "snapshots")
    return Trained(decoder=this.decoder, steps=settings.steps, val_loss_nats=losses, snapshots=snapshots, **facts)


def weights(decoder: Decoder) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in decoder.named_parameters()}
