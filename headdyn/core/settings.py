"""Typed settings from plain values: dataclasses checked key by key, classes named by `_target_`.

Every failure names the full key, the value and the fix. Nothing heavy is imported: a class that would pull torch is
checked by its source.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import importlib.util
import os
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beartype.door import is_bearable


class ConfigError(ValueError):
    """A setting that cannot be: the message says which, what it is, and how to mend it."""


@dataclass(frozen=True, kw_only=True)
class AnalysisChoice:
    """One conf/analysis option: the class to call and its checked settings."""

    target: str
    settings: Mapping[str, Any]
    needs: frozenset[str]  # what its class says it must be given: corpus, prompts, series


def vector_figures() -> str | None:
    """The format in which figures are also written beside their PNG: HEADDYN_FIGURES, pdf or svg; None is neither.

    No setting of a run: nothing it computes depends on it. Off by default, since each takes 0.04 to 0.26 s to write.
    """
    kind = os.environ.get("HEADDYN_FIGURES") or None
    if kind not in (None, "pdf", "svg"):
        raise ConfigError(f"HEADDYN_FIGURES={kind} is unknown; it is pdf or svg")
    return kind


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
            values[name] = checked_value(hints[name], node[name], f"{where}.{name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}.{name} is missing; set {where}.{name}=...")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(str(error) if where in str(error) else f"{where}: {error}") from error


def checked_value(hint: Any, value: Any, key: str) -> Any:
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
            return tuple(checked_value(h, v, f"{key}[{i}]") for i, (h, v) in enumerate(zip(hints, value, strict=True)))
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


def targeted(node: Any, where: str) -> Any:
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


def analysis_choice(node: Any, where: str) -> AnalysisChoice:
    """Check an analysis's settings without importing its module, which would pull torch."""
    if isinstance(node, dict) and "_target_" not in node:
        name = where.rpartition(".")[2]
        raise ConfigError(
            f"{where} has settings ({', '.join(node)}), but {name} is not among the analyses to run; add it to "
            f"analysis=[...], or take its settings away with ~{where}"
        )
    target, settings = _split_target(node, where)
    cls = settings_class(target, where)
    checked = build(cls, settings, where)
    return AnalysisChoice(
        target=target,
        settings={f.name: getattr(checked, f.name) for f in dataclasses.fields(checked)},
        needs=getattr(cls, "needs", frozenset()),
    )


def settings_class(target: str, where: str) -> type:
    """The settings part of a dataclass, read from its source: fields, `needs` and `__post_init__`, nothing imported.

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
        if isinstance(node, ast.AnnAssign) and "ClassVar" in ast.unparse(node.annotation):
            if ast.unparse(node.target) == "needs" and node.value is not None:
                body += ast.parse(f"needs = {ast.unparse(node.value)}").body
        elif isinstance(node, ast.AnnAssign) or (isinstance(node, ast.FunctionDef) and node.name == "__post_init__"):
            body.append(node)
    found[0].body = body or [ast.Pass()]
    found[0].bases, found[0].decorator_list = [], []
    namespace: dict[str, Any] = {"__name__": "headdyn.core.settings"}
    exec(compile(ast.Module(body=[*found], type_ignores=[]), spec.origin, "exec", dont_inherit=True), namespace)
    return dataclass(frozen=True, kw_only=True)(namespace[name])
