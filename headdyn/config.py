"""From Hydra's composed YAML to a checked RunConfig. Nothing heavy is imported here: a bad value answers at once.

Each group is checked against the dataclass that owns its settings, so that an unknown key, a wrong type, a missing or
an impossible value is refused by name before any work.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from headdyn.core.settings import (
    AnalysisChoice,
    ConfigError,
    analysis_choice,
    build,
    checked_value,
    targeted,
    unknown_key,
)
from headdyn.core.tracking import TrackingSettings
from headdyn.data.comparisons import Comparisons
from headdyn.data.corpus import Source
from headdyn.data.ordering import Ordering
from headdyn.models.config import DecoderConfig
from headdyn.models.settings import BuiltSuite, MiniQwen3, Pretrained, Trained
from headdyn.training.settings import RecalibrationSettings, TrainSettings


@dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    """conf/attention: heads per key/value group."""

    name: str
    num_kv_heads: int | None = None  # null: one per query head

    def __post_init__(self) -> None:
        if self.num_kv_heads is not None and self.num_kv_heads < 1:
            raise ValueError(f"attention.num_kv_heads={self.num_kv_heads} must be at least 1, or null for MHA")


@dataclass(frozen=True, kw_only=True)
class PositionSettings:
    """conf/position_enc: whether training rotates, whether the final model does, and what happens between."""

    name: str
    train_rotary: bool
    keep_rotary: bool
    recalibration: RecalibrationSettings | None = None

    def __post_init__(self) -> None:
        if self.keep_rotary and not self.train_rotary:
            raise ValueError("position_enc.keep_rotary=true needs position_enc.train_rotary=true")
        if self.recalibration is None and self.keep_rotary != self.train_rotary:
            raise ValueError("dropping RoPE needs position_enc.recalibration (recalibration.steps=0 for the raw drop)")


@dataclass(frozen=True, kw_only=True)
class ProtocolRecalibration:
    """How a protocol recalibrates after a positional change."""

    share: float
    floor_steps: int
    warmup_share: float
    lr_scale: float


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """conf/protocol: every choice that science.md gives two ways. Group files refer to these values."""

    name: str
    generator: str
    blocks: int
    within_block: str
    recalibration: ProtocolRecalibration


@dataclass(frozen=True, kw_only=True)
class ModeModel:
    """A mode's model size."""

    d_model: int
    num_layers: int
    num_heads: int
    gqa_kv_heads: int
    head_dim: int
    d_ff: int


@dataclass(frozen=True, kw_only=True)
class ModeLanguages:
    """A mode's micro-languages."""

    vocab_size: int
    num_topics: int
    sequence_length: int
    min_segments: int
    max_segments: int
    min_segment: int
    train_sequences: int
    val_sequences: int
    target_gap_nats: float
    concentration: float


@dataclass(frozen=True, kw_only=True)
class ModeText:
    """A mode's real text: upper limits, which a small corpus does not reach; null is no limit."""

    vocab_size: int
    sequence_length: int
    num_topics: int
    train_sequences: int | None
    val_sequences: int
    embedding: str


@dataclass(frozen=True, kw_only=True)
class ModeTrain:
    """A mode's training budget and rates."""

    steps: int
    batch_size: int
    muon_lr: float
    adamw_lr: float
    snapshots: int
    eval_every_steps: int
    eval_sequences: int
    compile: bool


@dataclass(frozen=True, kw_only=True)
class Mode:
    """conf/mode: sizes, steps and learning rates. Group files refer to these values."""

    name: str
    model: ModeModel
    micro_languages: ModeLanguages
    text: ModeText
    train: ModeTrain
    recalibration_floor_steps: int


MODEL_KINDS: Mapping[str, type] = {
    "mini_qwen3": MiniQwen3,
    "trained": Trained,
    "pretrained": Pretrained,
}

# What a run that trains nothing does without; naming one of these groups for it is an error, not a silence.
TRAINING_GROUPS = ("attention", "data_ordering", "position_enc", "train")

