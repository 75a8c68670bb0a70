"""A landmark's part of the page: each prediction beside what these runs show, and the curves that decide it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from headdyn.core.figures import Curve, Figure
from headdyn.core.numbers import count
from headdyn.report.blocks import Section, Table
from headdyn.studies.landmarks import Landmark, verdict
from headdyn.studies.landmarks.courses import Course, courses
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.words import Statement


def section(landmark: Landmark, sweep: SweepRecord, figures: Mapping[str, Figure]) -> Section:
    """The table of predictions and results, open, with the figures."""
    followed, rows = courses(sweep), []
    for prediction in landmark.predictions:
        cases = prediction.judge(followed)
        evidence = "; ".join(f"{case.name}: {case.evidence}" for case in cases) or "no training to judge it by"
        rows.append([prediction.statement, prediction.criterion, evidence, verdict(cases)])
    about = f"{landmark.paper}. Written down before the run. {landmark.differences}"
    table = Table(columns=["the paper's prediction", "holds where", "these runs", "verdict"], rows=rows)
    lead = "; ".join(f"{i}. {row[-1]}" for i, row in enumerate(rows, 1))
    return Section("landmark", "Prediction beside result", [about, table, list(figures.values())], lead, folded=False)


def headlines(landmark: Landmark, sweep: SweepRecord) -> list[Statement]:
    """Each prediction with its verdict, and what every training shows."""
    followed, statements = courses(sweep), []
    for prediction in landmark.predictions:
        cases = prediction.judge(followed)
        held = sum(case.holds is True for case in cases)
        lead = f"{verdict(cases).capitalize()}: it holds in {held} of {count(len(cases), 'case')}."
        details = [f"Holds where {prediction.criterion}.", *(f"{case.name}: {case.evidence}." for case in cases)]
        statements.append(Statement(f"Predicted: {prediction.statement}", [lead, *details]))
    return statements


def over_seeds(group: Sequence[Course], metric: str, label: str, scale: float = 1) -> Curve:
    """A metric times `scale` over training, averaged over seeds, with the range of the seeds as a band."""
    values_CK = scale * np.stack([course.values(metric) for course in group])
    runs = [job.number for course in group for job in course.jobs]
    low_K, high_K = values_CK.min(0), values_CK.max(0)
    return Curve(label=label, x=group[0].steps, y=values_CK.mean(0), low=low_K, high=high_K, runs=runs)
