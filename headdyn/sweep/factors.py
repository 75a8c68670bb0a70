"""The factors of a sweep, their levels in order, and their names.

A factor is one of the choices attention, data_ordering and position_enc, or any key that a sweep's command varies. A
key that differs only between merged sweeps is no factor; it puts their runs into different groups (groups.py). Seeds
repeat a condition, checkpoints (revisions) belong to one training, and a protocol changes what a number means, so none
of these is a factor.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from headdyn.core.run_folder import RunRecord


@dataclass(frozen=True)
class Choice:
    """A configuration group that is always a factor: the question about it, and its options' labels, from low to high.

    If a sweep has both options of `pair`, effects of other factors are averaged over these two; further options are
    control arms. `effect` is the name of the difference between the two.
    """

    question: str
    options: Mapping[str, str]
    pair: tuple[str, str]
    effect: str


_POSITIONS = {"rope": "RoPE", "rope_control": "RoPE-control", "drope": "DroPE", "nope": "NoPE"}
_ORDERS = {"shuffled": "shuffled", "topic": "topic"}
CHOICES: Mapping[str, Choice] = {
    "data_ordering": Choice("Does the order of the data matter?", _ORDERS, ("shuffled", "topic"), "topic order"),
    "attention": Choice("Do grouped queries (GQA) matter?", {"mha": "MHA", "gqa": "GQA"}, ("mha", "gqa"), "GQA"),
    "position_enc": Choice("Does dropping positions (DroPE) matter?", _POSITIONS, ("rope", "drope"), "DroPE"),
}

NEVER = ("seed", "revision", "experiment", "protocol", "study")
LOG_SPAN = 4.0  # positive levels with a larger ratio are used on a log scale


@dataclass(frozen=True)
class Contrast:
    """The weights of a factor's levels in one comparison of them: −1 and +1 for a pair.

    For a slope they are those of least squares, against the level or log2 of it (`against`).
    """

    factor: str
    weights: Mapping[Any, float]
    against: str = ""

    @property
    def levels(self) -> list[Any]:
        return list(self.weights)


@dataclass(frozen=True)
class Factor:
    """A key that varies, with its levels from low to high; effects of other factors are averaged over `averaged`."""

    name: str
    levels: Sequence[Any]
    averaged: Sequence[Any]

    def pairs(self) -> list[Contrast]:
        """Every two levels, high less low."""
        return [Contrast(self.name, {low: -1.0, high: 1.0}) for low, high in combinations(self.levels, 2)]

    def slope(self) -> list[Contrast]:
        """The slope over three or more numeric levels, per unit, or per doubling if they span more than LOG_SPAN."""
        if len(self.levels) < 3 or not _are_numbers(self.levels):
            return []
        doubling = min(self.levels) > 0 and max(self.levels) / min(self.levels) > LOG_SPAN
        x = np.log2(self.levels) if doubling else np.array(self.levels, dtype=float)
        x = x - x.mean()
        weights = dict(zip(self.levels, (x / (x**2).sum()).tolist(), strict=True))
        return [Contrast(self.name, weights, "log2(level)" if doubling else "level")]

    def interacting(self) -> list[Contrast]:
        """The contrasts that enter interactions: the slope of three or more numeric levels, else all pairs."""
        return self.slope() or self.pairs()


def factors_of(runs: Sequence[RunRecord], names: Iterable[str]) -> list[Factor]:
    """The named factors of which the runs have two or more levels."""
    factors = []
    for name in names:
        levels = ordered(name, [level for run in runs if (level := level_of(run, name)) is not MISSING])
        if len(levels) > 1:
            choice = CHOICES.get(name)
            pair = choice.pair if choice and set(choice.pair) <= set(levels) else levels
            factors.append(Factor(name, levels, pair))
    return factors


def factor_names(swept: Iterable[str]) -> list[str]:
    """The keys that are factors if a command sweeps these keys."""
    return [*CHOICES, *(name for name in dict.fromkeys(swept) if name not in CHOICES and name not in NEVER)]


def varying(factors: Sequence[Mapping[str, Any]], names: Iterable[str] | None = None) -> list[str]:
    """The keys, of `names` or of all, in which these jobs differ; those of one command's jobs were swept."""
    chosen = dict.fromkeys(name for levels in factors for name in levels) if names is None else names
    return [name for name in chosen if len({str(levels.get(name)) for levels in factors}) > 1]


MISSING = object()


def level_of(run: RunRecord, name: str) -> Any:
    """A run's level of a factor, from its factors or else from its settings; MISSING if it has none."""
    node: Any = run.factors.get(name, MISSING)
    if node is MISSING:
        node = run.manifest.get("config", {})
        for part in name.split("."):
            node = node.get(part, MISSING) if isinstance(node, Mapping) else MISSING
    return str(node) if isinstance(node, Mapping | list) else node


def ordered(name: str, levels: Collection[Any]) -> list[Any]:
    """Distinct levels from low to high: numbers by size, known options in the order of CHOICES, others as they come."""
    distinct = list(dict.fromkeys(levels))
    if _are_numbers(distinct):
        return sorted(distinct)
    option_order = list(CHOICES[name].options) if name in CHOICES else []
    return sorted(distinct, key=lambda level: option_order.index(level) if level in option_order else math.inf)


def _are_numbers(levels: Collection[Any]) -> bool:
    return all(isinstance(level, int | float) and not isinstance(level, bool) for level in levels)


def level_label(name: str, level: Any) -> str:
    """The label of a level: `MHA`, `layers 1`, `muon lr 0.02`, `s3`."""
    if name == "seed":
        return f"s{level}"
    if name in CHOICES:
        return CHOICES[name].options.get(str(level), str(level))
    return f"{short_name(name)} {level}" if "." in name else str(level)


def short_name(name: str) -> str:
    """A key in a reader's words: `layers` for model.num_layers."""
    return name.rpartition(".")[2].removeprefix("num_").replace("_", " ")
