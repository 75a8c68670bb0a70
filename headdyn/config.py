"""Makes a checked RunConfig of Hydra's composed YAML. Imports nothing heavy, so that a bad value is refused at once.

Each group is checked against the dataclass of its settings: an unknown key, a wrong type, a missing or an impossible
value is refused, by its key, before any work.
"""

import dataclasses
import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import Field, PlainValidator

from headdyn.analysis.contract import Analysis
from headdyn.config_groups import AttentionSettings, Mode, Outcomes, PositionSettings, Protocol
from headdyn.core.records import Metric
from headdyn.core.settings import ConfigError, Natural, build, settings, targeted, unknown_key
from headdyn.core.store import cache_root
from headdyn.core.tracking import TrackingSettings
from headdyn.data.corpus import Corpus
from headdyn.data.ordering import Ordering
from headdyn.models.config import DecoderConfig
from headdyn.models.settings import BuiltSuite, MiniQwen3, Pretrained, Trained
from headdyn.training.settings import TrainSettings

MODEL_KINDS: Mapping[str, type] = {"mini_qwen3": MiniQwen3, "trained": Trained, "pretrained": Pretrained}
# Groups that a model which is already trained has no use for; a command that sets one of them for it is refused.
TRAINING_GROUPS = ("attention", "data_ordering", "position_enc", "train")
# Groups whose option is always a factor. Any other key is a factor if the command overrides it, except NO_FACTORS.
FACTORS = ("model", "attention", "data", "data_ordering", "position_enc", "mode", "protocol", "experiment")
NO_FACTORS = (
    *("seed", "force", "device", "threads", "workers", "patterns_kept", "tracking", "study", "outcomes", "swept"),
    *("cluster", "local", "ordering", "hydra", "model.revision", "model.revisions", "model.kept"),
)
# Keys that change no number themselves and so are not part of the hash; a mode acts through other groups.
_NOT_HASHED = ("force", "tracking", "threads", "workers", "mode", "study", "outcomes", "swept")
_PRIMARY = "selectivity"  # the primary outcome where neither the command nor a preset nor the data name one
_NEEDS = {
    "prompts": "asks a language model in words; add data=comparisons and a model that has them, such as "
    "model=organism_planted",
    "corpus": "reads sequences, and these data are prompts; choose analyses of prompts or weights, such as "
    "analysis=[specialization,circuits], or data=repeated_tokens",
    "topics": "reads sequences with topics, and these have none; choose data=local_text, or other analyses",
}

Scalar = str | int | float | bool | None


def _model(node: Any) -> Any:
    """The model's settings: one of MODEL_KINDS, or the class that `_target_` names (a BuiltSuite)."""
    if not isinstance(node, dict) or "_target_" in node:
        return targeted(node, "model") if isinstance(node, dict) else node
    if str(node.get("kind")) not in MODEL_KINDS:
        raise ConfigError(f"model.kind={node.get('kind')!r} is unknown; it is one of {', '.join(MODEL_KINDS)}")
    return build(MODEL_KINDS[node["kind"]], node, "model")


def _analysis(node: Any, where: str) -> Any:
    """The analysis that a group of conf/analysis describes. Raises ConfigError."""
    if isinstance(node, dict) and "_target_" not in node:
        name = where.rpartition(".")[2]
        raise ConfigError(
            f"{where} has settings ({', '.join(node)}), but {name} is not among the analyses to run; add it to "
            f"analysis=[...], or take its settings away with ~{where}"
        )
    if not isinstance(node, dict):
        raise ConfigError(
            f"{where}={node} is no analysis; its file in conf/analysis begins with '# @package analysis.NAME'"
        )
    analysis = targeted(node, where)
    metrics, needs = getattr(analysis, "metrics", None), getattr(analysis, "needs", None)
    parts = {
        "rows": hasattr(analysis, "rows"),
        "needs": isinstance(needs, frozenset) and needs <= {*_NEEDS, "series", "circuits"},
        "metrics": isinstance(metrics, Mapping) and all(isinstance(metric, Metric) for metric in metrics.values()),
        "__call__": callable(analysis),
    }
    if not all(parts.values()):
        raise ConfigError(
            f"{where}._target_={node['_target_']} is no analysis: it lacks "
            f"{', '.join(name for name, whole in parts.items() if not whole)} (see headdyn/analysis/contract.py)"
        )
    return analysis


