"""Landmarks: known results on how attention heads learn, repeated here as a test of the instruments.

Each folder holds one result: its corpus, its exact predictors as an analysis, and `predictions.py` with what the paper
predicts, written down before any run, and how it is judged. Its preset is in conf/experiment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from headdyn.studies import Study

if TYPE_CHECKING:
    from headdyn.studies.landmarks.courses import Course

STUDY = Study(
    title="Landmarks",
    question="Do the instruments find what is known of how in-context learning emerges?",
)

Verdict = Literal["supported", "not supported", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training, or one pair of trainings, on which a prediction holds or fails; None: it cannot be told."""

    name: str
    holds: bool | None
    evidence: str


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a paper predicts (`statement`), and what is measured to judge it (`criterion`), both before any run."""

    statement: str
    criterion: str
    judge: Callable[[Sequence[Course]], Sequence[Case]]


@dataclass(frozen=True, kw_only=True)
class Landmark:
    """A known result: the paper, how these runs differ from it, and its predictions."""

    paper: str
    differences: str
    predictions: Sequence[Prediction]


def verdict(cases: Sequence[Case]) -> Verdict:
    """Supported where it holds in every case, not supported where it fails in every one, else undecided."""
    outcomes = {case.holds for case in cases}
    return "supported" if outcomes == {True} else "not supported" if outcomes == {False} else "undecided"
