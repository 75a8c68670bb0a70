"""The landmarks' trainings: their record is made of sweeps by `python -m tests.experiments.landmarks SWEEP…`.

A sweep's trainings take the place of those on record that have the same settings; others stay. All figures of the page are
drawn again. Of a sweep that was started with a preset alone the minutes are recorded too.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from headdyn.core.run_folder import RunRecord
from headdyn.studies.landmarks import Case, Landmark, verdict
from headdyn.studies.landmarks.clamping.predictions import PATTERN, phase_change
from headdyn.studies.landmarks.courses import Course, courses, crossing, labels
from headdyn.studies.landmarks.induction_scores import InductionScores
from headdyn.studies.landmarks.markov_phases.predictions import CHAINS, nearest
from headdyn.studies.landmarks.statistical_induction.predictions import ROWS, gap_closed
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord
from tests.experiments.records import fixed, high, low, percent, read

NAMES = {
    "statistical_induction": "statistical induction (arXiv 2402.11004)",
    "clamping": "clamping (arXiv 2404.07129)",
    "induction_bump": "induction bump (arXiv 2209.11895)",
    "markov_phases": "Markov phases (arXiv 2412.01003)",
}
DRAWN = {  # figure on the page: (landmark, the figure's name)
    "prefix_matching": ("induction_bump", "landmark_best_prefix_matching"),
    "loss_with_a_head_held": ("clamping", "landmark_loss"),
    "distance_from_exact_predictors_dirichlet_rows": ("statistical_induction", "landmark_distance_dirichlet"),
    "distance_from_exact_predictors_on_fresh_chains_trained_on_4": ("markov_phases", "landmark_distance_4_chains"),
    "distance_from_exact_predictors_on_fresh_chains_trained_on_1024": (
        "markov_phases",
        "landmark_distance_1024_chains",
    ),
}
FIRST_LAYER = "clamping_first_layer"  # the record of a head of the first layer held at even attention
SETTINGS = (
    "(400 steps, a third of the rates)",
    "were chosen on seed 100",
    "(95 %, Clopper–Pearson; units",
    "of seed 100",
    "one of seed 0 and, with fewest and most chains, one of seed 1;",
    "seeds 0 to 2",
    "seeds 3 to 5",
)
_RECORDED = re.compile(r"best_prefix_matching|in_context_nats|kl_\w+_nats|(random|floor|unigram|bigram|loss)_nats")


def landmark(name: str) -> Landmark:
    """What the paper predicts, and how it is judged."""
    module = importlib.import_module(f"headdyn.studies.landmarks.{name}.predictions")
    return module.LANDMARK  # type: ignore[no-any-return]


def record(sweep: Path) -> list[dict[str, Any]]:
    """Of every training of a sweep its factors, its losses, and at each snapshot the numbers that decide.

    All on record are in bfloat16; that a command had to say so is no factor.
    """
    followed = courses(SweepRecord.read(sweep))
    if other := {course.jobs[-1].run.manifest["machine"]["precision"] for course in followed} - {"bf16"}:
        raise ValueError(f"{sweep} has runs in {', '.join(other)}, and all on record are in bf16")
    return [
        {
            "factors": {name: value for name, value in course.factors.items() if name != "precision"},
            "steps": course.steps.tolist(),
            "losses": course.jobs[-1].metrics["val_loss_nats"],
            "snapshots": [
                {name: job.run.value(name) for name in job.run.scalars if _RECORDED.fullmatch(name)}
                for job in course.jobs
            ],
        }
        for course in followed
    ]


def minutes(sweep: Path) -> dict[str, float]:
    """From the start of a sweep's first job until its page was written."""
    began = min(datetime.fromisoformat(job.run.manifest["started"]) for job in SweepRecord.read(sweep).complete)
    return {"minutes": (datetime.fromisoformat(read(sweep / "sweep.json")["written"]) - began).total_seconds() / 60}


def recorded(folder: Path, name: str) -> list[Course]:
    """The trainings on record, as a sweep's are judged."""
    followed, entries = [], read(folder / f"{name}.json")
    for entry, label in zip(entries, labels([entry["factors"] for entry in entries]), strict=True):
        jobs = [
            Job(i, RunRecord(Path(), {}, numbers), {**entry["factors"], "revision": f"step{step}"}, "", "")
            for i, (step, numbers) in enumerate(zip(entry["steps"], entry["snapshots"], strict=True))
        ]
        jobs[-1].__dict__["metrics"] = {"val_loss_nats": entry["losses"]}  # else read from the run's folder
        followed.append(Course(jobs, label))
    return followed


