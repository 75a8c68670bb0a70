"""Typed settings: the `settings` decorator, and objects built from a configuration's plain values.

Every failure is one line that names the full key, its value and what it must be.
"""

import dataclasses
import difflib
import importlib
import json
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, TypeVar, cast

import pydantic
import pydantic.dataclasses
from pydantic_core import ErrorDetails

Cls = TypeVar("Cls")

# No settings class comes from these packages. They are refused by name, because importing them takes seconds.
_LIBRARIES = ("torch", "transformers", "datasets", "numpy", "scipy", "sklearn", "hydra", "omegaconf", "wandb")

_MOST = 2**31 - 1  # a larger number is a slip of the keyboard; a larger seed would not fit into tables
Natural = Annotated[int, pydantic.Field(ge=0, le=_MOST)]
Count = Annotated[int, pydantic.Field(ge=1, le=_MOST)]
Positive = Annotated[float, pydantic.Field(gt=0)]
Share = Annotated[float, pydantic.Field(ge=0, le=1)]

# Strict: "1" and true are no integers, but an integer is accepted as a float. NaN and infinity are refused.
_STRICT = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
_BOUNDS = {
    "greater_than_equal": "at least",
    "greater_than": "above",
    "less_than_equal": "at most",
    "less_than": "below",
}


class ConfigError(ValueError):
    """An invalid setting: the message gives its key, its value, and the fix."""


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[Cls]) -> type[Cls]:
    """Class decorator: a frozen, keyword-only dataclass whose values pydantic checks against their types.

    Bounds and choices are part of the types: `Annotated[int, Field(ge=1)]`, `Literal["z", "pattern"]`. `__post_init__`
    checks what types cannot express. It raises ValueError with the full key, its value, and the values allowed.
    """
    return cast(type[Cls], pydantic.dataclasses.dataclass(cls, config=_STRICT, frozen=True, kw_only=True))


def build(cls: type, node: Any, where: str) -> Any:
    """An instance of a dataclass from `node`, the plain values of the configuration's group `where`.

    Raises ConfigError for the first invalid value.
    """
    if not isinstance(node, dict):
        names = ", ".join(f.name for f in dataclasses.fields(cls))
        raise ConfigError(f"{where}={node!r} must be a group of settings: {names}")
    try:
        # JSON, because a strict check of Python values would refuse a list in place of a tuple.
        built = _adapter(cls).validate_json(json.dumps(node, default=str))
        if type(built) is not cls:  # of a plain dataclass pydantic makes another class, which cannot be unpickled
            built = cls(**{f.name: getattr(built, f.name) for f in dataclasses.fields(cls) if f.init})
        return built
    except pydantic.ValidationError as error:
        raise ConfigError(_first_problem(cls, node, where, error.errors())) from error
    except (Exception, SystemExit) as error:  # a user's class may raise anything
        raise ConfigError(f"{where} cannot be checked: {type(error).__name__}: {_one_line(error)}") from error


@cache
def _adapter(cls: Any) -> pydantic.TypeAdapter[Any]:
    if not pydantic.dataclasses.is_pydantic_dataclass(cls):  # a user's plain dataclass is checked as strictly
        cls = pydantic.dataclasses.dataclass(cls, config=_STRICT, frozen=cls.__dataclass_params__.frozen)
    return pydantic.TypeAdapter(cls)


def _first_problem(hint: Any, value: Any, where: str, errors: Sequence[ErrorDetails]) -> str:
    """The first error in one line. An unknown key comes before other errors, since a typo may have caused them."""
    error = next(filter(_is_unknown_key, errors), errors[0])
    kind, path = error["type"], _path_in(value, error["loc"])
    key, parent = _dotted(where, path), _dotted(where, path[:-1])
    if _is_unknown_key(error):
        return unknown_key(key, [_dotted(parent, [name]) for h in _types_at(hint, path[:-1]) for name in _names_in(h)])
    if kind == "value_error":  # from a __post_init__
        message = _one_line(error["ctx"]["error"])
        return message if key in message else f"{key}: {message}"
    for part in path:
        value = value[part]
    alike = [e for e in errors if e["loc"][: len(path)] == path]  # one from each member of a union
    if kind == "missing" and isinstance(value, list):
        return f"{key}={value} has {len(value)} entries, not {int(alike[-1]['loc'][-1]) + 1}"
    if kind == "too_long":
        return f"{key}={value} has {len(value)} entries, not {error['ctx']['max_length']}"
    if kind == "missing":
        key = _dotted(where, error["loc"])
        return f"{key} is missing; set {key}=..."
    must_be = [_must_be(e) for e in alike] + ["null"] * (type(None) in _types_at(hint, path))
    return f"{key}={value!r} must be {' or '.join(dict.fromkeys(must_be))}"


