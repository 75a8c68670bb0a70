"""The key reference: every configuration key with type and range, default, and meaning.

Types and ranges are those of the settings' classes, by which a command is checked; defaults are those of the YAML in
conf/; meanings are the comments there. A key that takes its value from another (`${mode.train.steps}`) and has no
comment of its own shares that one's meaning, and the other way round.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from headdyn.composition import CONF, composing
from headdyn.config import MODEL_KINDS, RunConfig

# The groups of conf/ that the reference goes through option by option; analysis, cluster and the analyses that an
# experiment brings with it are read in other ways.
GROUPS = ("mode", "protocol", "model", "attention", "data", "data_ordering", "position_enc", "train", "tracking")
_NO_OPTIONS = ("analysis/all", "analysis/all_prompts")  # lists of analyses
_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
_EVERYWHERE = {
    "name": "the option's name in records",
    "_target_": "dotted name of the class with these settings, in headdyn or in your own package",
    "defaults": "the options that this one stands for",
}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "of length ≥", "max_length": "of length ≤"}

Composer = Callable[[Sequence[str]], DictConfig]  # from a job's overrides to its configuration


@dataclass(frozen=True)
class Key:
    """One row of the reference; `default` is as the YAML has it, interpolations unresolved."""

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """The keys of one class of settings, and the options that are of it, each with its YAML's first comment.

    `sources` are the keys that keys take their values from, in any of the options.
    """

    title: str
    options: Mapping[str, str]
    keys: tuple[Key, ...]
    sources: Mapping[str, str]


@cache
def sections() -> list[Section]:
    """Every group's keys, option by option. Options with the same keys share a section, with the first's defaults."""
    groups: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, str]]] = []
    with composing([]) as compose_job:
        nodes = [(group, option, *_composed(group, option, compose_job)) for group, option in _options()]
    for group, option, node, prefix in nodes:
        cls = _class(node, prefix)
        about = _about(group, option, cls)
        leaves = dict(_leaves(node, prefix))
        same = next((entry for entry in groups if entry[1] is cls and set(entry[3]) == set(leaves)), None)
        sources = {name: source for name, value in leaves.items() if (source := _source(value))}
        if same is not None and group != "analysis":
            same[2][option] = about
            same[4].update({**sources, **same[4]})
        else:
            groups.append((group, cls, {option: about}, leaves, sources))
    result = []
    for group, cls, options, leaves, sources in groups:
        meanings = {
            **_meanings(group, *(file.stem for file in sorted((CONF / group).glob("*.yaml")))),
            **_meanings(group, *options),
        }
        keys = [Key(n, _type_at(cls, n, leaves), _spelled(v), _meaning(n, meanings)) for n, v in leaves.items()]
        title = f"{group}={next(iter(options))}" if group else "The run itself"
        result.append(Section(title, {name: about for name, about in options.items() if name}, tuple(keys), sources))
    for _ in range(2):  # twice, since a key may take its value from one that takes it from a third
        result = _with_shared_meanings(result)
    return result


def _meanings(group: str, *options: str) -> dict[str, str]:
    """The comments in the YAML files of a group's options, by full key; the first option with a comment counts."""
    if not group:
        return comments(CONF / "config.yaml")
    meanings: dict[str, str] = {}
    for option in options:
        prefix = {"cluster": "", "experiment": "", "analysis": f"analysis.{option}."}.get(group, f"{group}.")
        for key, comment in comments(CONF / group / f"{option}.yaml").items():
            meanings.setdefault(prefix + key, comment)
    return meanings


def _meaning(key: str, meanings: Mapping[str, str]) -> str:
    """The key's own comment, that of the group which it belongs to, or what its name means everywhere."""
    parent = key.rpartition(".")[0]
    return meanings.get(key) or meanings.get(parent) or _EVERYWHERE.get(key.split(".")[-1], "")


