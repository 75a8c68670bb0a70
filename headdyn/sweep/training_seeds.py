"""Several trainings of one suite that differ in their random seed: does what emerges in one emerge in the others?

The unit is a training (science.md §15). Everything is computed from the verdicts on each training's series.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headdyn.core.numbers import ABSENT, capital, count, number
from headdyn.core.statistics import binomial_interval, t_interval
from headdyn.models.revisions import suite_of
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_record import verdicts
from headdyn.sweep.words import Statement

QUESTION = "Does it repeat over training seeds?"


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """The trainings of one suite in one analysis of series: their entries in verdict.json, by seed."""

    suite: str
    analysis: str
    entries: Mapping[str, Mapping[str, Any]]

    @property
    def seeds(self) -> list[str]:
        return [f"seed {seed}" if seed.isdigit() else seed for seed in self.entries]

    @property
    def verdicts(self) -> list[Mapping[str, Any]]:
        return [entry["verdict"] for entry in self.entries.values()]

    def split_found(self) -> str:
        """In how many trainings the split of the heads is beyond chance; "" if not all trainings measured it."""
        beyond_chance = [verdict.get("split", {}).get("found") for verdict in self.verdicts]
        return "" if None in beyond_chance else _share(beyond_chance)

    def measures(self) -> dict[str, list[Mapping[str, Any]]]:
        """The judgements of every measure that all trainings have, training by training."""
        judged = [verdict.get("measures", {}) for verdict in self.verdicts]
        return {name: [each[name] for each in judged] for name in judged[0] if all(name in each for each in judged)}

    def scalars(self) -> dict[str, dict[str, Any]]:
        """The mean over trainings, with Student's interval, of every number that all of them have."""
        summaries = [entry["summary"] for entry in self.entries.values()]
        names = [n for n in summaries[0] if all(s.get(n, {}).get("value") is not None for s in summaries)]
        return {name: _mean([summary[name]["value"] for summary in summaries]) for name in names}


def emerged(judgements: Sequence[Mapping[str, Any]]) -> str:
    """In how many trainings a measure emerges."""
    return _share([each["emerges_at_step"] is not None for each in judgements])


def strength_at_end(judgements: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A measure's mean over trainings at their last checkpoint, with Student's interval."""
    return _mean([each["last"] for each in judgements])


def emergence_steps(judgements: Sequence[Mapping[str, Any]]) -> tuple[float | None, float] | None:
    """The 95 % interval of the geometric mean step of emergence, over the trainings in which a measure emerges.

    None if it emerges in fewer than two. A training tells only between which two checkpoints the measure emerges. The
    lower end is that of Student's interval for the earlier checkpoints, the upper end that for the later ones, so that
    both the spread over trainings and the spacing of checkpoints count. The lower end is None if in a training the
    measure has emerged by the first checkpoint.
    """
    dates = [(j["emerges_after_step"], j["emerges_at_step"]) for j in judgements if j["emerges_at_step"] is not None]
    if len(dates) < 2:
        return None
    high = math.exp(t_interval(np.log1p([at for _, at in dates]))[1]) - 1
    if any(after is None for after, _ in dates):
        return None, high
    return math.exp(t_interval(np.log1p([after for after, _ in dates]))[0]) - 1, high


def repetitions(sweep: SweepRecord) -> list[Repetition]:
    """The suites of which a sweep has several trainings, for each analysis.

    Trainings by headdyn are told apart by the key `seed`, public ones by the seed in the model's name.
    """
    configs = {job.run.name: job.run.manifest.get("config", {}).get("model", {}) for job in sweep.jobs}
    groups: dict[str, dict[str, Mapping[str, Any]]] = {}
    suites: dict[str, tuple[str, str]] = {}
    for entry in verdicts(sweep.folder):
        model: Mapping[str, Any] = next(
            (config for name in entry["runs"].values() if (config := configs.get(name))), {}
        )
        factors = {name: level for name, level in entry["factors"].items() if name != "model.name"}
        if model.get("kind") == "pretrained":
            suite, seed = suite_of(str(model["name"]))
            factors.pop("model", None)
        else:
            suite, seed = str(factors.get("model", "")).replace("_", " "), str(factors.pop("seed", ""))
        key = json.dumps([entry["analysis"], suite, factors], sort_keys=True)
        groups.setdefault(key, {})[seed or "the first"] = entry
        suites[key] = suite, entry["analysis"]
    return [
        Repetition(suite=suites[key][0], analysis=suites[key][1], entries=entries)
        for key, entries in groups.items()
        if len(entries) > 1
    ]


def statements(sweep: SweepRecord) -> list[Statement]:
    """An answer for each suite: what emerges in how many trainings, and when."""
    by_suite: dict[str, list[str]] = {}
    for repetition in repetitions(sweep):
        by_suite.setdefault(repetition.suite, []).extend(sentences(repetition, sweep))
    return [Statement(f"{QUESTION} ({suite})", answer) for suite, answer in by_suite.items() if answer]


def sentences(repetition: Repetition, sweep: SweepRecord) -> list[str]:
    """Sentences on what all trainings of a suite show together."""
    result = []
    if split := repetition.split_found():
        result.append(f"The split of the heads is beyond chance in {split}.")
    for name, judgements in repetition.measures().items():
        metric, steps = sweep.metric(name), steps_in_words(judgements)
        when = "" if steps == ABSENT else f", on average within steps {steps}"
        text = f"{capital(metric.label)} emerges in {emerged(judgements)}{when}"
        result.append(f"{text}; at the end its mean over trainings is {metric.spelled(strength_at_end(judgements))}.")
    return result


def steps_in_words(judgements: Sequence[Mapping[str, Any]]) -> str:
    """`1 020 to 3 870`, or a dash."""
    steps = emergence_steps(judgements)
    if steps is None:
        return ABSENT
    low, high = steps
    return f"{'the beginning' if low is None else number(round(low))} to {number(round(high))}"


def _share(hits: Sequence[bool]) -> str:
    """`8 of 9 trainings (52 to 100 %)`, with the 95 % Clopper–Pearson interval of the probability."""
    low, high = map(float, binomial_interval(sum(hits), len(hits)))
    return f"{sum(hits)} of {count(len(hits), 'training')} ({100 * low:.0f} to {100 * high:.0f} %)"


def _mean(values: Sequence[float]) -> dict[str, Any]:
    low, high = map(float, t_interval(np.array(values, dtype=float)))
    return {"value": float(np.mean(values)), "ci_low": low, "ci_high": high, "n": len(values), "unit": "training"}