FACTORS = ("model", "attention", "data", "data_ordering", "position_enc", "mode", "protocol", "experiment")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "bf16", "fp32")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, checked. Its fields are the configuration's groups and values; `factors` are the options chosen."""

    mode: Mode
    protocol: Protocol
    model: MiniQwen3 | Trained | Pretrained | BuiltSuite
    attention: AttentionSettings
    data: Source | Comparisons
    data_ordering: Ordering
    position_enc: PositionSettings
    train: TrainSettings
    analysis: Mapping[str, AnalysisChoice]
    tracking: TrackingSettings
    seed: int
    force: bool
    device: str
    precision: str
    threads: int
    patterns_kept: int
    factors: Mapping[str, str | int]
    resolved: Mapping[str, Any] = field(repr=False)  # the plain nested dict that all of the above came from

    def __post_init__(self) -> None:
        for name in ("seed", "threads", "patterns_kept"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be 0 or more")
        for name, known in (("device", DEVICES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}={getattr(self, name)!r} is unknown; it is one of {', '.join(known)}")
        self._check_analyses()
        if not self.trains:
            return
        try:
            self.decoder_config(vocab_size=2)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        for ours, theirs in (("batch_size", "train_sequences"), ("eval_sequences", "val_sequences")):
            wanted, there = getattr(self.train, ours), getattr(self.data, theirs, None)
            if there is not None and wanted > there:
                raise ConfigError(
                    f"train.{ours}={wanted} exceeds data.{theirs}={there}; lower the one or raise the other"
                )

    def _check_analyses(self) -> None:
        """Refuse a model, data and analyses that cannot meet."""
        model = self.factors["model"]
        asked = isinstance(self.data, Comparisons)
        if asked and self.trains:
            raise ConfigError(
                f"data=comparisons asks a language model in words, and model={model} has only token numbers; choose "
                "model=organism_planted, pythia_160m, gpt2 or huggingface"
            )
        if not asked and not self.trains:
            raise ConfigError(
                f"data={self.factors['data']} is what models are trained on here, and model={model} comes trained; add "
                "data=comparisons and analyses of prompts, such as analysis=[specialization]"
            )
        for name, choice in self.analysis.items():
            layer, layers = choice.settings.get("layer"), getattr(self.model, "num_layers", None)
            if layer is not None and layers is not None and not 0 <= layer < layers:
                raise ConfigError(
                    f"analysis.{name}.layer={layer} is out of range: model={model} has layers 0 to {layers - 1}"
                )
            if "prompts" in choice.needs and not asked:
                raise ConfigError(
                    f"analysis={name} asks a language model in words; add data=comparisons and a model that has them, "
                    "such as model=organism_planted"
                )
            if "corpus" in choice.needs and asked:
                raise ConfigError(
                    f"analysis={name} reads sequences with known topics, and model={model} has none; choose analyses "
                    "of prompts or weights, such as analysis=[specialization,circuits]"
                )
        if isinstance(self.model, Trained) and self.position_enc.recalibration is not None:
            raise ConfigError(
                f"model=trained follows a training through its snapshots, and position_enc="
                f"{self.factors['position_enc']} adds a second one; choose position_enc=rope or nope"
            )

    @property
    def series(self) -> str:
        """What the runs of one series have in common: the name without the revision; empty where there is none."""
        if self.factors.get("revision") is None:
            return ""
        others = {name: value for name, value in self.factors.items() if name != "revision"}
        return json.dumps(others, sort_keys=True)

    @property
    def trains(self) -> bool:
        """Whether the model is a Mini-Qwen3 trained by this project; else it comes trained."""
        return isinstance(self.model, MiniQwen3)

    @property
    def hash(self) -> str:
        """8 hex digits over everything that changes what the run computes (a mode acts only through other groups)."""
        left_out = ("force", "tracking", "threads", "mode", *(() if self.trains else TRAINING_GROUPS))
        recipe = {key: value for key, value in self.resolved.items() if key not in left_out}
        # Which other checkpoints a series has changes nothing in this one's run.
        recipe["model"] = {key: value for key, value in recipe["model"].items() if key != "revisions"}
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """The run folder's name, readable and stable: what tells it from its neighbours, the seed and the hash."""
        groups = ("attention", "data_ordering", "position_enc") if self.trains else ("model",)
        parts = [*(str(self.factors[group]) for group in groups), str(self.factors.get("revision", ""))]
        return "_".join((*filter(None, parts), f"s{self.seed}", self.hash)).replace("/", "-")

    def decoder_config(self, vocab_size: int) -> DecoderConfig:
        """The decoder to train; DroPE's still has the rotation it is trained with."""
        m = self.model
        assert isinstance(m, MiniQwen3)
        return DecoderConfig(
            vocab_size=vocab_size,
            num_layers=m.num_layers,
            d_model=m.d_model,
            num_heads=m.num_heads,
            num_kv_heads=self.attention.num_kv_heads or m.num_heads,
            head_dim=m.head_dim,
            d_ff=m.d_ff,
            rotary_fraction=1.0 if self.position_enc.train_rotary else 0.0,
            rotary_theta=m.rotary_theta,
        )


def check(cfg: DictConfig, choices: Mapping[str, str | None], overrides: Sequence[str] = ()) -> RunConfig:
    """The typed run behind a composed configuration. Raises ConfigError.

    `choices` are Hydra's group options, `overrides` what the command line said.
    """
    plain = {"analysis": {}, **_plain(cfg)}  # analysis=[] leaves no node at all
    known = [f.name for f in dataclasses.fields(RunConfig) if f.name not in ("factors", "resolved")]
    for key in (*plain, *known):
        if key not in known:
            raise ConfigError(unknown_key(key, known))
        if key not in plain:
            raise ConfigError(f"{key} is missing; set {key}=...")
    alias, ordering = choices.get("ordering"), choices.get("data_ordering")
    if alias not in (None, ordering):
        raise ConfigError(f"ordering={alias} and data_ordering={ordering} disagree; give only one of them")
    model = _model(plain["model"])
    factors = {group: str(choices[group]) for group in FACTORS if choices.get(group)}
    if not isinstance(model, MiniQwen3):
        for group in TRAINING_GROUPS:
            factors.pop(group, None)
            for said in overrides:
                if said.lstrip("+~").split("=")[0].split(".")[0] == group:
                    raise ConfigError(
                        f"{said} has no effect on model={factors['model']}, which comes trained; leave it out"
                    )
    if plain["model"].get("revision") is not None:
        factors["revision"] = str(plain["model"]["revision"])
    return RunConfig(
        mode=build(Mode, plain["mode"], "mode"),
        protocol=build(Protocol, plain["protocol"], "protocol"),
        model=model,
        attention=build(AttentionSettings, plain["attention"], "attention"),
        data=targeted(plain["data"], "data"),
        data_ordering=targeted(plain["data_ordering"], "data_ordering"),
        position_enc=build(PositionSettings, plain["position_enc"], "position_enc"),
        train=build(TrainSettings, plain["train"], "train"),
        analysis={name: analysis_choice(node, f"analysis.{name}") for name, node in plain["analysis"].items()},
        tracking=build(TrackingSettings, plain["tracking"], "tracking"),
        seed=checked_value(int, plain["seed"], "seed"),
        force=checked_value(bool, plain["force"], "force"),
        device=checked_value(str, plain["device"], "device"),
        precision=checked_value(str, plain["precision"], "precision"),
        threads=checked_value(int, plain["threads"], "threads"),
        patterns_kept=checked_value(int, plain["patterns_kept"], "patterns_kept"),
        factors={**factors, "seed": plain["seed"]},
        resolved=plain,
    )


def _model(node: Any) -> Any:
    """The model's settings: of one of the kinds here, or of the class that `_target_` names (a BuiltSuite)."""
    if isinstance(node, dict) and "_target_" in node:
        return targeted(node, "model")
    kind = node.get("kind") if isinstance(node, dict) else None
    if not isinstance(kind, str) or kind not in MODEL_KINDS:
        raise ConfigError(f"model.kind={kind!r} is unknown; it is one of {', '.join(MODEL_KINDS)}")
    return build(MODEL_KINDS[kind], node, "model")


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, interpolations resolved, Hydra's own node left out."""
    try:
        with_hydra = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        return OmegaConf.to_container(with_hydra, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} is missing; set {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0] + (f" (at {error.full_key})" if error.full_key else "")) from error


def _run_name(*, _root_: DictConfig) -> str:
    return check(_root_, _root_.hydra.runtime.choices, _root_.hydra.overrides.task).name


OmegaConf.register_new_resolver("headdyn_run", _run_name, replace=True)
