"""Runs that may be compared: they differ in the factors and the seed alone.

Others are kept apart: every effect belongs to one such group, so that sweeps with other settings can be put side by
side but are never pooled.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headdyn.core.run_folder import RunRecord
from headdyn.sweep.factors import factor_names, level_of

# What two runs of one group may differ in: what changes no number's meaning, and which analyses ran, though not with
# what settings. Checkpoints of one training belong together.
_NOT_COMPARED = (
    "seed",
    "force",
    "device",
    "threads",
    "tracking",
    "patterns_kept",
    "outcomes",
    "study",
    "swept",
    "analysis",
)
_OF_REVISIONS = ("model.revision", "model.revisions")

Settings = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """Comparable runs. `differs` are the settings by which other groups differ from it; one group's name is ""."""

    name: str
    differs: Mapping[str, Any]
    runs: Sequence[RunRecord]


def comparable(runs: Iterable[RunRecord], swept: Iterable[str] = ()) -> list[Group]:
    """Complete runs by group, in the order met; `swept` are the keys that a command varied, which are factors then.

    A group is named by the settings that tell it from the others: by a choice alone (`smoke`) where one tells all
    groups apart, else by the fewest keys (`train.steps=200`).
    """
    complete = [run for run in runs if run.status == "complete"]
    factors = factor_names(swept)
    flattened = [flat(run.manifest.get("config", {})) for run in complete]
    shared = _shared_keys(complete, flattened, factors)
    members: dict[str, list[RunRecord]] = {}
    for part in _parted(list(zip(complete, flattened, strict=True)), shared):
        keys = [*shared, *_variant_keys(part, factors)]
        for run, settings in part:
            compared = {key: settings[key] for key in keys if key in settings}
            members.setdefault(json.dumps(compared, sort_keys=True), []).append(run)
    of_group: list[Settings] = [json.loads(key) for key in members]
    every = dict.fromkeys(key for compared in of_group for key in compared)
    # A mode acts through other groups, which are named themselves.
    differing = [k for k in every if (k == "mode.name" or not k.startswith("mode.")) and _distinct(of_group, [k]) > 1]
    return [
        Group(name, {key: compared[key] for key in differing if key in compared}, part)
        for name, compared, part in zip(_names(of_group, differing), of_group, members.values(), strict=True)
    ]


def _shared_keys(runs: Sequence[RunRecord], flattened: Sequence[Settings], factors: Sequence[str]) -> list[str]:
    """The settings in which all runs of a group agree: no factor's, and only those of analyses that differ at all."""
    shared = []
    for key in dict.fromkeys(key for settings in flattened for key in settings):
        top = key.partition(".")[0]
        if key in factors or top in factors or top in _NOT_COMPARED or key in _OF_REVISIONS or key.endswith(".seed"):
            continue
        values = [json.dumps(settings.get(key)) for settings in flattened]
        if len(set(values)) > 1 and values == [json.dumps(run.factors.get("seed")) for run in runs]:
            continue  # it follows the seed
        by_mode = {(run.factors.get("mode"), value) for run, value in zip(runs, values, strict=True)}
        if "mode" in factors and len(by_mode) == len({mode for mode, _ in by_mode}):
            continue  # it follows from the mode
        shared.append(key)
    return [*shared, *_unlike_analyses(flattened, factors)]


def _unlike_analyses(flattened: Sequence[Settings], factors: Sequence[str]) -> list[str]:
    """All settings of the analyses whose settings differ between the runs that have them.

    With another `branch` TensorLens is another map: its numbers are not to be pooled.
    """
    of_analysis: dict[str, list[Settings]] = {}
    for settings in flattened:
        own: dict[str, Settings] = {}
        for key, value in settings.items():
            if key.startswith("analysis.") and key not in factors:
                own.setdefault(key.split(".")[1], {})[key] = value
        for name, part in own.items():
            of_analysis.setdefault(name, []).append(part)
    unlike = [parts for parts in of_analysis.values() if len({json.dumps(part, sort_keys=True) for part in parts}) > 1]
    return list(dict.fromkeys(key for parts in unlike for part in parts for key in part))


def _parted(runs: Sequence[tuple[RunRecord, Settings]], keys: Sequence[str]) -> list[list[tuple[RunRecord, Settings]]]:
    """The runs by their values of the settings named."""
    parts: dict[str, list[tuple[RunRecord, Settings]]] = {}
    for run, settings in runs:
        values = {key: settings[key] for key in keys if key in settings}
        parts.setdefault(json.dumps(values, sort_keys=True), []).append((run, settings))
    return list(parts.values())


def _variant_keys(part: Sequence[tuple[RunRecord, Settings]], factors: Sequence[str]) -> list[str]:
    """The settings of factors whose one option occurs with several: `attention=gqa` with one K/V head and with two."""
    keys = []
    for factor in factors:
        variants: dict[Any, set[str]] = {}
        own = [key for key in dict.fromkeys(k for _, s in part for k in s) if key.startswith(f"{factor}.")]
        own = [key for key in own if key not in factors and not key.endswith(".seed") and key not in _OF_REVISIONS]
        for run, settings in part:
            variants.setdefault(level_of(run, factor), set()).add(json.dumps([settings.get(key) for key in own]))
        if any(len(several) > 1 for several in variants.values()):
            keys += own
    return keys


def _distinct(settings: Sequence[Settings], keys: Sequence[str]) -> int:
    return len({json.dumps([[key in one, one.get(key)] for key in keys]) for one in settings})


def _names(settings: Sequence[Settings], differing: Sequence[str]) -> list[str]:
    if len(settings) < 2:
        return [""] * len(settings)
    telling = [key for key in differing if key.endswith(".name") and _distinct(settings, [key]) == len(settings)]
    if telling:
        return [str(one.get(telling[0])) for one in settings]
    chosen: list[str] = []  # at every turn the key that tells most groups apart
    while _distinct(settings, chosen) < len(settings):
        chosen.append(max(differing, key=lambda key: _distinct(settings, [*chosen, key])))
    return [", ".join(_spelled(key, one) for key in chosen) for one in settings]


def _spelled(key: str, settings: Settings) -> str:
    name = key.removesuffix(".name")
    if key not in settings:
        return f"no {name}"
    value = settings[key]
    return f"{name}={'null' if value is None else str(value).lower() if isinstance(value, bool) else value}"


def flat(node: Mapping[str, Any], prefix: str = "") -> Settings:
    """Nested settings under dotted keys."""
    settings: Settings = {}
    for key, value in node.items():
        settings |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return settings
