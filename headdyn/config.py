"""The checked settings of a run. Imports nothing heavy, so that a bad value is refused at once.

Each group is checked against the dataclass of its settings. An unknown key, a wrong type, and a missing or impossible
value are refused before any work; the message names the key. checking.py makes a RunConfig of Hydra's composed YAML.
"""

import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from headdyn.analysis.contract import Analysis
from headdyn.core.records import Metric
from headdyn.core.settings import ConfigError, Count, Natural, build, settings, targeted
from headdyn.core.tracking import TrackingSettings
from headdyn.data.corpus import Corpus
from headdyn.data.ordering import Ordering
from headdyn.models.config import DecoderConfig
from headdyn.models.settings import BuiltSuite, MiniQwen3, Pretrained, Trained
from headdyn.training.settings import RecalibrationSettings, TrainSettings

MODEL_KINDS: Mapping[str, type] = {"mini_qwen3": MiniQwen3, "trained": Trained, "pretrained": Pretrained}
# Groups that only a training reads. A command that sets one of them for a model that comes trained is refused.
TRAINING_GROUPS = ("attention", "data_ordering", "position_enc", "train")
# Keys that do not change a result themselves and so are not part of the hash; a mode acts through other groups.
_NOT_HASHED = ("force", "tracking", "threads", "workers", "mode", "study", "outcomes", "swept")
NEEDS = {
    "prompts": "asks a language model in words; add data=comparisons and a model that reads words, such as "
    "model=organism_planted",
    "corpus": "reads sequences, and these data are prompts; choose analyses of prompts or weights, such as "
    "analysis=[specialization,circuits], or data=repeated_tokens",
    "topics": "reads sequences with topics, and these have none; choose data=local_text, or other analyses",
}

Scalar = str | int | float | bool | None


@settings
class Protocol:
    """conf/protocol: choices between an original study's procedure and a corrected one (docs/science.md).

    Other groups refer to them. `companions` maps an analysis's name to the analyses, by name, that run beside it.
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
            raise ValueError("dropping RoPE needs position_enc.recalibration; recalibration.steps=0 is the drop alone")


@settings
class Outcomes:
    """The metrics by which a sweep's runs are compared: a primary one and others (null: all possible outcomes)."""

    primary: str | tuple[str, ...] | None = None  # a tuple is refused later, by a message that lists the metrics
    others: tuple[str, ...] | None = None


def model_of(node: Any) -> Any:
    """The model's settings: one of MODEL_KINDS, or the class that `_target_` names (a BuiltSuite). Raises ConfigError.

    A node that is no dict is returned as it is.
    """
    if not isinstance(node, dict):
        return node
    if "_target_" in node:
        return targeted(node, "model")
    if str(node.get("kind")) not in MODEL_KINDS:
        raise ConfigError(f"model.kind={node.get('kind')!r} is unknown; it is one of {', '.join(MODEL_KINDS)}")
    return build(MODEL_KINDS[node["kind"]], node, "model")


def analysis_of(node: Any, where: str) -> Any:
    """The analysis that the group `where`, such as analysis.probes, describes by `node`. Raises ConfigError."""
    if isinstance(node, dict) and "_target_" not in node:
        name = where.rpartition(".")[2]
        raise ConfigError(
            f"{where} has settings ({', '.join(node)}), but {name} is not among the analyses to run; add it to "
            f"analysis=[...], or remove its settings with ~{where}"
        )
    if not isinstance(node, dict):
        raise ConfigError(
            f"{where}={node} is no analysis; its file in conf/analysis begins with '# @package analysis.NAME'"
        )
    analysis = targeted(node, where)
    metrics, needs = getattr(analysis, "metrics", None), getattr(analysis, "needs", None)
    parts = {
        "needs": isinstance(needs, frozenset) and needs <= {*NEEDS, "series", "circuits"},
        "metrics": isinstance(metrics, Mapping) and all(isinstance(metric, Metric) for metric in metrics.values()),
        "__call__": callable(analysis),
    }
    if not all(parts.values()):
        raise ConfigError(
            f"{where}._target_={node['_target_']} is no analysis: it lacks "
            f"{', '.join(name for name, valid in parts.items() if not valid)} (see headdyn/analysis/contract.py)"
        )
    return analysis


def _importable(package: str | None) -> str | None:
    """The package, if it can be imported and is none of Python's own. Raises ConfigError otherwise."""
    try:
        importable = package is None or importlib.util.find_spec(package) is not None
    except (ImportError, ValueError, AttributeError):
        importable = False
    if not importable or str(package).partition(".")[0] in sys.stdlib_module_names:
        raise ConfigError(f"study={package} is no package that can be imported; leave it out, or set study=null")
    return package