def _importable(package: str | None) -> str | None:
    try:
        importable = package is None or importlib.util.find_spec(package) is not None
    except (ImportError, ValueError, AttributeError):
        importable = False
    if not importable or str(package).partition(".")[0] in sys.stdlib_module_names:
        raise ConfigError(f"study={package} is no package that can be imported; leave it out, or null")
    return package


def _target(group: str, *methods: str) -> PlainValidator:
    """A validator that builds the object named by a group's `_target_`, and requires one of these methods of it."""

    def validated(node: Any) -> Any:
        instance = targeted(node, group)
        if not any(callable(getattr(instance, name, None)) for name in methods):
            raise ConfigError(f"{group}._target_={node['_target_']} cannot be {group}: it lacks {' or '.join(methods)}")
        return instance

    return PlainValidator(validated)


_ANALYSES = PlainValidator(lambda nodes: {name: _analysis(node, f"analysis.{name}") for name, node in nodes.items()})


@settings
class RunConfig:
    """The checked settings of one run. Its fields are the configuration's groups and values.

    `factors` distinguish this run from others: the options of the groups, every further key that the command line
    overrides, the checkpoint's revision and the seed. `swept` are the keys to which the sweep gives several levels.
    """

    mode: Mode
    protocol: Protocol
    model: Annotated[MiniQwen3 | Trained | Pretrained | BuiltSuite, PlainValidator(_model)]
    attention: AttentionSettings
    data: Annotated[
        Any, _target("data", "build", "in_tokens_of", "prompts")
    ]  # a Source, a TokenSource, or prompts such as Comparisons
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
        for name, place, count in (
            ("layer", max(clamp.layers_of(decoder.num_layers)), decoder.num_layers),
            ("head", clamp.head, decoder.num_heads),
        ):
            if place != "all" and place >= count:
                raise ConfigError(f"train.clamp.{name}={place} is out of range; this model's are 0 to {count - 1}")
        for ours, theirs in (("batch_size", "train_sequences"), ("eval_sequences", "val_sequences")):
            wanted, available = getattr(self.train, ours), getattr(self.data, theirs, None)
            if available is not None and wanted > available:
                raise ConfigError(
                    f"train.{ours}={wanted} exceeds data.{theirs}={available}; lower the one or raise the other"
                )

    def _require_a_fit(self) -> None:
        """Raise ConfigError if model, data and analyses do not fit together."""
        model, layers = self.factors["model"], getattr(self.model, "num_layers", None)
        if self.trains and self.material == "prompts":
            raise ConfigError(
                f"data=comparisons asks a language model in words, and model={model} has only token numbers; choose "
                "model=organism_planted, pythia_160m, gpt2 or huggingface"
            )
        if self.trains and not hasattr(self.data, "build"):
            raise ConfigError(
                f"data={self.factors['data']} is written in the tokens of a model that comes trained, and model="
                f"{model} is trained here; choose data=micro_languages or local_text, or another model"
            )
        if not self.trains and self.material == "corpus" and not hasattr(self.data, "in_tokens_of"):
            raise ConfigError(
                f"data={self.factors['data']} has symbols of its own, which model={model} does not know, as it comes "
                "trained; choose data=repeated_tokens, local_text, wikipedia or comparisons"
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
            if lacking := _lacking(analysis, self.data):
                raise ConfigError(f"analysis={name} {lacking}")
        if isinstance(self.model, Trained) and self.position_enc.recalibration is not None:
            raise ConfigError(
                f"model=trained follows a training through its snapshots, and position_enc="
                f"{self.factors['position_enc']} adds a second one; choose position_enc=rope or nope"
            )

    def refusals(self, corpus: Corpus) -> list[str]:
        """The reasons for which analyses cannot use this corpus, for example because it is too small."""
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
        """What the model reads: corpus or prompts."""
        return _material(self.data)

    @property
    def trains(self) -> bool:
        """Whether this run trains its model, a Mini-Qwen3; otherwise the model is trained already."""
        return isinstance(self.model, MiniQwen3)

    @property
    def series(self) -> str:
        """A hash that all revisions of one series share; empty if the run has no revision."""
        return "" if self.factors.get("revision") is None else self._recipe_hash("revision")

    @property
    def hash(self) -> str:
        """8 hex digits, the hash of all settings that change what the run computes."""
        return self._recipe_hash()

    def _recipe_hash(self, *left_out_of_model: str) -> str:
        left_out = (*_NOT_HASHED, *(() if self.trains else TRAINING_GROUPS))
        recipe = {key: value for key, value in self.resolved.items() if key not in left_out}
        if self.trains:
            recipe["train"] = {key: value for key, value in recipe["train"].items() if key != "accumulate"}
        # The list of the series' checkpoints does not change the run of this one.
        left_out_of_model = ("revisions", *left_out_of_model)
        recipe["model"] = {key: value for key, value in recipe["model"].items() if key not in left_out_of_model}
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """The run's folder name, readable and stable: the main groups' options, the swept levels, seed and hash."""
        groups = ("attention", "data_ordering", "position_enc") if self.trains else ("model",)
        parts = [str(self.factors[group]) for group in groups]
        for key in self.swept:
            if key in self.factors and key not in (*groups, "seed"):
                parts.append(f"{key.rpartition('.')[2]}-{self.factors[key]}" if "." in key else str(self.factors[key]))
        parts.append(str(self.factors.get("revision", "")))
        parts = [re.sub(r"[^\w.-]+", "-", part)[:60] for part in parts if part]
        return "_".join((*parts, f"s{self.seed}", self.hash))

    def decoder_config(self, vocab_size: int) -> DecoderConfig:
        """The decoder to train. For DroPE it has RoPE, which is dropped after training."""
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
    """The checked settings of the run that a composed configuration describes. Raises ConfigError.

    `choices` are the options that Hydra chose for the groups, `overrides` those of the command line.
    """
    plain = {"analysis": {}, **_plain(cfg)}  # analysis=[] leaves no node at all
    known = [f.name for f in dataclasses.fields(RunConfig) if f.name not in ("factors", "absent", "resolved")]
    for key in set(plain) - set(known):
        raise ConfigError(unknown_key(key, known))
    for group in (*FACTORS[:-1], "analysis"):
        if not isinstance(plain.get(group), dict) or (group in FACTORS and not isinstance(choices.get(group), str)):
            raise ConfigError(
                f"{group} must name one option of conf/{group}, or of a folder of your own (--config-dir)"
            )
    alias, ordering = choices.get("ordering"), choices["data_ordering"]
    if alias not in (None, ordering):
        raise ConfigError(f"ordering={alias} and data_ordering={ordering} disagree; give only one of them")
    comes_trained = not isinstance(_model(plain["model"]), MiniQwen3)
    for override in overrides if comes_trained else ():
        if _key(override).partition(".")[0] in TRAINING_GROUPS:
            raise ConfigError(
                f"{override} has no effect on model={choices['model']}, which comes trained; leave it out"
            )
    _add_companions(plain)
    absent = _leave_out(plain, [_key(override) for override in overrides])
    analyses = [_analysis(node, f"analysis.{name}") for name, node in plain["analysis"].items()]
    possible = outcome_names(analyses)
    outcomes = build(Outcomes, plain.get("outcomes"), "outcomes")
    data = targeted(plain["data"], "data")
    chosen = outcomes.primary is not None and "outcomes.primary" in map(_key, overrides)
    if not chosen and outcomes.primary not in possible:
        usual = (getattr(data, "primary_outcome", None), _PRIMARY, *possible)
        plain["outcomes"]["primary"] = next((name for name in usual if name in possible), None)
    factors = _factors(plain, choices, overrides, TRAINING_GROUPS if comes_trained else ())
    return build(RunConfig, {**plain, "factors": factors, "absent": absent, "resolved": plain}, "")


def from_record(settings: Mapping[str, Any], factors: Mapping[str, Scalar], absent: Mapping[str, str]) -> RunConfig:
    """The settings of a recorded run, from its manifest's `config`, `factors` and `absent`. Raises ConfigError."""
    known = {field.name for field in dataclasses.fields(RunConfig)}
    added = {"workers": 0}  # keys that older records lack and no number depends on
    plain = added | {key: value for key, value in settings.items() if key in known}
    return build(RunConfig, {**plain, "factors": dict(factors), "absent": dict(absent), "resolved": plain}, "")


def _leave_out(plain: dict[str, Any], overridden: Sequence[str]) -> dict[str, str]:
    """Remove the analyses that need what the data do not give; returns the reason for each.

    Nothing is removed if the command line names analyses itself, or if no analysis that reads the data would remain:
    the data are then the mistake, and a later check says so.
    """
    data = targeted(plain["data"], "data")
    analyses = {name: _analysis(node, f"analysis.{name}") for name, node in plain["analysis"].items()}
    absent = {name: reason for name, analysis in analyses.items() if (reason := _lacking(analysis, data))}
    reading = [name for name, analysis in analyses.items() if analysis.needs & set(_NEEDS) and name not in absent]
    named = [name for name in absent if any(key.startswith(f"analysis.{name}.") for key in overridden)]
    if not reading or named or "analysis" in overridden:
        return {}
    for name in absent:
        del plain["analysis"][name]
    return absent


def _lacking(analysis: Analysis, data: Any) -> str | None:
    """Why the analysis cannot use the data, as the end of a sentence; None if it can."""
    has_topics = getattr(data, "has_topics", _material(data) == "corpus")
    available = {_material(data), *(["topics"] if has_topics else [])}
    return next((_NEEDS[need] for need in _NEEDS if need in analysis.needs and need not in available), None)


def _add_companions(plain: dict[str, Any]) -> None:
    """Add the protocol's companions of the run's analyses, except those that need other data."""
    protocol, material = build(Protocol, plain["protocol"], "protocol"), _material(targeted(plain["data"], "data"))
    for name in tuple(plain["analysis"]):
        for title, node in protocol.companions.get(name, {}).items():
            needs = _analysis(node, f"protocol.companions.{name}.{title}").needs & set(_NEEDS)
            if needs <= {material}:
                plain["analysis"][title] = node
    for key in ("companions", "study"):  # not recorded; what they add to this run is
        plain["protocol"].pop(key, None)


def _material(data: Any) -> str:
    return "prompts" if hasattr(data, "prompts") else "corpus"


def outcome_names(analyses: Iterable[Analysis]) -> list[str]:
    """The metrics of these analyses by which a sweep's runs can be compared, each once."""
    per_run = [analysis for analysis in analyses if "series" not in analysis.needs]
    return list(dict.fromkeys(name for a in per_run for name, metric in a.metrics.items() if metric.outcome))


def _factors(
    plain: Mapping[str, Any], choices: Mapping[str, Any], overrides: Sequence[str], left_out: Sequence[str]
) -> dict[str, Scalar]:
    """A run's factors and their levels. An overridden key is one if its value is a scalar."""
    factors: dict[str, Scalar] = {name: str(choices[name]) for name in FACTORS if choices.get(name)}
    for key in (_key(override) for override in overrides if not override.startswith("~")):
        level = choices.get(key, plain)
        for part in key.split(".") if level is plain else ():
            level = level.get(part) if isinstance(level, Mapping) else None
        if not is_no_factor(key) and isinstance(level, Scalar):
            factors[key] = level
    if plain["model"].get("revision") is not None:
        factors["revision"] = str(plain["model"]["revision"])
    return {name: level for name, level in factors.items() if name not in left_out} | {"seed": plain["seed"]}


def is_no_factor(key: str) -> bool:
    """Whether runs are not compared by this key even if the command line gives it several values."""
    return key in NO_FACTORS or re.split("[./]", key)[0] in NO_FACTORS or key == "analysis"


def _key(override: str) -> str:
    """The key of an override as the command line gives it: `train.steps` of `++train.steps=300`."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, interpolations resolved, Hydra's own node left out."""
    try:
        without_hydra = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        return OmegaConf.to_container(without_hydra, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} is missing; set {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from error


def one_line(error: Exception) -> str:
    """The first line of an error of OmegaConf, with the key that caused it."""
    key = getattr(error, "full_key", None)
    return str(error).partition("\n")[0] + (f" (at {key})" if key else "")


def _run_name(*, _root_: DictConfig) -> str:
    return check(_root_, _root_.hydra.runtime.choices, _root_.hydra.overrides.task).name


OmegaConf.register_new_resolver("headdyn_run", _run_name, replace=True)
OmegaConf.register_new_resolver("headdyn_cache", lambda: str(cache_root()), replace=True)
