"""Makes a checked RunConfig of Hydra's composed YAML, or of a run's record."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from headdyn.analysis.contract import Analysis
from headdyn.config import (
    NEEDS,
    TRAINING_GROUPS,
    Outcomes,
    Protocol,
    RunConfig,
    Scalar,
    analysis_of,
    lacking_of,
    material_of,
    model_of,
)
from headdyn.core.settings import ConfigError, build, targeted, unknown_key
from headdyn.core.store import cache_root
from headdyn.models.settings import MiniQwen3

# Groups whose option is always a factor. Any other key is a factor if the command overrides it, except NO_FACTORS.
FACTORS = ("model", "attention", "data", "data_ordering", "position_enc", "mode", "protocol", "experiment")
NO_FACTORS = (
    *("seed", "force", "device", "threads", "workers", "patterns_kept", "tracking", "study", "outcomes", "swept"),
    *("cluster", "local", "ordering", "hydra", "model.revision", "model.revisions", "model.kept"),
)
_PRIMARY = "selectivity"  # the primary outcome where neither the command nor a preset nor the data name one


def check(cfg: DictConfig, choices: Mapping[str, str | None], overrides: Sequence[str] = ()) -> RunConfig:
    """The checked settings of the run that a composed configuration describes. Raises ConfigError.

    `choices` are the options that Hydra chose for the groups, `overrides` those of the command line.
    """
    plain = {"analysis": {}, **_plain(cfg)}  # after analysis=[] the key is absent
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
    comes_trained = not isinstance(model_of(plain["model"]), MiniQwen3)
    for override in overrides if comes_trained else ():
        if _key(override).partition(".")[0] in TRAINING_GROUPS:
            raise ConfigError(
                f"{override} has no effect on model={choices['model']}, which comes trained; leave it out"
            )
    overridden, data = [_key(override) for override in overrides], targeted(plain["data"], "data")
    _add_companions(plain, material_of(data))
    absent = _leave_out(plain, data, overridden)
    possible = outcome_names(_analyses(plain).values())
    outcomes = build(Outcomes, plain.get("outcomes"), "outcomes")
    chosen = outcomes.primary is not None and "outcomes.primary" in overridden
    if not chosen and outcomes.primary not in possible:
        candidates = (getattr(data, "primary_outcome", None), _PRIMARY, *possible)
        plain["outcomes"]["primary"] = next((name for name in candidates if name in possible), None)
    factors = _factors(plain, choices, overrides, TRAINING_GROUPS if comes_trained else ())
    return build(RunConfig, {**plain, "factors": factors, "absent": absent, "resolved": plain}, "")


def from_record(settings: Mapping[str, Any], factors: Mapping[str, Scalar], absent: Mapping[str, str]) -> RunConfig:
    """The settings of a recorded run, from its manifest's `config`, `factors` and `absent`. Raises ConfigError."""
    known = {field.name for field in dataclasses.fields(RunConfig)}
    added = {"workers": 0}  # keys that older records lack, and on which no result depends
    plain = added | {key: value for key, value in settings.items() if key in known}
    return build(RunConfig, {**plain, "factors": dict(factors), "absent": dict(absent), "resolved": plain}, "")


def _leave_out(plain: dict[str, Any], data: Any, overridden: Sequence[str]) -> dict[str, str]:
    """Remove the analyses that need what the data do not give. Returns the reason for each, by name.

    Nothing is removed if the command line names analyses itself. Nor if no analysis that reads the data would remain:
    then the choice of data is the mistake, and a later check says so.
    """
    analyses = _analyses(plain)
    absent = {name: reason for name, analysis in analyses.items() if (reason := lacking_of(analysis, data))}
    remaining = [name for name, analysis in analyses.items() if analysis.needs & set(NEEDS) and name not in absent]
    named = [name for name in absent if any(key.startswith(f"analysis.{name}.") for key in overridden)]
    if not remaining or named or "analysis" in overridden:
        return {}
    for name in absent:
        del plain["analysis"][name]
    return absent


def _add_companions(plain: dict[str, Any], material: str) -> None:
    """Add the protocol's companions of the run's analyses, except those that need other data."""
    protocol = build(Protocol, plain["protocol"], "protocol")
    for name in tuple(plain["analysis"]):
        for title, node in protocol.companions.get(name, {}).items():
            needs = analysis_of(node, f"protocol.companions.{name}.{title}").needs & set(NEEDS)
            if needs <= {material}:
                plain["analysis"][title] = node
    for key in ("companions", "study"):  # only what they add to this run is recorded
        plain["protocol"].pop(key, None)


def _analyses(plain: Mapping[str, Any]) -> dict[str, Analysis]:
    return {name: analysis_of(node, f"analysis.{name}") for name, node in plain["analysis"].items()}


def outcome_names(analyses: Iterable[Analysis]) -> list[str]:
    """The metrics of these analyses by which a sweep's runs can be compared, each once."""
    per_run = [analysis for analysis in analyses if "series" not in analysis.needs]
    return list(dict.fromkeys(name for a in per_run for name, metric in a.metrics.items() if metric.outcome))


def _factors(
    plain: Mapping[str, Any], choices: Mapping[str, Any], overrides: Sequence[str], left_out: Sequence[str]
) -> dict[str, Scalar]:
    """A run's factors and their levels. An overridden key is a factor if its value is a scalar."""
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
        return {str(key): _container(cfg[key]) for key in cfg if key != "hydra"}
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} is missing; set {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from error


def _container(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True, throw_on_missing=True) if OmegaConf.is_config(node) else node


def one_line(error: Exception) -> str:
    """The first line of an error of OmegaConf, with the key that caused it."""
    key = getattr(error, "full_key", None)
    return str(error).partition("\n")[0] + (f" (at {key})" if key else "")


def _run_name(*, _root_: DictConfig) -> str:
    return check(_root_, _root_.hydra.runtime.choices, _root_.hydra.overrides.task).name


OmegaConf.register_new_resolver("headdyn_run", _run_name, replace=True)
OmegaConf.register_new_resolver("headdyn_cache", lambda: str(cache_root()), replace=True)
