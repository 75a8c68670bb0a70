"""Groups of comparable runs, which differ in the factors and the seed alone.

Every effect belongs to one group: sweeps with different settings can be shown side by side, but are never pooled.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headdyn.core.run_folder import RunRecord
from headdyn.sweep.factors import factor_names, level_of

# Settings in which runs of one group may differ, because they do not change the meaning of a number. Runs may also have
# different analyses, but not the same analysis with different settings.
_NOT_COMPARED = (
    *("seed", "force", "device", "threads", "tracking", "patterns_kept"),
    *("outcomes", "study", "swept", "analysis"),
)
_OF_REVISIONS = ("model.revision", "model.revisions")

Settings = dict[str, Any]
Run = tuple[RunRecord, Settings]


@dataclass(frozen=True)
class Group:
    """Comparable runs. `differs` are the settings by which groups differ; a single group has the name ""."""

    name: str
    differs: Mapping[str, Any]
    runs: Sequence[RunRecord]

    @property
    def spelled(self) -> str:
        """`differs` as in a command: `mode=smoke, train.steps=120`."""
        return ", ".join(_spelled(key, self.differs) for key in self.differs)


def comparable(runs: Iterable[RunRecord], swept: Iterable[str] = ()) -> list[Group]:
    """The groups of complete runs, in the order of the runs; the keys `swept`, which a command varied, are factors.

    A group's name is one choice (`smoke`) if all groups differ in it, else as few keys as suffice (`train.steps=200`).
    """
    factors = factor_names(swept)
    complete = [(run, flat(run.manifest.get("config", {}))) for run in runs if run.status == "complete"]
    shared = _shared_keys(complete, factors)
    members: dict[str, list[Run]] = {}
    for part in _parted(complete, shared).values():
        members |= _parted(part, [*shared, *_variant_keys(part, factors)])
    compared: list[Settings] = [json.loads(key) for key in members]
    # Of a mode only the name is compared: the settings that the mode chooses are compared directly.
    differing = [
        key
        for key in dict.fromkeys(key for one in compared for key in one)
        if (key == "mode.name" or not key.startswith("mode.")) and _distinct(compared, [key]) > 1
    ]
    return [
        Group(name, {key: one[key] for key in differing if key in one}, [run for run, _ in part])
        for name, one, part in zip(_names(compared, differing), compared, members.values(), strict=True)
    ]


def _shared_keys(runs: Sequence[Run], factors: Sequence[str]) -> list[str]:
    """The settings in which all runs of a group agree, apart from those of factors and analyses."""
    shared = []
    for key in dict.fromkeys(key for _, settings in runs for key in settings):
        top = key.partition(".")[0]
        if {key, top} & {*factors, *_NOT_COMPARED, *_OF_REVISIONS} or key.endswith(".seed"):
            continue
        values = [json.dumps(settings.get(key)) for _, settings in runs]
        if len(set(values)) > 1 and values == [json.dumps(run.factors.get("seed")) for run, _ in runs]:
            continue  # the setting has the value of `seed`
        by_mode = {(run.factors.get("mode"), value) for (run, _), value in zip(runs, values, strict=True)}
        if "mode" not in factors or len(by_mode) > len({mode for mode, _ in by_mode}):  # else the mode determines it
            shared.append(key)
    return shared


def _variant_keys(part: Sequence[Run], factors: Sequence[str]) -> list[str]:
    """The settings of each factor's option, or analysis, whose settings differ between the runs that have it.

    For example, `attention=gqa` with one key/value head and with two are two conditions, and TensorLens with another
    `branch` computes another map.
    """
    present = dict.fromkeys(key for _, settings in part for key in settings)
    analyses = dict.fromkeys(".".join(key.split(".")[:2]) for key in present if key.startswith("analysis."))
    keys: list[str] = []
    for owner in (*factors, *analyses):
        own = [key for key in present if key.startswith(f"{owner}.") and not key.endswith(".seed")]
        own = [key for key in own if key not in (*factors, *_OF_REVISIONS)]
        variants: dict[Any, set[str]] = {}
        for run, settings in part:
            if not settings.keys().isdisjoint(own):
                values = json.dumps([settings.get(key) for key in own])
                variants.setdefault(owner in analyses or level_of(run, owner), set()).add(values)
        if any(len(several) > 1 for several in variants.values()):
            keys += own
    return keys


def _parted(runs: Sequence[Run], keys: Sequence[str]) -> dict[str, list[Run]]:
    """The runs by their values of these settings, as JSON."""
    parts: dict[str, list[Run]] = {}
    for run, settings in runs:
        values = json.dumps({key: settings[key] for key in keys if key in settings}, sort_keys=True)
        parts.setdefault(values, []).append((run, settings))
    return parts


def _distinct(settings: Sequence[Settings], keys: Sequence[str]) -> int:
    return len({json.dumps([[key in one, one.get(key)] for key in keys]) for one in settings})


def _names(settings: Sequence[Settings], differing: Sequence[str]) -> list[str]:
    if len(settings) < 2:
        return [""] * len(settings)
    choices = [key for key in differing if key.endswith(".name") and _distinct(settings, [key]) == len(settings)]
    if choices:
        return [str(one.get(choices[0])) for one in settings]
    chosen: list[str] = []  # each time the key that distinguishes most groups
    while _distinct(settings, chosen) < len(settings):
        chosen.append(max(differing, key=lambda key: _distinct(settings, [*chosen, key])))
    return [", ".join(_spelled(key, one) for key in chosen) for one in settings]


def _spelled(key: str, settings: Mapping[str, Any]) -> str:
    name = key.removesuffix(".name")
    if key not in settings:
        return f"no {name}"
    value = settings[key]
    return f"{name}={'null' if value is None else str(value).lower() if isinstance(value, bool) else value}"


def flat(node: Mapping[str, Any], prefix: str = "") -> Settings:
    """Nested settings as a flat mapping with dotted keys."""
    settings: Settings = {}
    for key, value in node.items():
        settings |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return settings
