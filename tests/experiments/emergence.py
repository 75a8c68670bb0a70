"""When heads form on conversations: trainings of the matrix followed through 32 snapshots each.

Conditions are shuffled and topic-ordered data with ordinary heads, and shuffled data with grouped queries.

`python -m tests.experiments.emergence SWEEP…` records the sweeps and draws the figures.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headdyn.analysis.series.prediction import moving_together_over_trainings
from headdyn.core.figures import Curve, curves
from headdyn.core.numbers import number
from tests.experiments.records import (
    Row,
    Scalar,
    average,
    fixed,
    p_is,
    percent,
    read,
    rows,
    share,
    span,
    spelled,
    would_be_seen,
)

SETTINGS = (
    "intervals are 95 %",
    "brackets hold 95 % intervals",
    "(20 points above chance)",
    "(from step 600)",
    "(q ≤ 0.05) from a step on",
    "correlate below 0 from snapshot to snapshot with q < 0.05, in every training",
    "from step 16 on",
    "no later by a factor of 1.5 | supported",
    "all heads from step 16",
    "all 128 tokens",
    "begins below 0: an untrained model",
    "(4 seeds in shuffled order; heads were held",
    "later (above 1) or earlier (below 1)",
    "A factor of 1.000: at the same",
    "of its height no later by a factor of 1.5",
    "by less than a factor of 2",
    "lies within −1 and 1",
    "a factor of 1.5 (the upper end of the same interval lies below log₂ 1.5 = 0.585)",
)
MEASURES = {  # row of the table: (measure, scale, digits)
    "loss saved on a pair's repeat (nats)": ("repeat_gain_nats", 1, 2),
    "induction, strongest head (points above chance)": ("induction_top", 100, 0),
    "topic selectivity, strongest head (points)": ("selectivity_top", 100, 0),
    "attention on the previous token, strongest head (points)": ("previous_token_top", 100, 0),
    "attention on position 0, strongest head (points)": ("sink_rate_top", 100, 0),
}
Training = dict[str, Any]
INDUCTION, SELECTIVITY, PREVIOUS = "induction_top", "selectivity_top", "previous_token_top"
DATED = ("repeat_gain_nats", SELECTIVITY, INDUCTION, PREVIOUS)
COURSES = ("loss_nats", "gap_closed", "selectivity", *DATED)
WHEN = {  # row of the table of dates
    SELECTIVITY: "topic selectivity, strongest head",
    INDUCTION: "induction, strongest head",
    PREVIOUS: "attention on the previous token, strongest head",
    "repeat_gain_nats": "loss saved on a pair's repeat",
    "gap_closed": "half of the gap from guessing to the floor",
}
LEVELS = {  # row of the table of dates: (course, level); chosen after the results
    "topic selectivity, strongest head, 10 points": (SELECTIVITY, 0.1),
    "topic selectivity, mean over heads, 5 points": ("selectivity", 0.05),
}
FIRST_UNSEEN = 4  # the first seed in topic order whose results were not known when its dates were predicted
EVEN = math.log(128)  # the loss of giving all 128 tokens the same probability
STEPS = (0, 11, 16, 28, 51, 136, 444, 800)
CONDITIONS = SHUFFLED, TOPIC, GROUPED = ("shuffled", "topic", "grouped")


def fragments(folder: Path) -> list[str]:
    trainings, snapshots = read(folder / "trainings.json"), rows(folder / "timeline.csv")
    of = {name: [each for each in trainings if each["condition"] == name] for name in CONDITIONS}
    seeds = {name: [each["seed"] for each in of[name]] for name in CONDITIONS}
    n = len(of[SHUFFLED])
    assert seeds[SHUFFLED] == seeds[TOPIC] == seeds[GROUPED]
    assert all(each["predicted"]["induction"]["half_have_the_role_by"] is None for each in trainings)
    assert not any(each["measures"]["sink_rate_top"]["emerges_at_step"] for each in trainings)
    first = {name: [surely(each, INDUCTION, SELECTIVITY) for each in of[name]] for name in CONDITIONS}
    counts = {sign: [signs.count(sign) for signs in first.values()] for sign in (1, -1)}
    assert 0 < sum(counts[1]) < sum(counts[-1])
    told = [each for each in trainings if told_before(each)]
    assert 0 < len(told) < len(trainings) / 4
    dates = [date(each, SELECTIVITY, snapshots) for each in trainings]
    early = [each for each in dates if each is not None and each[1] < 0.05 * 800]
    first_step, last_step = min(after for after, _ in early), max(at for _, at in early)
    assert len(early) == len(trainings)
    within = [each for each in trainings if within_steps(half_height(each, INDUCTION), first_step, last_step)]
    closed = [gap_half_closed(each, snapshots) for each in of[SHUFFLED]]
    from_tokens = [gap_half_closed(each, snapshots, EVEN) for each in of[SHUFFLED]]
    apart = [abs(difference) for difference in from_the_matrix(snapshots)]
    together = moving_together_over_trainings(courses(snapshots, SELECTIVITY), np.random.default_rng(0))[0]
    lower = lower_from(snapshots)
    return [
        *formed(of[SHUFFLED]),
        *(dated(each, snapshots) for each in trainings),
        *(dates_by_condition(name, label, of, snapshots) for name, label in WHEN.items()),
        *(levels_by_condition(course, level, label, of, snapshots) for label, (course, level) in LEVELS.items()),
        *(over_training(snapshots, step) for step in STEPS),
        *dating(of, snapshots),
        *without_grouped_effect(snapshots),
        f"between steps {first_step} and {last_step} of 800 in {len(early)} of {len(trainings)} trainings",
        f"in {len(within)} of {len(trainings)}",
        f"{n} trainings of 800 steps in each condition, 32 snapshots of each",
        f"between steps {min(a for a, _ in closed)} and {max(b for _, b in closed)}",
        "Both are surely at half of their height before half of the gap closes in "
        + listed([sum(both_before_the_loss(each, snapshots) for each in of[name]) for name in CONDITIONS], n),
        f"between steps {min(a for a, _ in from_tokens)} and {max(b for _, b in from_tokens)} instead, and both are surely "
        "earlier in "
        + listed([sum(both_before_the_loss(each, snapshots, EVEN) for each in of[name]) for name in CONDITIONS], n),
        f"Induction is surely before selectivity in {listed(counts[1], n)}; surely after it in {listed(counts[-1], n)}",
        "surely later than selectivity in "
        + listed([sum(surely(each, PREVIOUS, SELECTIVITY) == -1 for each in of[name]) for name in CONDITIONS], n),
        f"mean over heads is lower than in shuffled order at every snapshot from step {lower} on",
        f"select less from step {lower} on",
        f"over {n} seeds",
        f"in {len(told)} of {len(trainings)} trainings",
        f"by {fixed(together['within'], 2, signed=True)} within a training and by "
        f"{fixed(together['across'], 2, signed=True)} between trainings ({p_is(together['p'])})",
        f"{len(apart)} of these trainings, that is all, are runs of the matrix, made again by later code: their losses differ by at most "
        f"{number(max(apart))} nats",
    ]


def listed(counts: list[int], n: int) -> str:
    """`5, 4 and 6 of 8`: a count for every condition."""
    return f"{', '.join(map(str, counts[:-1]))} and {counts[-1]} of {n}"


def date(training: dict[str, Any], name: str, snapshots: list[Row]) -> tuple[int, int] | None:
    """Between which snapshots a curve is first at half of its height; of the loss, at half of the gap to the floor."""
    return gap_half_closed(training, snapshots) if name == "gap_closed" else half_height(training, name)


def ratio(step_of: Callable[[Training], float], condition: str, of: dict[str, list[Training]]) -> Scalar:
    """Mean binary logarithm of a condition's date over that of shuffled data, same seed, with Student's interval."""
    cells = [
        {"arm": arm, "seed": str(training["seed"]), "step": str(np.log2(step_of(training)))}
        for arm in (SHUFFLED, condition)
        for training in of[arm]
    ]
    return average(cells, "step", "arm", SHUFFLED, condition)


def factor(later: Scalar) -> str:
    return spelled({part: 2 ** later[part] for part in ("value", "ci_low", "ci_high")})


def middle(name: str, snapshots: list[Row]) -> Callable[[Training], float]:
    """The date of a training's curve: the geometric mean of the snapshots between which it lies."""

    def step(training: Training) -> float:
        found = date(training, name, snapshots)
        assert found is not None
        return math.sqrt(found[0] * found[1])

    return step