def fragments(folder: Path) -> list[str]:
    lines, verdicts = [], []
    for name, title in NAMES.items():
        followed = recorded(folder, name)
        for i, prediction in enumerate(landmark(name).predictions):
            cases = prediction.judge(followed)
            lines.append(f"| {title if not i else ''} | {prediction.statement} | {counted(cases)} | {verdict(cases)} |")
            verdicts.append("a control" if prediction.statement.startswith("a control") else verdict(cases))
    hold, fail, open_ = (verdicts.count(each) for each in ("supported", "not supported", "undecided"))
    assert verdicts.count("a control") == 1
    changes = [
        {course.seed: phase_change(course) for course in recorded(folder, name) if chosen(course)}
        for name, chosen in (
            ("clamping", lambda course: course.factors[PATTERN] == "none"),
            ("clamping", lambda course: course.factors[PATTERN] == "previous_token"),
            (FIRST_LAYER, lambda course: True),
        )
    ]
    free, previous, even = ([change[seed] for seed in sorted(changes[0])] for change in changes)
    earlier = sum(even_at <= after for (after, _), (_, even_at) in zip(free, even, strict=True))
    later = [seed for seed in sorted(changes[0]) if changes[2][seed][0] >= changes[0][seed][1]]
    assert (
        earlier + len(later) == len(even)
        and len(later) == 1
        and all(a[1] < b[0] for a, b in zip(previous, even, strict=True))
    )
    delays = [
        (free_at, held_after)
        for course in recorded(folder, "clamping")
        if course.factors[PATTERN] == "uniform"
        for (_, free_at), (held_after, _) in [(changes[0][course.seed], phase_change(course))]
        if np.isfinite(free_at)
    ]
    assert all(free_at <= held_after for free_at, held_after in delays)
    own = [
        [name for name in nearest(course, where="") if name is not None]
        for course in recorded(folder, "markov_phases")
        if course.factors[CHAINS] == 4
    ]
    assert all(path[0].startswith("unigram") and path[-1] == "bigram_retrieval" for path in own)
    sixes = sum(f"| 6 of 6 ({percent(low(6, 6))}–100 %)" in line for line in lines)
    took = read(folder / "minutes.json")
    chains = recorded(folder, "statistical_induction")
    left, left_dirichlet = (
        [crossing(*gap_closed(course), 0.1) for course in chains if course.factors[ROWS] == kind]
        for kind in ("doubly_stochastic", "dirichlet")
    )
    assert all(without[0] > informed[1] for without, informed in zip(left, left_dirichlet, strict=True))
    scores = InductionScores()
    query_Q = np.arange(scores.block, scores.block * scores.repeats)
    even_attention = float((query_Q // scores.block / (query_Q + 1)).mean())
    return [
        *lines,
        f"has a prefix matching of {fixed(100 * even_attention, 1)} %",
        f"as {sixes} do, holds in more than half ({percent(low(len(even), len(even)))} % or more)",
        f"{hold} of {hold + fail + open_} predictions hold, {fail} does not, {open_} are undecided",
        *(f"{name.replace('_', ' ')} {fixed(took[name]['minutes'], 1)}" for name in NAMES),
        f"a tenth of the way in {spans(left)}",
        f"the others in {spans(left_dirichlet)}",
        f"forward in {earlier} of {len(even)} seeds and delays it in {len(later)}",
        f"delays the change in {len(delays)} of {len(free)} seeds",
        f"in {spans(even)}, against {spans(free)} without and {spans(previous)} at the previous token",
    ]


def counted(cases: Sequence[Case]) -> str:
    """In how many trainings a prediction holds, with an interval, and what the first of them shows."""
    holds, n = sum(case.holds is True for case in cases), len(cases)
    untold = sum(case.holds is None for case in cases)
    interval = f"({percent(low(holds, n))}–{percent(high(holds, n))} %)"
    return f"{holds} of {n} {interval}{f', {untold} cannot be told' if untold else ''}; {cases[0].name}: {cases[0].evidence}"


def spans(changes: list[tuple[float, float]]) -> str:
    return ", ".join(f"({after:g}, {at:g}]" for after, at in changes)


def main(sweeps: list[str]) -> None:
    folder, anew = Path("experiments/landmarks"), dict[str, list[dict[str, Any]]]()
    for sweep in map(Path, sweeps):
        name = next((name for name in NAMES if sweep.name.startswith(name)), None)
        if name is None:
            raise SystemExit(f"{sweep} is no sweep of a landmark; its folder begins with one of {', '.join(NAMES)}")
        for entry in record(sweep):
            control = name == "clamping" and "train.clamp.layer" in entry["factors"]
            anew.setdefault(FIRST_LAYER if control else name, []).append(entry)
        if read(sweep / "sweep.json")["command"] == f"python -m headdyn.run -m experiment={name}":
            took = read(folder / "minutes.json") | {name: minutes(sweep)}
            (folder / "minutes.json").write_text(json.dumps(took, indent=1) + "\n", encoding="utf-8")
    for name, entries in anew.items():
        path = folder / f"{name}.json"
        on_record = read(path) if path.exists() else []
        one_each = {json.dumps(entry["factors"], sort_keys=True): entry for entry in [*on_record, *entries]}
        by_seed = sorted(one_each.values(), key=lambda entry: int(entry["factors"]["seed"]))
        path.write_text(json.dumps(by_seed) + "\n", encoding="utf-8")
    for file, (name, figure) in DRAWN.items():
        landmark(name).figures(recorded(folder, name))[figure].save(folder / f"{file}.svg")


if __name__ == "__main__":
    main(sys.argv[1:])
