"""The settings of a training. Imports no torch: a configuration is checked before anything heavy is imported."""

import os
from typing import Annotated, Literal

from pydantic import Field

from headdyn.core.settings import Count, Natural, Positive, Share, settings


def processes() -> int:
    """How many processes torchrun started for one training; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def process() -> int:
    """The number of this process, from 0; process 0 does the run."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


Beta = Annotated[float, Field(ge=0, lt=1)]


@settings
class Clamp:
    """Heads that are held at an ideal during training (Singh et al. 2024, arXiv 2404.07129).

    `previous_token`, `match` and `uniform` hold attention patterns: all attention is on the token before, spread evenly
    over the tokens that followed the present token earlier (on token 0 if there are none), or spread evenly over all
    tokens up to the present one. `copy` holds the head's output: for each attended token that token's direction in the
    unembedding, of root mean square 1; the pattern is trained. `layer` and `head` are numbers or `all`; `layer=None` is
    the first layer for `previous_token`, else the last. Heads are held from `from_step` on. A held-out loss is
    measured with the heads held at its step; snapshots have the weights, which analyses read without the clamp.
    """

    pattern: Literal["none", "previous_token", "match", "copy", "uniform"] = "none"
    layer: Natural | Literal["all"] | None = None
    head: Natural | Literal["all"] = 0
    from_step: Natural = 0

    def __post_init__(self) -> None:
        if self.pattern == "copy" and "all" in (self.layer, self.head):
            raise ValueError(
                "train.clamp.pattern=copy holds one head's output, and train.clamp.layer or train.clamp.head is all; "
                "set both to numbers"
            )

    def layers_of(self, num_layers: int) -> tuple[int, ...]:
        """The layers of the held heads in a model of `num_layers` layers."""
        if self.layer == "all":
            return tuple(range(num_layers))
        first_or_last = 0 if self.pattern == "previous_token" else num_layers - 1
        return (first_or_last if self.layer is None else self.layer,)


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
    snapshots: int = 12  # how many snapshots of the weights to save, log-spaced from step 0 to the last
    eval_every_steps: Count = 50
    eval_sequences: Count = 256  # a fixed prefix of the validation split
    resume_every_seconds: Annotated[float, Field(ge=0)] = 30.0  # a killed run loses at most as much work
    compile: bool = True  # has no effect with a clamp
    accumulate: Count = 1  # in how many parts a device processes its batch, to need less memory
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
        if self.clamp.pattern != "none" and self.clamp.from_step >= self.steps:
            raise ValueError(
                f"train.clamp.from_step={self.clamp.from_step} is after the last of train.steps={self.steps} steps; "
                "lower it"
            )
        if self.clamp.pattern != "none" and self.eval_sequences % self.batch_size:
            raise ValueError(
                f"train.eval_sequences={self.eval_sequences} must be a multiple of train.batch_size={self.batch_size} "
                "where train.clamp holds a head: only full batches are evaluated with it"
            )

    @property
    def part_size(self) -> int:
        """How many sequences a device processes at once."""
        return self.batch_size // (processes() * self.accumulate)

    @property
    def warmup_steps(self) -> int:
        """The number of updates of the linear warmup."""
        return round(self.warmup_share * self.steps)


@settings
class RecalibrationSettings:
    """The short training after a change of position encodings, with new optimizers on shuffled batches (science.md §5).

    It has max(round(`share` × train.steps), `floor_steps`) steps. Learning rates warm up over `warmup_share` of them to
    `lr_scale` × those of the training, then decay by a cosine to 0. `steps` gives the number of steps instead; 0 is the
    drop alone. An arm has recovered when its held-out loss is within `recovered_within_nats` of its RoPE parent's. With
    `until_recovered`, an arm that has not recovered goes on in further rounds, each as long as all before it, up to
    train.steps in all; but not if `steps` is given.
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