def dates_by_condition(name: str, label: str, of: dict[str, list[Training]], snapshots: list[Row]) -> str:
    """A curve's row: within which steps it is at half of its height, and by what factor a condition is later."""
    cells = []
    for condition in CONDITIONS:
        found = [date(training, name, snapshots) for training in of[condition]]
        known = [each for each in found if each is not None]
        assert len(known) == len(found)
        cells.append(f"{min(first for first, _ in known)} to {max(last for _, last in known)}")
        if condition != SHUFFLED:
            cells.append(factor(ratio(middle(name, snapshots), condition, of)))
    return f"| {label} | {' | '.join(cells)} |"


def levels_by_condition(
    name: str, level: float, label: str, of: dict[str, list[Training]], snapshots: list[Row]
) -> str:
    """A curve's row: at which steps it reaches a level (linear between snapshots), and by what factor a condition later."""

    def step(training: Training) -> float:
        course = by_step(training, name, snapshots)
        before, after = first_at(course, level)
        return before + (after - before) * (level - course[before]) / (course[after] - course[before])

    cells = []
    for condition in CONDITIONS:
        cells.append(span(map(step, of[condition]), 0))
        if condition != SHUFFLED:
            cells.append(factor(ratio(step, condition, of)))
    return f"| {label} | {' | '.join(cells)} |"


