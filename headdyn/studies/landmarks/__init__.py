"""Landmarks: known results on how attention heads learn, repeated here as a test of the instruments.

Each folder holds one result: its corpus, its exact predictors as an analysis, and `predictions.py`, the paper's
predictions, written down before any run, with the rules that judge them. Its preset is in conf/experiment.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headdyn.studies import deferred

if TYPE_CHECKING:
    from headdyn.core.figures import Figure
    from headdyn.studies.landmarks.courses import Course


@dataclass(frozen=True)
class Case:
    """A training, or a pair of trainings, on which a prediction holds or fails (None: cannot be told)."""

    name: str
    holds: bool | None
    evidence: str


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A paper's prediction, and the criterion by which `judge` decides it.

    Both were written before any run; a criterion that was changed after one ends with words that say so.
    """

    statement: str
    criterion: str
    judge: Callable[[Sequence[Course]], Sequence[Case]]


@dataclass(frozen=True, kw_only=True)
class Landmark:
    """A known result: the paper, how these runs differ from it, its predictions, and the curves that decide them."""

    paper: str
    differences: str
    predictions: Sequence[Prediction]
    figures: Callable[[Sequence[Course]], Mapping[str, Figure]]


def verdict(cases: Sequence[Case]) -> str:
    """Supported if the prediction holds in every case, not supported if it fails in every case, else undecided."""
    outcomes = {case.holds for case in cases}
    return "supported" if outcomes == {True} else "not supported" if outcomes == {False} else "undecided"


def report_parts(module: str) -> list[Callable[..., Any]]:
    """The functions `sections` and `verdicts` (report/extension.py) of the LANDMARK that a module defines."""

    def part(function: str) -> Callable[..., Any]:
        draw = deferred("headdyn.studies.landmarks.page", function)
        return lambda sweep: draw(importlib.import_module(module).LANDMARK, sweep)

    return [part(function) for function in ("sections", "verdicts")]
