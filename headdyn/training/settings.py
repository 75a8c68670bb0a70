"""The settings of a training run. No torch here: a configuration is checked before anything heavy is imported."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from headdyn.core.settings import Count, Natural, Positive, Share, settings

Beta = Annotated[float, Field(ge=0, lt=1)]


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
    resume_every_seconds: float = 30.0  # how often the full state is saved, so that a killed run loses no more
    compile: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.snapshots <= self.steps + 1:
            raise ValueError(
                f"train.snapshots={self.snapshots} do not fit {self.steps} steps (0..{self.steps}); "
                f"set train.snapshots to 2..{self.steps + 1}"
            )

    @property
    def warmup_steps(self) -> int:
        """How many steps the learning rates take to reach their full value."""
        return round(self.warmup_share * self.steps)


@settings
class RecalibrationSettings:
    """What follows a positional change: a short second training with fresh optimizers on shuffled batches (§5).

    The recalibration has max(round(`share` × train.steps), `floor_steps`) steps, re-warms over `warmup_share` of them
    to `lr_scale` × the training rates and decays by a cosine to 0. `steps` overrides the count; 0 is the raw drop.
    An arm counts as recovered within `recovered_within_nats` of its RoPE parent's held-out loss.
    """

    share: Share = 0.01
    floor_steps: int = 0
    warmup_share: Share = 0.1
    lr_scale: float = 1.0
    steps: Natural | None = None
    recovered_within_nats: float = 0.05

    def count(self, train_steps: int) -> int:
        """How many recalibration steps follow a training of `train_steps`."""
        return max(round(self.share * train_steps), self.floor_steps) if self.steps is None else self.steps
