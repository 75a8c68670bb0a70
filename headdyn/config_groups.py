"""Settings of the configuration groups without a `_target_`: protocol, mode, attention, position_enc, outcomes."""

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal

from headdyn.core.settings import Count, settings
from headdyn.training.settings import RecalibrationSettings


@settings
class Protocol:
    """conf/protocol: choices between an original and a corrected way (docs/science.md); other groups refer to them.

    `companions` maps the name of an analysis to the analyses that run beside it, by name.
    """

    name: str
    generator: str
    blocks: int
    within_block: str
    cooldown_share: float
    recalibration: Mapping[Literal["share", "floor_steps", "warmup_share", "lr_scale", "until_recovered"], float | bool]
    study: str | None = None  # the value of the key `study`, unless an experiment sets it
    companions: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)


@settings
class Mode:
    """conf/mode: sizes, steps and learning rates. Other groups refer to them and check them."""

    name: str
    model: Mapping[Literal["d_model", "num_layers", "num_heads", "gqa_kv_heads", "head_dim", "d_ff"], int]
    micro_languages: Mapping[
        Literal["vocab_size", "num_topics", "sequence_length", "min_segments", "max_segments", "min_segment"]
        | Literal["train_sequences", "val_sequences", "target_gap_nats", "concentration"],
        float,
    ]
    conversations: Mapping[Literal["num_symbols", "num_topics", "sequence_length", "target_gap_nats"], float]
    text: Mapping[
        Literal["vocab_size", "sequence_length", "num_topics", "train_sequences", "val_sequences", "embedding"],
        int | str | None,  # null: no limit
    ]
    train: Mapping[
        Literal["steps", "batch_size", "muon_lr", "adamw_lr", "snapshots"]
        | Literal["eval_every_steps", "eval_sequences", "compile"],
        float | bool,
    ]
    recalibration_floor_steps: int


@settings
class AttentionSettings:
    """conf/attention: the number of key/value heads."""

    name: str
    num_kv_heads: Count | None = None  # null: one per query head


@settings
class PositionSettings:
    """conf/position_enc: whether RoPE is used in training and in the final model, and the recalibration in between."""

    name: str
    train_rotary: bool
    keep_rotary: bool
    recalibration: RecalibrationSettings | None = None

    def __post_init__(self) -> None:
        if self.keep_rotary and not self.train_rotary:
            raise ValueError("position_enc.keep_rotary=true needs position_enc.train_rotary=true")
        if self.recalibration is None and self.keep_rotary != self.train_rotary:
            raise ValueError("dropping RoPE needs position_enc.recalibration (recalibration.steps=0 for the raw drop)")


@settings
class Outcomes:
    """The metrics by which a sweep's runs are compared: a primary one and others (null: all that are measured)."""

    primary: str | tuple[str, ...] | None = None  # a tuple is refused later, by a message that lists the metrics
    others: tuple[str, ...] | None = None
