"""The matrix's topic-ordered arm with topics in eight turns or another topic last, beside the matrix's own runs.

`python -m tests.experiments.matrix_phases SWEEP…` records the sweeps' runs, in place of those of the same arm, and draws the
figure.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from headdyn.core.figures import Interval, interval_plot
from headdyn.sweep.record import SweepRecord
from tests.experiments.matrix import unseen, with_bound
from tests.experiments.matrix_cooldown import MATRIX, SHUFFLED
from tests.experiments.records import Row, Scalar, average, fixed, rows, spelled

SETTINGS = (
    "RoPE, ordinary heads",
    "those with one block are the matrix's own",
    "intervals are 95 %",
    "Beginning each round with topic 2, so that topic 1 comes last",
    # what was predicted
    "with 8 blocks less that with 1 lies above 0",
    "of what 8 blocks leave is below half of what 1 block leaves",
    "moves by less than 1.5 points",
    "and 0 lies within −1.5 and 1.5",
    "its interval lies below 0",
    "the interval holds 0",
)
ONE, EIGHT, OTHER = ARMS = ("one turn", "eight turns", "one turn, another topic last")
OUTCOMES = {  # column of the table: (metric, scale)
    "topic selectivity (points)": ("selectivity", 100),
    "of the most selective head (points)": ("selectivity_top", 100),
    "held-out loss (nats)": ("loss_nats", 1),
}


def record(sweeps: list[Path]) -> list[Row]:
    """The seed, the arm and the outcomes of every run."""
    found = []
    for job in (job for sweep in sweeps for job in SweepRecord.read(sweep).complete):
        config = job.run.manifest["config"]
        order = config["data_ordering"]
        arm = {(1, 2): OTHER, (8, 0): EIGHT}[order["blocks"], order["first_topic"]]
        outcomes = {metric: str(job.run.value(metric)) for metric, _ in OUTCOMES.values()}
        found.append({"seed": str(config["seed"]), "arm": arm, **outcomes})
    return found


def arms(folder: Path) -> list[Row]:
    """The runs with their arm, those of the matrix among them."""
    arm = {"shuffled": SHUFFLED, "topic": ONE}
    of_matrix = rows(MATRIX / "summary.csv", attention="mha", position_enc="rope")
    return [{**row, "arm": arm[row["data_ordering"]]} for row in of_matrix] + rows(folder / "summary.csv")


def difference(runs: list[Row], metric: str, arm: str, low: str = SHUFFLED) -> Scalar:
    """An arm less another within a seed, over seeds, with Student's interval."""
    return average([row for row in runs if row["arm"] in (low, arm)], metric, "arm", low, arm)


def fragments(folder: Path) -> list[str]:
    runs = arms(folder)
    one, eight, other = (difference(runs, "selectivity", arm) for arm in ARMS)
    turns, last = (difference(runs, "selectivity", arm, low=ONE) for arm in (EIGHT, OTHER))
    # What the verdicts say.
    assert eight["ci_low"] < one["value"] / 2 < eight["ci_high"] < 0
    assert turns["ci_low"] < 0 < turns["ci_high"]
    assert other["ci_high"] < 0 and -0.015 < last["ci_low"] < last["ci_high"] < 0.015
    seeds = {arm: {row["seed"] for row in runs if row["arm"] == arm} for arm in (SHUFFLED, *ARMS)}
    assert len(set(map(frozenset, seeds.values()))) == 1
    lines = []
    for arm in ARMS:
        cells = [with_bound(difference(runs, metric, arm), scale) for metric, scale in OUTCOMES.values()]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return [
        *lines,
        f"{len(seeds[SHUFFLED])} seeds",
        f"moves by {spelled(eight, scale=100, signed=True)} points ({len(seeds[SHUFFLED])} seeds)",
        f"moves by {spelled(other, scale=100, signed=True)} with another topic last",
        f"changes it by {spelled(last, scale=100, signed=True)} points{unseen(last, 100)}",
        f"changes the difference by {spelled(turns, scale=100, signed=True)} points{unseen(turns, 100)}",
        f"Half of what 1 block leaves is {fixed(50 * difference(runs, 'selectivity', ONE)['value'], 1)} points",
    ]


def main() -> None:
    folder = Path("experiments/matrix_phases")
    if sweeps := [Path(name) for name in sys.argv[1:]]:
        found = record(sweeps)
        arms_found = {row["arm"] for row in found}
        found = [row for row in rows(folder / "summary.csv") if row["arm"] not in arms_found] + found
        with (folder / "summary.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(found)
    runs, marks = arms(folder), []
    for arm in ARMS:
        found_here = difference(runs, "selectivity", arm)
        value, low, high = (100 * found_here[end] for end in ("value", "ci_low", "ci_high"))
        marks.append(Interval(label=arm, value=value, low=low, high=high))
    xlabel = "topic selectivity, topic-ordered less shuffled (points)"
    interval_plot(marks, xlabel=xlabel, zero_line=True).save(folder / "difference_by_phases.svg")


if __name__ == "__main__":
    main()
