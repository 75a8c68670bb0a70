"""The settings of a training run. No torch here: a configuration is checked before anything heavy is imported."""

import os
from typing import Annotated, Literal

from pydantic import Field

from headdyn.core.settings import Count, Natural, Positive, Share, settings


def processes() -> int:
    """How many processes torchrun has train together; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def process() -> int:
    """The number of this process; 0 is the one that does the run."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


Beta = Annotated[float, Field(ge=0, lt=1)]


@settings
class Clamp:
    """A head that is held at an ideal throughout training (Singh et al. 2024, arXiv 2404.07129).

    Its attention pattern under `previous_token` (all on the token before) and `match` (evenly on the tokens that
    followed the present one before, on token 0 where there is none); what it writes under `copy`: for every token
    attended, that token's direction in the unembedding, of root mean square 1, while its pattern is trained.
    `layer=None` is the first for `previous_token`, else the last. Held-out losses are taken with the head held; what is
    saved are the weights, which are read without it.
    """

    pattern: Literal["none", "previous_token", "match", "copy"] = "none"
    layer: Natural | None = None
    head: Natural = 0

    def layer_of(self, num_layers: int) -> int:
        """The layer of the head, in a model of so many layers."""
        first_or_last = 0 if self.pattern == "previous_token" else num_layers - 1
        return first_or_last if self.layer is None else self.layer


@settings
class TrainSettings:
    """Muon on the hidden matrices, AdamW on embedding and norms, cosine to 0 after a linear warmup (science.md §4)."""

    steps: Count
    batch_size: Count
    warmup_share: Share = 0.05  # of the steps, linear from 0
    muon_lr: Positive = 0.02
    adamw_lr: Positive = 3e-4
    muon_momentum: Beta = 0.95
    adamw_betas: tuple[Beta, Beta] = (0.9, 0.95)
    clip_norm: Positive = 1.0
    snapshots: int = 12  # log-spaced from step 0 to the last, weights only, kept
    eval_every_steps: Count = 50
    eval_sequences: Count = 256  # a fixed prefix of the validation split
    resume_every_seconds: Annotated[float, Field(ge=0)] = (
        30.0  # how often the full state is saved, so that a killed run loses no more
    )
    compile: bool = True  # not where a head is held
    accumulate: Count = 1  # parts of a device's batch, one after another, whose gradients add up: less memory
    clamp: Clamp = Clamp()

    def __post_init__(self) -> None:
        if not 2 <= self.snapshots <= self.steps + 1:
            raise ValueError(
                f"train.snapshots={self.snapshots} do not fit {self.steps} steps (0..{self.steps}); "
                f"set train.snapshots to 2..{self.steps + 1}"
            )
        shares = processes() * self.accumulate
        if self.batch_size % shares:
            raise ValueError(
                f"train.batch_size={self.batch_size} is not shared out evenly among {processes()} processes × "
                f"train.accumulate={self.accumulate}; make it a multiple of {shares}"
            )
        if self.clamp.pattern != "none" and self.eval_sequences % self.batch_size:
            raise ValueError(
                f"train.eval_sequences={self.eval_sequences} must be a multiple of train.batch_size={self.batch_size} "
                "where train.clamp holds a head: only full batches are evaluated with it"
            )

    @property
    def part_size(self) -> int:
        """Sequences that go through a device at once."""
        return self.batch_size // (processes() * self.accumulate)

    @property
    def warmup_steps(self) -> int:
        """How many steps the learning rates take to reach their full value."""
        return round(self.warmup_share * self.steps)


@settings
class RecalibrationSettings:
    """What follows a positional change: a short second training with fresh optimizers on shuffled batches (§5).

    The recalibration has max(round(`share` × train.steps), `floor_steps`) steps, re-warms over `warmup_share` of them
    to `lr_scale` × the training rates and decays by a cosine to 0. `steps` overrides the count; 0 is the raw drop.
    An arm counts as recovered within `recovered_within_nats` of its RoPE parent's held-out loss. Under
    `until_recovered` one that is not goes on in further rounds, each as long as all before it, up to train.steps;
    a count of its own in `steps` is kept.
    """

    share: Share = 0.01
    floor_steps: Natural = 0
    warmup_share: Share = 0.1
    lr_scale: Positive = 1.0
    steps: Natural | None = None
    recovered_within_nats: float = 0.05
    until_recovered: bool = False

    def count(self, train_steps: int) -> int:
        """How many recalibration steps follow a training of `train_steps`."""
        return max(round(self.share * train_steps), self.floor_steps) if self.steps is None else self.steps
