"""From Hydra's composed YAML to a checked RunConfig. Nothing heavy is imported here: a bad value answers at once.

Besides run.py this is the only module that knows Hydra's configuration objects. Each group is checked against the
dataclass that owns its settings, so that an unknown key, a wrong type, a missing or an impossible value is refused
by name before any work.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beartype.door import is_bearable
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from headdyn.core.tracking import TrackingSettings
from headdyn.data.corpus import Source
from headdyn.data.ordering import Ordering
from headdyn.models.config import DecoderConfig
from headdyn.training.settings import RecalibrationSettings, TrainSettings


class ConfigError(ValueError):
    """A setting that cannot be: the message says which, what it is, and how to mend it."""


@dataclass(frozen=True, kw_only=True)
class MiniQwen3:
    """conf/model/mini_qwen3: trained from scratch by this run."""

    kind: str
    name: str
    d_model: int
    num_layers: int
    num_heads: int
    head_dim: int
    d_ff: int
    rotary_theta: float = 1e6
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("d_model", "num_layers", "num_heads", "head_dim", "d_ff"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} must be at least 1")
        for name in ("rotary_theta", "init_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"model.{name}={getattr(self, name)} must be above 0")


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


@dataclass(frozen=True, kw_only=True)
class AnalysisChoice:
    """One conf/analysis option: the class to call and its checked settings."""

    target: str
    settings: Mapping[str, Any]


MODEL_KINDS: Mapping[str, type] = {"mini_qwen3": MiniQwen3}

FACTORS = ("model", "attention", "data", "data_ordering", "position_enc", "mode", "protocol", "experiment")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "bf16", "fp32")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, checked. Its fields are the configuration's groups and values; `factors` are the options chosen."""

    mode: Mode
    protocol: Protocol
    model: MiniQwen3
    attention: AttentionSettings
    data: Source
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

    @property
    def hash(self) -> str:
        """8 hex digits over everything that changes what the run computes (a mode acts only through other groups)."""
        recipe = {
            key: value for key, value in self.resolved.items() if key not in ("force", "tracking", "threads", "mode")
        }
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """The run folder's name, readable and stable: the factors, the seed and the hash."""
        factors = (self.factors[group] for group in ("attention", "data_ordering", "position_enc"))
        return "_".join((*map(str, factors), f"s{self.seed}", self.hash))

    def decoder_config(self, vocab_size: int) -> DecoderConfig:
        """The decoder to train; DroPE's still has the rotation it is trained with."""
        m = self.model
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


def check(cfg: DictConfig, choices: Mapping[str, str | None]) -> RunConfig:
    """The typed run behind a composed configuration. `choices` are Hydra's group options. Raises ConfigError."""
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
    kind = plain["model"].get("kind") if isinstance(plain["model"], dict) else None
    if not isinstance(kind, str) or kind not in MODEL_KINDS:
        raise ConfigError(f"model.kind={kind!r} is unknown; it is one of {', '.join(MODEL_KINDS)}")
    factors = {group: str(choices[group]) for group in FACTORS if choices.get(group)}
    return RunConfig(
        mode=build(Mode, plain["mode"], "mode"),
        protocol=build(Protocol, plain["protocol"], "protocol"),
        model=build(MODEL_KINDS[kind], plain["model"], "model"),
        attention=build(AttentionSettings, plain["attention"], "attention"),
        data=_targeted(plain["data"], "data"),
        data_ordering=_targeted(plain["data_ordering"], "data_ordering"),
        position_enc=build(PositionSettings, plain["position_enc"], "position_enc"),
        train=build(TrainSettings, plain["train"], "train"),
        analysis={name: _analysis(node, f"analysis.{name}") for name, node in plain["analysis"].items()},
        tracking=build(TrackingSettings, plain["tracking"], "tracking"),
        seed=_value(int, plain["seed"], "seed"),
        force=_value(bool, plain["force"], "force"),
        device=_value(str, plain["device"], "device"),
        precision=_value(str, plain["precision"], "precision"),
        threads=_value(int, plain["threads"], "threads"),
        patterns_kept=_value(int, plain["patterns_kept"], "patterns_kept"),
        factors={**factors, "seed": plain["seed"]},
        resolved=plain,
    )


