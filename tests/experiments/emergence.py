"""When heads form on conversations: trainings of the matrix in both orders of the data, followed through 32 snapshots each.

`python -m tests.experiments.emergence SWEEP…` records the sweeps and draws the figures.
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
from headdyn.core.numbers import number
from tests.experiments.records import Row, average, fixed, high, low, p_is, percent, read, rows, span, spelled

SETTINGS = (
    "intervals are 95 %",
    "brackets hold 95 % intervals",
    "(20 points above chance)",
    "(from step 600)",
    "(q ≤ 0.05) from a step on",
    "correlate below 0 from snapshot to snapshot with q < 0.05, in every training",
    "from step 16 on",
    "all heads from step 16",
)
MEASURES = {  # row of the table: (measure, scale, digits)
    "loss saved on a pair's repeat (nats)": ("repeat_gain_nats", 1, 2),
    "induction, strongest head (points above chance)": ("induction_top", 100, 0),
    "topic selectivity, strongest head (points)": ("selectivity_top", 100, 0),
    "attention on the previous token, strongest head (points)": ("previous_token_top", 100, 0),
    "attention on position 0, strongest head (points)": ("sink_rate_top", 100, 0),
}
INDUCTION, SELECTIVITY, PREVIOUS = "induction_top", "selectivity_top", "previous_token_top"
DATED = ("repeat_gain_nats", SELECTIVITY, INDUCTION, PREVIOUS)
COURSES = ("loss_nats", "gap_closed", "selectivity", *DATED)
STEPS = (0, 11, 16, 28, 51, 136, 444, 800)
ORDERS = ("shuffled", "topic")


def fragments(folder: Path) -> list[str]:
    trainings, snapshots = read(folder / "trainings.json"), rows(folder / "timeline.csv")
    of = {order: [each for each in trainings if each["data_ordering"] == order] for order in ORDERS}
    n, seeds = len(of["shuffled"]), {order: {each["seed"] for each in of[order]} for order in ORDERS}
    pairs = [row for row in snapshots if int(row["seed"]) in seeds["shuffled"] & seeds["topic"]]
    assert all(each["predicted"]["induction"]["half_have_the_role_by"] is None for each in trainings)
    together = moving_together_over_trainings(courses(snapshots, SELECTIVITY), np.random.default_rng(0))[0]
    order_count = {
        order: (
            sum(surely(each, INDUCTION, SELECTIVITY) == 1 for each in of[order]),
            sum(surely(each, INDUCTION, SELECTIVITY) == -1 for each in of[order]),
            sum(both_before_the_loss(each, snapshots) for each in of[order]),
            sum(surely(each, PREVIOUS, SELECTIVITY) == -1 for each in of[order]),
        )
        for order in ORDERS
    }
    told = [each for each in trainings if told_before(each)]
    all_dates = [half_height(each, name) for each in of["shuffled"] for name in (INDUCTION, SELECTIVITY)]
    dates = [date for date in all_dates if date is not None]
    closed = [gap_half_closed(each, snapshots) for each in of["shuffled"]]
    apart = [abs(difference) for difference in from_the_matrix(snapshots)]
    before, after, first, previous = order_count["shuffled"]
    # What the page says in words.
    assert 0 < before < after and 0 < first < n and previous == n and 0 < len(told) < len(trainings) / 4
    assert not any(each["measures"]["sink_rate_top"]["emerges_at_step"] for each in trainings)
    assert max(at for _, at in dates) < 0.05 * 800
    return [
        *formed(of["shuffled"]),
        *(dated(each, snapshots) for each in trainings),
        *(over_training(pairs, step) for step in STEPS),
        f"{n} trainings of 800 steps in shuffled order, {len(of['topic'])} in topic order, 32 snapshots of each",
        f"between steps {min(a for a, _ in dates)} and {max(b for _, b in dates)} of 800, in {n} of {n} trainings",
        f"between steps {min(a for a, _ in closed)} and {max(b for _, b in closed)}",
        f"In shuffled order both are surely at half of their height before half of the gap closes in {first} of {n} trainings, "
        f"in topic order in {order_count['topic'][2]} of {len(of['topic'])}",
        f"Induction is surely before selectivity in {before} of {n} in shuffled order and surely after it in {after}; in topic "
        f"order in {order_count['topic'][0]} and {order_count['topic'][1]} of {len(of['topic'])}",
        f"surely later than selectivity in {previous} of {n}",
        f"mean over heads is lower than in shuffled order at every snapshot from step {lower_from(pairs)} on",
        f"select less from step {lower_from(pairs)} on",
        f"over {len({row['seed'] for row in pairs})} seeds",
        f"in {len(told)} of {len(trainings)} trainings",
        f"by {fixed(together['within'], 2, signed=True)} within a training and by "
        f"{fixed(together['across'], 2, signed=True)} between trainings ({p_is(together['p'])})",
        f"{len(apart)} of these trainings are runs of the matrix, made again by later code: their losses differ by at most "
        f"{number(max(apart))} nats",
    ]


def formed(trainings: list[dict[str, Any]]) -> list[str]:
    """For each measure in how many trainings it emerges, within which steps, and its last values."""
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
    return lines


def dated(training: dict[str, Any], snapshots: list[Row]) -> str:
    """A training's row of dates: between which steps each curve is first at half of its height."""
    dates = [half_height(training, name) for name in DATED]
    cells = [
        "–" if date is None else f"{date[0]} to {date[1]}" for date in (*dates, gap_half_closed(training, snapshots))
    ]
    topic = training["predicted"]["topic"]
    cells += ["never" if topic[key] is None else str(topic[key]) for key in ("from_step", "half_have_the_role_by")]
    return f"| {training['data_ordering']} {training['seed']} | {' | '.join(cells)} |"


