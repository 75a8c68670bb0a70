"""A landmark's part of the page: each prediction beside what these runs show, and the curves that decide it."""

from collections.abc import Mapping, Sequence

import numpy as np

from headdyn.core.figures import Curve, Figure, curves
from headdyn.core.numbers import count
from headdyn.report.blocks import Section, Table
from headdyn.studies.landmarks import Landmark, verdict
from headdyn.studies.landmarks.courses import Course, courses
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.words import Statement


def sections(landmark: Landmark, sweep: SweepRecord) -> list[Section]:
    """An open section with the table of predictions and results and the figures, once a training has finished."""
    if not (trainings := courses(sweep)):
        return []
    rows = []
    for prediction in landmark.predictions:
        cases = prediction.judge(trainings)
        evidence = "; ".join(f"{case.name}: {case.evidence}" for case in cases) or "no training to judge it by"
        rows.append([prediction.statement, prediction.criterion, evidence, verdict(cases)])
    written = "Predictions were written before the runs, unless a criterion says otherwise."
    about = f"{landmark.paper}. {written} {landmark.differences}"
    table = Table(columns=["the paper's prediction", "holds where", "these runs", "verdict"], rows=rows)
    lead = "; ".join(f"{i}. {row[-1]}" for i, row in enumerate(rows, 1))
    parts = [about, table, list(landmark.figures(trainings).values())]
    return [Section("landmark", "Prediction beside result", parts, lead, folded=False)]


def verdicts(landmark: Landmark, sweep: SweepRecord) -> list[Statement]:
    """Each prediction with its verdict, and the evidence of every training."""
    trainings, statements = courses(sweep), []
    for prediction in landmark.predictions if trainings else ():
        cases = prediction.judge(trainings)
        hits = sum(case.holds is True for case in cases)
        lead = f"{verdict(cases).capitalize()}: it holds in {hits} of {count(len(cases), 'case')}."
        details = [f"Holds where {prediction.criterion}.", *(f"{case.name}: {case.evidence}." for case in cases)]
        statements.append(Statement(f"Predicted: {prediction.statement}", [lead, *details]))
    return statements


def over_training(
    lines: Mapping[str, tuple[Sequence[Course], str]],
    *,
    ylabel: str,
    title: str,
    zero: str,
    caption: str,
    scale: float = 1,
) -> Figure:
    """Curves of metrics times `scale` over training: means over trainings, with the trainings' range as a band.

    `lines` gives by label the trainings and the metric of each curve; `zero` is the label of the reference line at 0.
    """
    drawings = []
    for label, (group, metric) in lines.items():
        values_CK = scale * np.stack([course.values(metric) for course in group])
        runs, mean_K = [job.number for course in group for job in course.jobs], values_CK.mean(0)
        low_K, high_K = values_CK.min(0), values_CK.max(0)
        drawings.append(Curve(label=label, x=group[0].steps, y=mean_K, low=low_K, high=high_K, runs=runs))
    caption = f"Mean over trainings, their range as a band. {caption}"
    references = {zero: 0.0}
    return curves(
        drawings, xlabel="training step", ylabel=ylabel, title=title, references=references, log_x=True, caption=caption
    )


def losses(group: Sequence[Course], lines: Sequence[str], title: str, caption: str) -> Figure:
    """Held-out loss over training, and the named losses of the corpus (`NAME_nats`) as horizontal lines.

    Trainings that differ in their seed alone are one curve: their mean, and their range as a band.
    """
    alike: dict[str, list[Course]] = {}
    for course in group:
        label = course.label.removesuffix(f"seed {course.seed}").rstrip(", ")
        alike.setdefault(label or "all seeds", []).append(course)
    drawings = []
    for label, seeds in alike.items():
        steps_K, losses_CK = seeds[0].losses()[0], np.stack([course.losses()[1] for course in seeds])
        band = {} if len(seeds) == 1 else {"low": losses_CK.min(0), "high": losses_CK.max(0)}
        runs = [job.number for course in seeds for job in course.jobs]
        drawings.append(Curve(label=label, x=steps_K, y=losses_CK.mean(0), runs=runs, **band))
    if len(drawings) < len(group):
        caption = f"Mean over seeds, their range as a band. {caption}"
    references = {name: float(np.mean([c.scalar(f"{name}_nats") for c in group])) for name in lines}
    return curves(
        drawings,
        xlabel="training step",
        ylabel="held-out loss (nats)",
        title=title,
        references=references,
        caption=caption,
    )