def _with_shared_meanings(unshared: list[Section]) -> list[Section]:
    """The sections, in which a key and the key that takes its value from it share type and meaning."""
    readers: dict[str, Key] = {}
    for section in unshared:
        for key in section.keys:
            if key.name in section.sources and key.meaning:
                readers.setdefault(section.sources[key.name], key)
    every = {key.name: key for section in unshared for key in section.keys}

    def shared(key: Key, source: str | None) -> Key:
        reader = readers.get(key.name)
        if reader is not None and key.name.startswith(("mode.", "protocol.")):
            meaning = (
                reader.meaning if reader.meaning.startswith("sets ") else f"sets `{reader.name}`: {reader.meaning}"
            )
            return dataclasses.replace(key, type=reader.type, meaning=key.meaning or meaning)
        if source and not key.meaning:
            return dataclasses.replace(key, meaning=every[source].meaning)
        return key

    return [
        dataclasses.replace(section, keys=tuple(shared(key, section.sources.get(key.name)) for key in section.keys))
        for section in unshared
    ]


def _source(value: Any) -> str | None:
    """The key that a raw value is taken from."""
    match = re.fullmatch(r"\$\{(?:oc\.select:)?([\w.]+)(?:,.*)?\}", str(value))
    return match[1] if match else None


def reference() -> str:
    """The page, in Markdown."""
    lines = [
        "# Configuration keys",
        "",
        "A key is set on the command line, as in `train.steps=300`. With `-m` it may get several values, by which the",
        "runs are then compared. A default such as `${mode.train.steps}` is the value of that other key. With",
        "`--cfg job` behind it, a command prints all of its keys with their values. This page is generated from the",
        "settings' types and the comments in `conf/`.",
    ]
    for section in sections():
        lines += ["", f"## {section.title}", ""]
        lines += [f"- `{name}`: {about}" if about else f"- `{name}`" for name, about in section.options.items()]
        lines += ["", "| key | type and range | default | meaning |", "|---|---|---|---|"]
        lines += [f"| `{k.name}` | {_cell(k.type)} | {_code(k.default)} | {_cell(k.meaning)} |" for k in section.keys]
    return "\n".join(lines) + "\n"


def _options() -> Iterator[tuple[str, str]]:
    """Every group and option, a group's default first."""
    yield "", ""
    defaults = typing.cast(DictConfig, OmegaConf.load(CONF / "config.yaml")).defaults
    usual = [f"{group}/{option}" for entry in defaults if OmegaConf.is_dict(entry) for group, option in entry.items()]
    for group in (*GROUPS, "analysis", "cluster"):
        files = sorted(
            (file.stem for file in (CONF / group).glob("*.yaml")), key=lambda n: (f"{group}/{n}" not in usual, n)
        )
        yield from ((group, name) for name in files if f"{group}/{name}" not in _NO_OPTIONS)
    yield from (("experiment", file.stem) for file in sorted((CONF / "experiment").glob("*.yaml")) if _brought(file))


def _brought(file: Path) -> dict[str, Any]:
    """The analyses that only this experiment has, by name: those whose class it names."""
    analyses = typing.cast(DictConfig, OmegaConf.load(file)).get("analysis") or {}
    return {name: settings for name, settings in analyses.items() if "_target_" in (settings or {})}


def _composed(group: str, option: str, compose_job: Composer) -> tuple[DictConfig, str]:
    """The group's own node with this option, interpolations unresolved, and the key that leads to it."""
    if group == "cluster":  # Hydra's launchers need their plugins to be composed; the file itself says what it sets
        return typing.cast(DictConfig, OmegaConf.load(CONF / group / f"{option}.yaml")), ""
    if group == "experiment":
        return OmegaConf.create(_brought(CONF / group / f"{option}.yaml")), "analysis"
    overrides = [f"analysis=[{option}]"] if group == "analysis" else [f"{group}={option}"] if group else []
    cfg = compose_job(overrides)
    if not group:
        top = {key: cfg._get_node(key) for key in cfg if key not in (*GROUPS, "analysis", "hydra")}
        return OmegaConf.create(
            {key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v._value() for key, v in top.items()}
        ), ""
    prefix = f"analysis.{option}" if group == "analysis" else group
    return typing.cast(DictConfig, OmegaConf.select(cfg, prefix)), prefix