def _is_unknown_key(error: ErrorDetails) -> bool:
    return error["type"] == "unexpected_keyword_argument" or "[key]" in error["loc"]


def _must_be(error: ErrorDetails) -> str:
    if error["type"] in _BOUNDS:
        return f"{_BOUNDS[error['type']]} {next(iter(error['ctx'].values()))}"
    if error["type"] == "too_short":
        return f"a list of {error['ctx']['min_length']} or more"
    if error["type"] == "literal_error":
        return f"one of {error['ctx']['expected'].replace(' or ', ', ').replace(chr(39), '')}"
    return "a group of settings" if error["type"] == "dataclass_type" else error["msg"].removeprefix("Input should be ")


def _dotted(where: str, path: Sequence[int | str]) -> str:
    return (where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)).lstrip(".")


def _path_in(value: Any, location: Sequence[int | str]) -> tuple[int | str, ...]:
    """The part of an error's location that is a path into `value`; the other parts name members of a union."""
    path: list[int | str] = []
    for part in location:
        try:
            value = value[part]
        except (LookupError, TypeError):
            break
        path.append(part)
    return tuple(path)


def _types_at(hint: Any, path: Sequence[int | str]) -> tuple[Any, ...]:
    """The types allowed at a path below `hint`: the members of a union, or a single type."""
    for key in path:
        for member in _members(hint):
            if dataclasses.is_dataclass(member):
                hint = typing.get_type_hints(member).get(str(key))
            elif isinstance(key, str) and typing.get_origin(member) is Mapping:
                hint = typing.get_args(member)[1]
            elif typing.get_origin(member) is tuple and isinstance(key, int):
                inner = typing.get_args(member)
                hint = inner[0] if inner[-1] is ... else inner[key]
    return _members(hint)


def _names_in(hint: Any) -> list[str]:
    """The keys that a group of this type may have."""
    if dataclasses.is_dataclass(hint):
        return [f.name for f in dataclasses.fields(hint)]
    keys = _members(typing.get_args(hint)[0]) if typing.get_origin(hint) is Mapping else ()
    return [name for literal in keys for name in typing.get_args(literal)]


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The message for an unknown key: known keys that are spelt alike, and all known keys of the same group."""
    known = list(known)
    similar = difflib.get_close_matches(key, known, n=2)
    parent = key.rpartition(".")[0]
    group = [name for name in known if name.rpartition(".")[0] == parent] or [n for n in known if "." not in n]
    hint = f"did you mean {' or '.join(similar)}? " if similar else ""
    return f"unknown key {key}; {hint}There are {', '.join(group)}"


def targeted(node: Any, where: str) -> Any:
    """The object of the dataclass that a group names by `_target_`, built from the group's other keys.

    The class belongs to headdyn or to a package of the user; its module is imported. Raises ConfigError for a class
    of Python's standard library and for anything that is no dataclass.
    """
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise ConfigError(f"{where} needs a _target_: the dotted name of the class to use")
    target = node["_target_"]
    module, _, name = target.rpartition(".")
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names or package in _LIBRARIES:
        owner = f"{package}'s" if package in _LIBRARIES else "Python's"
        raise ConfigError(f"{where}._target_={target} is {owner} own; name a dataclass of headdyn or of your package")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        absent = isinstance(error, ModuleNotFoundError) and error.name == package
        fix = "; install it, or give the command in the folder that holds it" if absent else ""
        why = "" if isinstance(error, SystemExit) else _one_line(error)
        raise ConfigError(f"{where}._target_={target} cannot be imported: {why or repr(error)}{fix}") from error
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ConfigError(f"{where}._target_={target} is no dataclass; its settings must be a dataclass's fields")
    return build(cls, {key: value for key, value in node.items() if key != "_target_"}, where)
