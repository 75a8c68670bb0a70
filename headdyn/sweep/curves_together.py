"""Do two curves move together within a training more than curves of different trainings do? (science.md §15).

The unit is a training. Everything is computed from the verdicts and timelines of a suite's trainings.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headdyn.analysis.series.points import TASK_METRICS
from headdyn.analysis.series.prediction import moving_together_over_trainings
from headdyn.core.numbers import count, listed, p_value
from headdyn.core.randomness import generator
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_record import Series, read_series
from headdyn.sweep.training_seeds import Repetition

ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class CurvesTogether:
    """The test of every two curves over the trainings of a suite.

    `records` are those of `moving_together_over_trainings`, the smallest p first; `left_out` gives by training the
    reason why it does not take part.
    """

    trainings: int
    records: Sequence[Mapping[str, Any]]
    left_out: Mapping[str, str]

    @property
    def found(self) -> list[Mapping[str, Any]]:
        """The pairs with q ≤ 0.05."""
        return [record for record in self.records if record["q"] <= ALPHA]

    def sentence(self) -> str:
        """What the test shows, and which trainings take no part; "" where the curves have too few changes."""
        if not self.records:
            untested = "Whether curves move together is not tested: no two trainings have the same checkpoints."
            return untested if self.left_out and self.trainings < 2 else ""
        smallest_p = self.records[0]["least_p"]
        texts = [
            f"In {len(self.found)} of {count(len(self.records), 'pair')} the changes of the two curves correlate more "
            f"strongly within a training than between trainings (q ≤ {ALPHA:g}, {count(self.trainings, 'training')})."
        ]
        if smallest_p > ALPHA:
            texts.append(f"So few trainings cannot show it for any pair: no p can be below {p_value(smallest_p)}.")
        texts += [f"Without {name}: {reason}." for name, reason in self.left_out.items()]
        return " ".join(texts)


def curves_together(repetition: Repetition, sweep: SweepRecord) -> CurvesTogether:
    """The test over the trainings that have the checkpoints which most of them have; the others are left out."""
    by_number = {series.number: series for series in read_series(sweep)}
    series = {
        name: by_number[entry["series"]]
        for name, entry in zip(repetition.seeds, repetition.entries.values(), strict=True)
        if "measures" in entry["verdict"] and entry["series"] in by_number
    }
    steps = {name: frozenset(row["step"] for row in each.rows) - {None} for name, each in series.items()}
    usual_steps = Counter(steps.values()).most_common(1)[0][0] if steps else frozenset()
    left_out = {name: _differences(own, usual_steps) for name, own in steps.items() if own != usual_steps}
    trainings = [recorded_courses(each) for name, each in series.items() if name not in left_out]
    records: list[dict[str, Any]] = []
    if len(trainings) > 1:
        records = moving_together_over_trainings(trainings, generator(0, f"curves together/{repetition.suite}"))
    records.sort(key=lambda record: (record["p"], -abs(record["within"])))
    return CurvesTogether(trainings=len(trainings), records=records, left_out=left_out)


def recorded_courses(series: Series) -> dict[str, dict[int, float]]:
    """The values by step of every measure of a series, and of the metrics that say how well the model does its task.

    The null is subtracted from a measure that has no threshold of its own, as it was for the judgement.
    """
    courses = {}
    for name in dict.fromkeys((*series.measures, *TASK_METRICS)):
        points = series.points(name)
        if points is None:
            continue
        without_threshold = series.measures.get(name, {}).get("rule", "").startswith("above half")
        null = [base if math.isfinite(base) else points.value[0] for base in points.null]
        values = zip(points.steps, points.value, null, strict=True)
        courses[name] = {step: value - base if without_threshold else value for step, value, base in values}
    return courses


def _differences(own: frozenset[int], usual: frozenset[int]) -> str:
    """How a training's checkpoints differ from those of the trainings that are compared."""
    parts = [
        f"it {verb} {listed([f'step {step}' for step in sorted(steps)[:3]])}{' and others' if len(steps) > 3 else ''}"
        for verb, steps in (("lacks", usual - own), ("has", own - usual))
        if steps
    ]
    return f"its checkpoints are not those of the other trainings ({', '.join(parts)})"
