"""Runs that may be compared: they differ in the factors and the seed alone.

Others are kept apart: every effect belongs to one such group, so that sweeps with other settings can be put side by
side but are never pooled.
"""

from __future__ import annotations

import json
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headdyn.core.run_folder import RunRecord
from headdyn.sweep.factors import FACTORS

# What two runs of one group may differ in: the factors' own settings, the seed, what changes no number's meaning, and
# which analyses ran, though not with what settings.
_NOT_COMPARED = (*FACTORS, "seed", "force", "device", "threads", "tracking", "patterns_kept", "analysis")
_OF_REVISIONS = ("model.revision", "model.revisions")  # checkpoints of one training belong together


@dataclass(frozen=True)
class Group:
    """Comparable runs. `differs` are the settings by which other groups differ from it; one group's name is ""."""

    name: str
    differs: Mapping[str, Any]
    runs: Sequence[RunRecord]


def comparable(runs: Sequence[RunRecord]) -> list[Group]:
    """Complete runs by group, in the order met.

    A group is named by the one choice (mode, protocol, model …) that tells it from the others, or else by a letter.
    """
    complete = [run for run in runs if run.status == "complete"]
    unlike = _unlike_analyses(complete)
    members: dict[str, list[RunRecord]] = {}
    for run in complete:
        members.setdefault(json.dumps(_settings(run, unlike), sort_keys=True), []).append(run)
    members = {key: part for whole in members.values() for key, part in _by_option_settings(whole, unlike).items()}
    settings = [json.loads(key) for key in members]
    every = dict.fromkeys(key for one in settings for key in one)
    differing = [key for key in every if len({json.dumps(one.get(key)) for one in settings}) > 1]
    telling = [
        key for key in differing if key.endswith(".name") and len({one.get(key) for one in settings}) == len(settings)
    ]
    found = []
    for number, (one, part) in enumerate(zip(settings, members.values(), strict=True)):
        name = str(one[telling[0]]) if telling else string.ascii_uppercase[number] if number < 26 else str(number + 1)
        # A mode acts through other groups, which are named themselves.
        differs = {
            key: one[key] for key in differing if key in one and (key == "mode.name" or not key.startswith("mode."))
        }
        found.append(Group(name if len(settings) > 1 else "", differs, part))
    return found


def _unlike_analyses(runs: Sequence[RunRecord]) -> set[str]:
    """The analyses whose settings differ between runs that have them: with another branch TensorLens is another map."""
    seen: dict[str, set[str]] = {}
    for run in runs:
        for name, settings in (run.manifest.get("config", {}).get("analysis") or {}).items():
            seen.setdefault(name, set()).add(json.dumps(settings, sort_keys=True))
    return {name for name, variants in seen.items() if len(variants) > 1}


def _settings(run: RunRecord, unlike: Collection[str] = ()) -> dict[str, Any]:
    """What runs of one group have in common; of the analyses, which may differ, the settings of those named."""
    whole = run.manifest.get("config", {})
    config = {key: value for key, value in whole.items() if key not in _NOT_COMPARED}
    analyses = whole.get("analysis") or {}
    config["analysis"] = {name: analyses.get(name) for name in sorted(unlike)}
    return {key: value for key, value in flat(config).items() if not key.endswith(".seed") and key not in _OF_REVISIONS}


def _by_option_settings(runs: Sequence[RunRecord], unlike: Collection[str]) -> dict[str, list[RunRecord]]:
    """Runs of equal settings by those settings, with a factor's own beside them where one option has several variants.

    `attention=gqa attention.num_kv_heads=1` and `=2` are not two seeds of one condition.
    """
    own = {(run.folder, f): flat({f: run.manifest.get("config", {}).get(f) or {}}) for run in runs for f in FACTORS}
    variants: dict[tuple[str, Any], set[str]] = {}
    for run in runs:
        for factor in FACTORS:
            option = (factor, run.factors.get(factor))
            variants.setdefault(option, set()).add(json.dumps(own[run.folder, factor], sort_keys=True))
    parts: dict[str, list[RunRecord]] = {}
    for run in runs:
        settings = _settings(run, unlike)
        for factor in FACTORS:
            if len(variants[factor, run.factors.get(factor)]) > 1:
                settings |= own[run.folder, factor]
        parts.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    return parts


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys."""
    out: dict[str, Any] = {}
    for key, value in node.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out
