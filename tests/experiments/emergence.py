"""When heads form on conversations: eight trainings followed through 16 snapshots each, then eight through 32.

`python -m tests.experiments.emergence SWEEP…` records the second look and draws its figure.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from headdyn.analysis.series.prediction import moving_together_over_trainings
from headdyn.core.figures import Curve, curves
from tests.experiments.records import Row, average, fixed, high, low, p_is, percent, read, rows, span, spelled

SETTINGS = (
    "Clopper–Pearson intervals, 95 %",
    "of 800 steps",
    "(20 points above chance)",
    "intervals are 95 %, over 4 seeds",
    "(seeds 0 to 3)",
    "(from step 600)",
    "with 32 snapshots of each training",
    "(q ≤ 0.05) from a step on",
    "correlate below 0 from snapshot to snapshot with q < 0.05, in every training",
    "is lower from step 11 on",
    "(16 snapshots)",
    "attention above 30 %",
    "training of seed 0",
    "2 to 4 % of training",
)
MEASURES = {  # row of the table: (measure, scale, digits)
    "induction, strongest head (points above chance)": ("induction_top", 100, 0),
    "topic selectivity, strongest head (points)": ("selectivity_top", 100, 0),
    "attention on the previous token, strongest head": ("previous_token_top", 100, 0),
    "attention on position 0, strongest head": ("sink_rate_top", 100, 0),
}
FOLLOWED = ("induction_top", "selectivity_top", "repeat_gain_nats")
COURSES = ("loss_nats", "gap_closed", "selectivity", *FOLLOWED)
STEPS = (0, 11, 16, 28, 51, 136, 444, 800)


def fragments(folder: Path) -> list[str]:
    trainings = read(folder / "judgements.json")
    n, lines = len(trainings), []
    for label, (name, scale, digits) in MEASURES.items():
        judged = [training["measures"][name] for training in trainings]
        emerged = [each for each in judged if each["emerges_at_step"] is not None]
        last = span((each["last"] for each in judged), digits, scale=scale)
        steps = "–"
        if emerged:
            steps = f"{min(e['emerges_after_step'] for e in emerged)} to {max(e['emerges_at_step'] for e in emerged)}"
        share = f"{len(emerged)} of {n} ({percent(low(len(emerged), n))} to {percent(high(len(emerged), n))} %)"
        lines.append(f"| {label} | {share} | {steps} | {last} |")
    pairs = [training["order"]["half_height"]["surely_before"] for training in trainings]
    apart = sum(["induction_top", "selectivity_top"] in each for each in pairs)
    timeline = folder / "timeline.csv"
    at_once, before, end = (
        span((row[name] for row in rows(timeline, step=step)), 2)
        for name, step in (("copying_nats", "0"), ("repeat_gain_nats", "0"), ("repeat_gain_nats", "800"))
    )
    gains = [
        {int(row["step"]): float(row["repeat_gain_nats"]) for row in rows(timeline, series=str(series))}
        for series in range(n)
    ]
    highest = [max(gain.values()) for gain in gains]
    halves = [first_at(gain, high / 2) for gain, high in zip(gains, highest, strict=True)]
    closed = [
        {int(row["step"]): float(row["gap_closed"]) for row in rows(timeline, series=str(series))}
        for series in range(n)
    ]
    after, at = zip(*(first_at(course, 0.5) for course in closed), strict=True)
    before_fall = [
        sum(
            training["measures"][name]["emerges_at_step"] <= step
            for training, step in zip(trainings, after, strict=True)
        )
        for name in FOLLOWED[:2]
    ]
    return [
        *lines,
        f"First look, all {n}:",
        f"closes between steps {min(after)} and {max(at)} in all {n}",
        f"Induction is surely before this in {before_fall[0]} of {n}, selecting in {before_fall[1]} of {n}",
        f"before selectivity in {apart} of {n}",
        f"16 snapshots of {n} trainings",
        f"{before} nats untrained, {span(highest, 2)} at its highest, {end} at the end",
        f"height between steps {min(a for a, _ in halves)} and {max(b for _, b in halves)};",
        f"{at_once} before any training",
        *second_look(folder),
    ]


def first_at(course: dict[int, float], level: float) -> tuple[int, int]:
    """Between which snapshots, by step, a course first reaches the level."""
    steps = list(course)
    index = next(i for i, step in enumerate(steps) if course[step] >= level)
    return steps[index - 1], steps[index]


# -- the second look, with twice as many snapshots, in both orders of the data ------------------------------------------


def record(sweeps: list[Path]) -> tuple[list[dict[str, Any]], list[Row]]:
    """Of every training the dates and what predicts them, and of every snapshot the numbers that the page uses."""
    trainings, snapshots = dict[tuple[str, int], dict[str, Any]](), []
    for sweep in sweeps:
        for entry in read(sweep / "verdict.json"):
            factors, verdict = entry["factors"], entry["verdict"]
            which = factors["data_ordering"], factors["seed"]
            training = trainings.setdefault(which, {"data_ordering": which[0], "seed": which[1]})
            if entry["analysis"] == "emergence":
                training["measures"] = {name: verdict["measures"][name] for name in FOLLOWED}
                training["order"] = verdict["order"]
            else:
                training["predicted"] = verdict["predicted"]
        for run in rows(sweep / "summary.csv"):
            step = {"step": run["revision"].removeprefix("step")}
            snapshots.append(
                {name: run[name] for name in ("data_ordering", "seed")} | step | {n: run[n] for n in COURSES}
            )
    return list(trainings.values()), snapshots


def second_look(folder: Path) -> list[str]:
    """What the page says of the second run."""
    trainings, snapshots = read(folder / "dense.json"), rows(folder / "dense_timeline.csv")
    found = []
    for order in ("shuffled", "topic"):
        for training in (each for each in trainings if each["data_ordering"] == order):
            dates = [training["order"]["half_height"]["intervals"].get(name) for name in FOLLOWED]
            cells = [
                "–" if date is None else f"{date[0]} to {date[1]}"
                for date in (*dates, gap_half_closed(training, snapshots))
            ]
            topic = training["predicted"]["topic"]
            cells += [
                "never" if topic[key] is None else str(topic[key]) for key in ("from_step", "half_have_the_role_by")
            ]
            found.append(f"| {order} {training['seed']} | {' | '.join(cells)} |")
    for step in map(str, STEPS):
        at = [row for row in snapshots if row["step"] == step]
        shuffled = fixed(100 * np.mean([float(r["selectivity"]) for r in at if r["data_ordering"] == "shuffled"]), 1)
        cells = [
            spelled(average(at, name, "data_ordering", "shuffled", "topic"), scale=scale, signed=True)
            for name, scale in (("selectivity", 100), ("loss_nats", 1))
        ]
        found.append(f"| {step} | {shuffled} | {' | '.join(cells)} |")
    assert all(each["predicted"]["induction"]["half_have_the_role_by"] is None for each in trainings)
    shuffled = [each for each in trainings if each["data_ordering"] == "shuffled"]
    sure = [each["order"]["half_height"]["surely_before"] for each in shuffled]
    before = [sum([*pair] in each for each in sure) for pair in (FOLLOWED[:2], FOLLOWED[1::-1])]
    first = {
        order: sum(both_before_the_loss(each, snapshots) for each in trainings if each["data_ordering"] == order)
        for order in ("shuffled", "topic")
    }
    together = moving_together_over_trainings(courses(snapshots, FOLLOWED[1]), np.random.default_rng(0))[0]
    gain = [surely(each, FOLLOWED[2], FOLLOWED[0]) for each in trainings]
    topic = [surely(each, *FOLLOWED[:2]) for each in trainings if each["data_ordering"] == "topic"]
    assert before == [1, 1]
    return [
        *found,
        f"surely before induction in {gain.count(1)} of {len(gain)} and surely after it in {gain.count(-1)}",
        f"in topic order {topic.count(-1)} of {len(topic)} are surely not",
        f"32 snapshots of {len(shuffled)} trainings in each order",
        f"holds in {first['shuffled']} of 4 trainings in shuffled order, and in {first['topic']} of 4 in topic order",
        f"surely before selectivity in {before[0]} of {len(shuffled)}, surely after it in {before[1]}",
        f"by {fixed(together['within'], 2, signed=True)} within a training and by {fixed(together['across'], 2, signed=True)} "
        f"between trainings ({p_is(together['p'])})",
    ]


def surely(training: dict[str, Any], one: str, other: str) -> int:
    """1 where the first measure is at half of its height surely before the other, −1 where surely after it, else 0."""
    pairs = training["order"]["half_height"]["surely_before"]
    return ([one, other] in pairs) - ([other, one] in pairs)


def gap_half_closed(training: dict[str, Any], snapshots: list[Row]) -> tuple[int, int]:
    """Between which snapshots half of the gap from guessing to the floor closes."""
    which = training["data_ordering"], str(training["seed"])
    course = {
        int(row["step"]): float(row["gap_closed"]) for row in snapshots if (row["data_ordering"], row["seed"]) == which
    }
    return first_at(course, 0.5)


def both_before_the_loss(training: dict[str, Any], snapshots: list[Row]) -> bool:
    """Whether induction and selectivity reach half of their height surely before half of the gap closes."""
    dates = training["order"]["half_height"]["intervals"]
    return all(dates[name][1] <= gap_half_closed(training, snapshots)[0] for name in FOLLOWED[:2])


def courses(snapshots: list[Row], metric: str) -> list[dict[str, dict[int, float]]]:
    """A metric and the loss by step, of every training in shuffled order."""
    mine = [row for row in snapshots if row["data_ordering"] == "shuffled"]
    return [
        {
            name: {int(row["step"]): float(row[name]) for row in mine if row["seed"] == seed}
            for name in (metric, "loss_nats")
        }
        for seed in sorted({row["seed"] for row in mine})
    ]


def main() -> None:
    folder = Path("experiments/emergence")
    if sweeps := [Path(name) for name in sys.argv[1:]]:
        trainings, snapshots = record(sweeps)
        lines = ",\n ".join(map(json.dumps, trainings))
        (folder / "dense.json").write_text(f"[{lines}]\n", encoding="utf-8")
        with (folder / "dense_timeline.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(snapshots[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(snapshots)
    snapshots, drawn = rows(folder / "dense_timeline.csv"), []
    for order, label in (("shuffled", "shuffled order"), ("topic", "topic order")):
        mine = [row for row in snapshots if row["data_ordering"] == order]
        steps = sorted({int(row["step"]) for row in mine})
        points_KC = np.array(
            [[100 * float(r["selectivity"]) for r in mine if r["step"] == str(step)] for step in steps]
        )
        ends = {"low": points_KC.min(1), "high": points_KC.max(1)}
        drawn.append(Curve(label=label, x=np.array(steps), y=points_KC.mean(1), **ends))
    curves(
        drawn,
        xlabel="training step",
        ylabel="topic selectivity (points)",
        title="Topic selectivity over training, mean over heads",
        references={"chance": 0.0},
        log_x=True,
    ).save(folder / "selectivity_by_order.svg")


if __name__ == "__main__":
    main()