def over_training(snapshots: list[Row], step: int) -> str:
    """A step's row: selectivity in shuffled order, and what topic order changes of it and of the loss."""
    at = [row for row in snapshots if row["step"] == str(step)]
    shuffled = fixed(100 * float(np.mean([float(r["selectivity"]) for r in at if r["data_ordering"] == "shuffled"])), 1)
    cells = [
        spelled(average(at, name, "data_ordering", *ORDERS), scale=scale, signed=True)
        for name, scale in (("selectivity", 100), ("loss_nats", 1))
    ]
    return f"| {step} | {shuffled} | {' | '.join(cells)} |"


def lower_from(snapshots: list[Row]) -> int:
    """The first step from which topic order's interval of selectivity lies below 0 at every snapshot."""
    steps = sorted({int(row["step"]) for row in snapshots})
    below = [
        average([row for row in snapshots if row["step"] == str(step)], "selectivity", "data_ordering", *ORDERS)[
            "ci_high"
        ]
        < 0
        for step in steps
    ]
    return next(step for i, step in enumerate(steps) if all(below[i:]))


def from_the_matrix(snapshots: list[Row]) -> list[float]:
    """The last snapshots' losses less those of the matrix's runs of the same seed and order."""
    runs = rows(
        Path(__file__).parents[2] / "experiments" / "matrix" / "summary.csv", attention="mha", position_enc="rope"
    )
    recorded = {(run["data_ordering"], run["seed"]): float(run["loss_nats"]) for run in runs}
    last = [row for row in snapshots if row["step"] == str(STEPS[-1])]
    return [float(row["loss_nats"]) - recorded[row["data_ordering"], row["seed"]] for row in last]


def first_at(course: dict[int, float], level: float) -> tuple[int, int]:
    """Between which snapshots, by step, a course first reaches the level."""
    steps = list(course)
    index = next(i for i, step in enumerate(steps) if course[step] >= level)
    return steps[index - 1], steps[index]


def half_height(training: dict[str, Any], name: str) -> tuple[int, int] | None:
    date = training["order"]["half_height"]["intervals"].get(name)
    return None if date is None else (date[0], date[1])