def _leaves(node: DictConfig, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every key below a node with its raw value; an empty group is a key too."""
    plain = OmegaConf.to_container(node, resolve=False)

    def below(value: Any, name: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from below(inner, f"{name}.{key}".lstrip("."))
        else:
            yield name, value

    yield from below(plain, prefix)


def _class(node: DictConfig, prefix: str) -> Any:
    """The class that checks a group's settings; None for Hydra's own."""
    plain = typing.cast(dict[str, Any], OmegaConf.to_container(node, resolve=False))
    if "_target_" in plain:
        return _imported(plain["_target_"])
    if prefix == "model":
        return MODEL_KINDS[plain["kind"]]
    if prefix:
        return typing.get_type_hints(RunConfig, include_extras=True)[prefix]
    return None if "hydra" in plain or "defaults" in plain else RunConfig


def _type_at(cls: Any, key: str, leaves: Mapping[str, Any]) -> str:
    """The type of a dotted key's value, in words: of the class that `_target_` beside or above the key names, or `cls`.

    What Hydra's launchers read is of the type that its YAML has.
    """
    if cls is None:
        return f"{_WORDS.get(type(leaves[key]), 'list of options')}, checked by the launcher"
    path = key.split(".")
    if path[-1] == "_target_":
        return "dotted name of a dataclass"
    above = [cut for cut in range(1, len(path)) if ".".join((*path[:cut], "_target_")) in leaves]
    hint: Any = cls
    if above:
        hint = _imported(leaves[".".join((*path[: above[-1]], "_target_"))])
        path = path[above[-1] :]
    elif cls is not RunConfig:
        path = path[1:]
    for part in path:
        for member in _members(hint):
            if dataclasses.is_dataclass(member):
                hint = typing.get_type_hints(member, include_extras=True).get(part)
                break
            if typing.get_origin(member) is Mapping:
                hint = typing.get_args(member)[1]
                break
    return _words(hint)


def _imported(target: str) -> Any:
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _members(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _words(hint: Any) -> str:
    """A type in words: `whole number ≥ 1`, `one of auto, cpu`, `list of numbers`, with ` or null`."""
    if typing.get_origin(hint) is typing.Annotated:
        inner, *facts = typing.get_args(hint)
        facts = [fact for given in facts for fact in getattr(given, "metadata", [given])]
        bounds = [f"{sign} {getattr(f, name)}" for f in facts for name, sign in _BOUNDS.items() if hasattr(f, name)]
        return ", ".join([" ".join([_words(inner), *bounds[:1]]), *bounds[1:]])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_words, typing.get_args(hint))))
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        inner = [arg for arg in typing.get_args(hint) if arg is not ...]
        return (
            f"list of {_words(inner[0])}"
            if ... in typing.get_args(hint)
            else f"list of {len(inner)}: {_words(inner[0])}"
        )
    if typing.get_origin(hint) is Mapping or dataclasses.is_dataclass(hint):
        return "group of settings"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _about(group: str, option: str, cls: Any) -> str:
    """The comment at the head of an option's YAML, or the first paragraph of its class's docstring."""
    if not option:
        return ""
    lines = (CONF / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines()
    head = []
    for line in lines:
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            head.append(line.lstrip("# "))
    if head:
        return " ".join(head)
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split()) if cls not in (None, RunConfig) else ""


_LINE = re.compile(r"^( *)(?:- )?([\w.]+):(?: +([^#]*?))?(?: *# (.*))?$")


def comments(file: Path) -> dict[str, str]:
    """The comments on the keys of a YAML file, by dotted key: the comment behind a key, or the lines above it."""
    by_key: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    above: list[str] = []
    begun = False
    for line in file.read_text(encoding="utf-8").splitlines():
        match = _LINE.match(line)
        if line.lstrip().startswith("#"):
            if begun:
                above.append(line.lstrip("# "))
            continue
        if match:
            begun = True
            indent, key = len(match[1]), match[2]
            stack = [*(entry for entry in stack if entry[0] < indent), (indent, key)]
            comment = match[4] or " ".join(above)
            if comment:
                by_key[".".join(name for _, name in stack)] = comment
        above = []
    return by_key


def _spelled(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "" if value == "???" else str(value)


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else "required"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