def dating(of: dict[str, list[Training]], snapshots: list[Row]) -> list[str]:
    """What was predicted of when heads form in topic order and with grouped queries."""
    topic, *grouped = (
        ratio(middle(name, snapshots), condition, of)
        for name, condition in ((SELECTIVITY, TOPIC), (SELECTIVITY, GROUPED), (INDUCTION, GROUPED))
    )
    later = {name: [each for each in found if each["seed"] >= FIRST_UNSEEN] for name, found in of.items()}
    alone = ratio(middle(SELECTIVITY, snapshots), TOPIC, later)
    seen = [fixed(2 ** would_be_seen(each), 1) for each in grouped]
    assert topic["ci_high"] < math.log2(1.5)
    assert all(-1 < each["ci_low"] < each["ci_high"] < 1 for each in grouped)
    return [
        f"by grouped queries was found (a factor of {seen[0]} would be seen, of induction one of {seen[1]})",
        f"results were known, the other four alone give {factor(alone)} |",
        f"half of its own height no later, or by {percent(2 ** topic['ci_high'] - 1)} % at most",
        f"the mean log₂ of the ratio of dates is {spelled(topic, signed=True)}",
        f"{spelled(grouped[0], signed=True)} for selectivity, {spelled(grouped[1], signed=True)} for induction",
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
        lines.append(f"| {label} | {share(len(emerged), n)} | {steps} | {last} |")
    return lines


def dated(training: dict[str, Any], snapshots: list[Row]) -> str:
    """A training's row of dates: between which steps each curve is first at half of its height."""
    dates = [half_height(training, name) for name in DATED]
    cells = [
        "–" if date is None else f"{date[0]} to {date[1]}" for date in (*dates, gap_half_closed(training, snapshots))
    ]
    topic = training["predicted"]["topic"]
    cells += ["never" if topic[key] is None else str(topic[key]) for key in ("from_step", "half_have_the_role_by")]
    return f"| {training['condition']} {training['seed']} | {' | '.join(cells)} |"


def compared(snapshots: list[Row], step: int, metric: str, condition: str) -> Scalar:
    """A condition less shuffled data at a step, within a seed, over seeds."""
    at = [row for row in snapshots if row["step"] == str(step) and row["condition"] in (SHUFFLED, condition)]
    return average(at, metric, "condition", SHUFFLED, condition)


def over_training(snapshots: list[Row], step: int) -> str:
    """A step's row: selectivity with shuffled data, and what topic order and grouped queries change of it and the loss."""
    at = [row for row in snapshots if row["step"] == str(step) and row["condition"] == SHUFFLED]
    cells = [fixed(100 * float(np.mean([float(row["selectivity"]) for row in at])), 1)]
    for condition in (TOPIC, GROUPED):
        for metric, scale in (("selectivity", 100), ("loss_nats", 1)):
            cells.append(spelled(compared(snapshots, step, metric, condition), scale=scale, signed=True))
    return f"| {step} | {' | '.join(cells)} |"


def without_grouped_effect(snapshots: list[Row]) -> list[str]:
    """At the steps shown grouped queries change neither selectivity nor loss; what would be seen of it at the end."""
    for step in STEPS:
        changes = [compared(snapshots, step, metric, GROUPED) for metric in ("selectivity", "loss_nats")]
        assert all(change["ci_low"] < 0 < change["ci_high"] for change in changes)
    points, loss, in_order = (
        would_be_seen(compared(snapshots, STEPS[-1], metric, condition))
        for metric, condition in (("selectivity", GROUPED), ("loss_nats", GROUPED), ("loss_nats", TOPIC))
    )
    return [
        f"at the end {fixed(100 * points, 1)} points of selectivity and {fixed(loss, 4)} nats would be seen",
        f"a difference of {fixed(in_order, 4)} nats at the end would be seen",
    ]


def lower_from(snapshots: list[Row]) -> int:
    """The first step from which topic order's interval of selectivity lies below 0 at every snapshot."""
    steps = sorted({int(row["step"]) for row in snapshots})
    below = [compared(snapshots, step, "selectivity", TOPIC)["ci_high"] < 0 for step in steps]
    return next(step for i, step in enumerate(steps) if all(below[i:]))


def from_the_matrix(snapshots: list[Row]) -> list[float]:
    """The last snapshots' losses less those of the matrix's runs of the same seed and condition."""
    runs = rows(Path(__file__).parents[2] / "experiments" / "matrix" / "summary.csv", position_enc="rope")
    recorded = {(condition_of(run), run["seed"]): float(run["loss_nats"]) for run in runs}
    last = [row for row in snapshots if row["step"] == str(STEPS[-1])]
    return [float(row["loss_nats"]) - recorded[row["condition"], row["seed"]] for row in last]


def condition_of(factors: Mapping[str, Any]) -> str:
    """Which of the three conditions a training is; with both changes it is none of them."""
    changes = factors["data_ordering"] == "topic", factors["attention"] == "gqa"
    return {(False, False): SHUFFLED, (True, False): TOPIC, (False, True): GROUPED}.get(changes, "both")


def within_steps(dated: tuple[int, int] | None, first: int, last: int) -> bool:
    return dated is not None and first <= dated[0] and dated[1] <= last


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


def by_step(training: Training, name: str, snapshots: list[Row]) -> dict[int, float]:
    """A training's curve: its values by step."""
    which = training["condition"], str(training["seed"])
    return {int(row["step"]): float(row[name]) for row in snapshots if (row["condition"], row["seed"]) == which}


def gap_half_closed(training: dict[str, Any], snapshots: list[Row], guess: float | None = None) -> tuple[int, int]:
    """Between which snapshots half of the gap from guessing to the floor closes.

    Guessing is the corpus's: every symbol and, at the rate of the corpus, every speaker alike. `guess` is another loss in
    nats to start from.
    """
    course = by_step(training, "gap_closed", snapshots)
    if guess is not None:
        losses = by_step(training, "loss_nats", snapshots)
        first, *_, last = course
        # The loss is linear in the share of the gap that is closed, and is the floor where all of it is.
        slope = (losses[last] - losses[first]) / (course[last] - course[first])
        floor = losses[last] + slope * (1 - course[last])
        course = {step: (guess - loss) / (guess - floor) for step, loss in losses.items()}
    return first_at(course, 0.5)


def both_before_the_loss(training: dict[str, Any], snapshots: list[Row], guess: float | None = None) -> bool:
    """Whether induction and selectivity reach half of their height surely before half of the gap closes."""
    dates = training["order"]["half_height"]["intervals"]
    return all(dates[name][1] <= gap_half_closed(training, snapshots, guess)[0] for name in (INDUCTION, SELECTIVITY))


def courses(snapshots: list[Row], metric: str) -> list[dict[str, dict[int, float]]]:
    """A metric and the loss by step, of every training in shuffled order."""
    mine = [row for row in snapshots if row["condition"] == SHUFFLED]
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
            which = condition_of(factors), factors["seed"]
            training = trainings.setdefault(which, {"condition": which[0], "seed": which[1]})
            if entry["analysis"] == "emergence":
                training["measures"] = {name: verdict["measures"][name] for name, _, _ in MEASURES.values()}
                training["order"] = verdict["order"]
            else:
                training["predicted"] = verdict["predicted"]
        for run in rows(sweep / "summary.csv"):
            step = {"step": run["revision"].removeprefix("step")}
            which = {"condition": condition_of(run), "seed": run["seed"]}
            snapshots.append(which | step | {name: run[name] for name in COURSES})
    return [trainings[which] for which in sorted(trainings, key=place)], snapshots


def place(which: tuple[str, int]) -> tuple[int, int]:
    return CONDITIONS.index(which[0]), which[1]


def draw(folder: Path) -> None:
    snapshots = rows(folder / "timeline.csv")
    points = [
        course_of([row for row in snapshots if row["condition"] == condition], "selectivity", label, scale=100)
        for condition, label in zip(CONDITIONS, ("shuffled order", "topic order", "grouped queries"), strict=True)
    ]
    curves(
        points,
        xlabel="training step",
        ylabel="topic selectivity (points)",
        title="Topic selectivity over training, mean over heads",
        references={"chance": 0.0},
        log_x=True,
    ).save(folder / "selectivity_over_training.svg")
    shuffled = [row for row in snapshots if row["condition"] == SHUFFLED]
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