def _target(group: str, *methods: str) -> PlainValidator:
    """A validator that builds the object that a group's `_target_` names, and requires it to have one of `methods`."""

    def validated(node: Any) -> Any:
        instance = targeted(node, group)
        if not any(callable(getattr(instance, name, None)) for name in methods):
            raise ConfigError(f"{group}._target_={node['_target_']} cannot be {group}: it lacks {' or '.join(methods)}")
        return instance

    return PlainValidator(validated)


_ANALYSES = PlainValidator(lambda nodes: {name: analysis_of(node, f"analysis.{name}") for name, node in nodes.items()})


@settings
class RunConfig:
    """The checked settings of one run. Its fields are the configuration's groups and values.

    `factors` distinguish this run from others: the options of the groups, every further key that the command line
    overrides, the checkpoint's revision and the seed. `swept` are the keys to which the sweep gives several levels.
    """

    mode: Mode
    protocol: Protocol
    model: Annotated[MiniQwen3 | Trained | Pretrained | BuiltSuite, PlainValidator(model_of)]
    attention: AttentionSettings
    # A Source, or prompts such as Comparisons.
    data: Annotated[Any, _target("data", "build", "in_tokens_of", "prompts")]
    data_ordering: Annotated[Ordering, _target("data_ordering", "epoch")]
    position_enc: PositionSettings
    train: TrainSettings
    analysis: Annotated[Mapping[str, Analysis], _ANALYSES]
    tracking: TrackingSettings
    outcomes: Outcomes
    seed: Natural
    force: bool
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "bf16", "fp32"]
    threads: Annotated[int, Field(ge=0, le=1024)]
    workers: Annotated[int, Field(ge=0, le=1024)]
    patterns_kept: Natural
    study: Annotated[str | None, PlainValidator(_importable)]  # the package that adds to the report
    swept: tuple[str, ...]
    factors: Mapping[str, Scalar]
    absent: Mapping[str, str]  # analyses of a preset that do not apply to this run, and why
    resolved: Mapping[str, Any] = field(repr=False)  # the plain nested dict that all of the above came from

    def __post_init__(self) -> None:
        self._require_a_fit()
        if not self.trains:
            return
        decoder, clamp = self.decoder_config(vocab_size=2), self.train.clamp
        for name, index, count in (
            ("layer", max(clamp.layers_of(decoder.num_layers)), decoder.num_layers),
            ("head", clamp.head, decoder.num_heads),
        ):
            if index != "all" and index >= count:
                raise ConfigError(f"train.clamp.{name}={index} is out of range; the model has {name}s 0 to {count - 1}")
        if clamp.pattern != "none" and self.position_enc.recalibration is not None:
            raise ConfigError(
                f"train.clamp.pattern={clamp.pattern} holds heads in the first training only, and position_enc="
                f"{self.position_enc.name} adds a second one, which would not hold them; set position_enc=rope or nope"
            )
        if clamp.pattern != "none" and getattr(self.data, "mask_documents", False):
            raise ConfigError(
                f"train.clamp.pattern={clamp.pattern} holds heads across documents, and data.mask_documents=true keeps "
                "attention inside documents; set train.clamp.pattern=none or data.mask_documents=false"
            )
        first, topics = getattr(self.data_ordering, "first_topic", 0), getattr(self.data, "num_topics", None)
        if topics is not None and first >= topics:
            raise ConfigError(
                f"data_ordering.first_topic={first} is no topic: with data.num_topics={topics} they are numbered from "
                f"0; set at most {topics - 1}"
            )
        for train_key, data_key in (("batch_size", "train_sequences"), ("eval_sequences", "val_sequences")):
            wanted, available = getattr(self.train, train_key), getattr(self.data, data_key, None)
            if available is not None and wanted > available:
                raise ConfigError(
                    f"train.{train_key}={wanted} exceeds data.{data_key}={available}; lower the one or raise the other"
                )

    def _require_a_fit(self) -> None:
        """Raise ConfigError if model, data and analyses do not fit together."""
        model, layers = self.factors["model"], getattr(self.model, "num_layers", None)
        if self.trains and self.material == "prompts":
            raise ConfigError(
                f"data={self.factors['data']} asks a language model in words, and model={model} reads only token "
                "numbers; choose model=organism_planted, pythia_160m, gpt2 or huggingface"
            )
        if self.trains and not hasattr(self.data, "build"):
            raise ConfigError(
                f"data={self.factors['data']} uses the tokens of a model that comes trained, and model={model} is "
                "trained here; choose data=micro_languages or local_text, or another model"
            )
        if not self.trains and self.material == "corpus" and not hasattr(self.data, "in_tokens_of"):
            raise ConfigError(
                f"data={self.factors['data']} has symbols of its own, which model={model}, trained already, does not "
                "know; choose data=repeated_tokens, local_text, wikipedia or comparisons"
            )
        if self.protocol.name == "original" and self.material == "prompts" and not hasattr(self.data, "formats"):
            raise ConfigError(
                f"protocol=original repeats what the studies asked, and data={self.factors['data']} asks something "
                "else; choose data=comparisons or protocol=corrected"
            )
        for name, analysis in self.analysis.items():
            layer = getattr(analysis, "layer", None)
            if layer is not None and layers is not None and not 0 <= layer < layers:
                raise ConfigError(
                    f"analysis.{name}.layer={layer} is out of range: model={model} has layers 0 to {layers - 1}"
                )
            if lacking := lacking_of(analysis, self.data):
                raise ConfigError(f"analysis={name} {lacking}")
        if isinstance(self.model, Trained) and self.position_enc.recalibration is not None:
            raise ConfigError(
                f"model=trained follows a training through its snapshots, and position_enc="
                f"{self.factors['position_enc']} adds a second training; choose position_enc=rope or nope"
            )

    def refusals(self, corpus: Corpus) -> list[str]:
        """For each analysis that cannot use this corpus, the reason, for example that the corpus is too small."""
        refusals = []
        for analysis in self.analysis.values():
            try:
                if hasattr(analysis, "check"):
                    analysis.check(corpus)
            except ValueError as error:
                refusals.append(str(error))
        return refusals

    @property
    def material(self) -> str:
        """What the run's data give a model to read: corpus or prompts."""
        return material_of(self.data)

    @property
    def trains(self) -> bool:
        """Whether this run trains its model, a Mini-Qwen3; otherwise the model is trained already."""
        return isinstance(self.model, MiniQwen3)

    @property
    def series(self) -> str:
        """The hash (8 hex digits) that all revisions of one series share; empty if the run has no revision."""
        return "" if self.factors.get("revision") is None else self._recipe_hash("revision")

    @property
    def hash(self) -> str:
        """The hash (8 hex digits) of all settings that change what the run computes."""
        return self._recipe_hash()

    def _recipe_hash(self, *left_out_of_model: str) -> str:
        left_out = (*_NOT_HASHED, *(() if self.trains else TRAINING_GROUPS))
        recipe = {key: value for key, value in self.resolved.items() if key not in left_out}
        if self.trains:
            recipe["train"] = {key: value for key, value in recipe["train"].items() if key != "accumulate"}
        # Which other checkpoints the series has does not change the run of this one.
        left_out_of_model = ("revisions", *left_out_of_model)
        recipe["model"] = {key: value for key, value in recipe["model"].items() if key not in left_out_of_model}
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """The run's folder name, readable and stable: the main groups' options, swept levels, revision, seed, hash."""
        groups = ("attention", "data_ordering", "position_enc") if self.trains else ("model",)
        parts = [str(self.factors[group]) for group in groups]
        for key in self.swept:
            if key in self.factors and key not in (*groups, "seed"):
                parts.append(f"{key.rpartition('.')[2]}-{self.factors[key]}" if "." in key else str(self.factors[key]))
        parts.append(str(self.factors.get("revision", "")))
        parts = [re.sub(r"[^\w.-]+", "-", part)[:60] for part in parts if part]
        return "_".join((*parts, f"s{self.seed}", self.hash))

    def decoder_config(self, vocab_size: int) -> DecoderConfig:
        """The configuration of the decoder to train. For DroPE it has RoPE, which is dropped after training."""
        model = self.model
        assert isinstance(model, MiniQwen3)
        return DecoderConfig(
            vocab_size=vocab_size,
            num_layers=model.num_layers,
            d_model=model.d_model,
            num_heads=model.num_heads,
            num_kv_heads=self.attention.num_kv_heads or model.num_heads,
            head_dim=model.head_dim,
            d_ff=model.d_ff,
            rotary_fraction=1.0 if self.position_enc.train_rotary else 0.0,
            rotary_theta=model.rotary_theta,
        )


def lacking_of(analysis: Analysis, data: Any) -> str | None:
    """Why the analysis cannot use the data, as the end of a sentence; None if it can."""
    has_topics = getattr(data, "has_topics", material_of(data) == "corpus")
    available = {material_of(data), *(["topics"] if has_topics else [])}
    return next((NEEDS[need] for need in NEEDS if need in analysis.needs and need not in available), None)


def material_of(data: Any) -> str:
    """What these data give a model to read: corpus or prompts."""
    return "prompts" if hasattr(data, "prompts") else "corpus"