def build(cls: type, node: Any, where: str) -> Any:
    """An instance of a settings dataclass from plain values; a failure names the full key, the value and the fix."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if not isinstance(node, dict):
        raise ConfigError(f"{where}={node!r} must be a group of settings: {', '.join(fields)}")
    for key in node:
        if key not in fields:
            raise ConfigError(unknown_key(f"{where}.{key}", [f"{where}.{name}" for name in fields]))
    hints = typing.get_type_hints(cls)
    values = {}
    for name, f in fields.items():
        if name in node:
            values[name] = _value(hints[name], node[name], f"{where}.{name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}.{name} is missing; set {where}.{name}=...")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(str(error) if where in str(error) else f"{where}: {error}") from error


def _value(hint: Any, value: Any, key: str) -> Any:
    """`value` as the type `hint`: nested groups become dataclasses, lists tuples, and whole numbers floats."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if dataclasses.is_dataclass(option) and value is not None:
            return build(option, value, key)  # type: ignore[arg-type]
        if typing.get_origin(option) is tuple and isinstance(value, list):
            inner = typing.get_args(option)
            hints = [inner[0]] * len(value) if inner[-1] is ... else list(inner)
            if len(hints) != len(value):
                raise ConfigError(f"{key}={value} has {len(value)} entries, not {len(hints)}")
            return tuple(_value(h, v, f"{key}[{i}]") for i, (h, v) in enumerate(zip(hints, value, strict=True)))
        if option is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
    # Python counts True as an int; a configuration must not.
    if not is_bearable(value, hint) or (isinstance(value, bool) and bool not in options):
        raise ConfigError(f"{key}={value!r} must be {' or '.join(map(_readable, options))}")
    return value


def _readable(hint: Any) -> str:
    if hint is type(None):
        return "null"
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    return f"of type {getattr(hint, '__name__', hint)}"


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The message for a key nobody reads, with the nearest ones that somebody does and those beside it."""
    known = list(known)
    near = difflib.get_close_matches(key, known, n=2)
    parent = key.rpartition(".")[0]
    beside = [name for name in known if name.rpartition(".")[0] == parent] or [n for n in known if "." not in n]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown key {key}; {hint}There are {', '.join(beside)}"


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, interpolations resolved, Hydra's own node left out."""
    try:
        with_hydra = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        return OmegaConf.to_container(with_hydra, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} is missing; set {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0] + (f" (at {error.full_key})" if error.full_key else "")) from error


def _targeted(node: Any, where: str) -> Any:
    """The object a group's `_target_` names, built from its settings; a user's package may hold the class."""
    target, settings = _split_target(node, where)
    module, _, name = target.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where}._target_={target} cannot be imported: {error}") from error
    return build(cls, settings, where)


def _split_target(node: Any, where: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise ConfigError(f"{where} needs a _target_: the dotted name of the class to use")
    return node["_target_"], {key: value for key, value in node.items() if key != "_target_"}


def _analysis(node: Any, where: str) -> AnalysisChoice:
    """Check an analysis's settings without importing its module, which would pull torch."""
    target, settings = _split_target(node, where)
    checked = build(settings_class(target, where), settings, where)
    return AnalysisChoice(
        target=target, settings={f.name: getattr(checked, f.name) for f in dataclasses.fields(checked)}
    )


def settings_class(target: str, where: str) -> type:
    """The settings part of a dataclass, read from its source: its fields and `__post_init__`, nothing imported.

    The class must state its fields with built-in types and check them in `__post_init__` with built-ins alone.
    """
    module, _, name = target.rpartition(".")
    try:
        spec = importlib.util.find_spec(module) if module else None
    except ImportError as error:
        raise ConfigError(f"{where}._target_={target} cannot be found: {error}") from error
    if spec is None or spec.origin is None:
        raise ConfigError(f"{where}._target_={target} cannot be found: there is no module {module!r}")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    if not found:
        raise ConfigError(f"{where}._target_={target} cannot be found: {module} has no class {name}")
    body: list[ast.stmt] = []
    for node in found[0].body:
        is_field = isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation)
        if is_field or (isinstance(node, ast.FunctionDef) and node.name == "__post_init__"):
            body.append(node)
    found[0].body = body or [ast.Pass()]
    found[0].bases, found[0].decorator_list = [], []
    namespace: dict[str, Any] = {"__name__": "headdyn.config.settings"}
    exec(compile(ast.Module(body=[*found], type_ignores=[]), spec.origin, "exec", dont_inherit=True), namespace)
    return dataclass(frozen=True, kw_only=True)(namespace[name])


def _run_name(*, _root_: DictConfig) -> str:
    return check(_root_, _root_.hydra.runtime.choices).name


OmegaConf.register_new_resolver("headdyn_run", _run_name, replace=True)
