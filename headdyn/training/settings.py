"""The settings of a training run. No torch here: a configuration is checked before anything heavy is imported."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from headdyn.core.settings import settings

Beta = Annotated[float, Field(ge=0, lt=1)]


@settings
class TrainSettings:
    """Muon on the hidden matrices, AdamW on embedding and norms, cosine to 0 after a linear warmup (science.md §4)."""

    steps: int
    batch_size: int
    warmup_share: float = 0.05  # of the steps, linear from 0
    muon_lr: float = 0.02
    adamw_lr: float = 3e-4
    muon_momentum: float = 0.95
    adamw_betas: tuple[Beta, Beta] = (0.9, 0.95)
    clip_norm: float = 1.0
    snapshots: int = 12  # log-spaced from step 0 to the last, weights only, kept
    eval_every_steps: int = 50
    eval_sequences: int = 256  # a fixed prefix of the validation split
    resume_every_seconds: float = 30.0  # how often the full state is saved, so that a killed run loses no more
    compile: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "eval_every_steps", "eval_sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} must be at least 1")
        for name in ("muon_lr", "adamw_lr", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"train.{name}={getattr(self, name)} must be above 0")
        if not 0 <= self.warmup_share <= 1:
            raise ValueError(f"train.warmup_share={self.warmup_share} must lie in 0..1")
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

    share: float = 0.01
    floor_steps: int = 0
    warmup_share: float = 0.1
    lr_scale: float = 1.0
    steps: int | None = None
    recovered_within_nats: float = 0.05

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 0:
            raise ValueError(f"position_enc.recalibration.steps={self.steps} must be 0 or more")
        for name in ("share", "warmup_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"position_enc.recalibration.{name}={getattr(self, name)} must lie in 0..1")

    def count(self, train_steps: int) -> int:
        """How many recalibration steps follow a training of `train_steps`."""
        return max(round(self.share * train_steps), self.floor_steps) if self.steps is None else self.steps