def told_before(training: dict[str, Any]) -> bool:
    """Whether ranks tell the later topic heads before half of them are topic heads."""
    topic = training["predicted"]["topic"]
    told, have = topic["from_step"], topic["half_have_the_role_by"]
    return told is not None and have is not None and told < have


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
    return all(dates[name][1] <= gap_half_closed(training, snapshots)[0] for name in (INDUCTION, SELECTIVITY))


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


# -- the record --------------------------------------------------------------------------------------------------------


def record(sweeps: list[Path]) -> tuple[list[dict[str, Any]], list[Row]]:
    """Of every training the dates and what predicts them, and of every snapshot the numbers that the page uses."""
    trainings, snapshots = dict[tuple[str, int], dict[str, Any]](), []
    for sweep in sweeps:
        for entry in read(sweep / "verdict.json"):
            factors, verdict = entry["factors"], entry["verdict"]
            which = factors["data_ordering"], factors["seed"]
            training = trainings.setdefault(which, {"data_ordering": which[0], "seed": which[1]})
            if entry["analysis"] == "emergence":
                training["measures"] = {name: verdict["measures"][name] for name, _, _ in MEASURES.values()}
                training["order"] = verdict["order"]
            else:
                training["predicted"] = verdict["predicted"]
        for run in rows(sweep / "summary.csv"):
            step = {"step": run["revision"].removeprefix("step")}
            snapshots.append(
                {name: run[name] for name in ("data_ordering", "seed")} | step | {n: run[n] for n in COURSES}
            )
    return [trainings[which] for which in sorted(trainings)], snapshots


def draw(folder: Path) -> None:
    snapshots = rows(folder / "timeline.csv")
    points = [
        course_of([row for row in snapshots if row["data_ordering"] == order], "selectivity", label, scale=100)
        for order, label in (("shuffled", "shuffled order"), ("topic", "topic order"))
    ]
    curves(
        points,
        xlabel="training step",
        ylabel="topic selectivity (points)",
        title="Topic selectivity over training, mean over heads",
        references={"chance": 0.0},
        log_x=True,
    ).save(folder / "selectivity_by_order.svg")
    shuffled = [row for row in snapshots if row["data_ordering"] == "shuffled"]
    labels = {
        "gap_closed": "gap from guessing to the floor closed",
        SELECTIVITY: "topic selectivity, strongest head",
        INDUCTION: "induction, strongest head",
        PREVIOUS: "previous token, strongest head",
    }
    curves(
        [course_of(shuffled, name, label, of_highest=name != "gap_closed") for name, label in labels.items()],
        xlabel="training step",
        ylabel="share of the way to its highest value (%)",
        title="What forms when, in shuffled order",
        references={"half": 50.0},
        log_x=True,
    ).save(folder / "what_forms_when.svg")


def course_of(snapshots: list[Row], name: str, label: str, *, scale: float = 100.0, of_highest: bool = False) -> Curve:
    """The mean over trainings with the least and greatest; of its highest value in each training, where asked."""
    steps = sorted({int(row["step"]) for row in snapshots})
    course_CK = np.array(
        [
            [float(row[name]) for step in steps for row in snapshots if (row["seed"], row["step"]) == (seed, str(step))]
            for seed in sorted({row["seed"] for row in snapshots})
        ]
    )
    if of_highest:
        lowest_C1 = course_CK[:, :1]
        course_CK = (course_CK - lowest_C1) / (course_CK.max(1, keepdims=True) - lowest_C1)
    elif name == "gap_closed":
        course_CK = course_CK.clip(0)  # an untrained model is worse than guessing
    course_CK = scale * course_CK
    ends = {"low": course_CK.min(0), "high": course_CK.max(0)}
    return Curve(label=label, x=np.array(steps), y=course_CK.mean(0), **ends)


def main() -> None:
    folder = Path("experiments/emergence")
    if sweeps := [Path(name) for name in sys.argv[1:]]:
        trainings, snapshots = record(sweeps)
        lines = ",\n ".join(map(json.dumps, trainings))
        (folder / "trainings.json").write_text(f"[{lines}]\n", encoding="utf-8")
        with (folder / "timeline.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(snapshots[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(snapshots)
    draw(folder)


if __name__ == "__main__":
    main()
