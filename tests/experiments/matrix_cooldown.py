"""The matrix's topic-ordered arm with shuffled ends of different lengths, beside the matrix's own runs.

`python -m tests.experiments.matrix_cooldown` draws the figure.
"""

from __future__ import annotations

from pathlib import Path

from headdyn.core.figures import Interval, interval_plot
from tests.experiments.matrix import with_bound
from tests.experiments.records import Row, Scalar, average, fixed, rows, spelled

SETTINGS = (
    "RoPE, ordinary heads",
    "those at 0.25 are the matrix's own",
    "intervals are 95 %",
    "Where one holds 0",
    # what was predicted
    "at a share of 0.75 less that at 0.25 lies above 0",
    "At a share of 0.75 less than half of what 0.25 leaves",
    "of what 0.75 leaves is nearer to 0 than half of what 0.25 leaves",
    "at a share of 0 lies above 0",
    "at 0.75 less than half of what 0.25 leaves remains",
)
MATRIX = Path(__file__).parents[2] / "experiments" / "matrix"
SHUFFLED, SHARES = "shuffled", ("0", "0.25", "0.5", "0.75")
OUTCOMES = {  # column of the table: (metric, scale)
    "topic selectivity (points)": ("selectivity", 100),
    "held-out loss (nats)": ("loss_nats", 1),
    "forgetting (nats)": ("forgetting_nats", 1),
}


def arms(folder: Path) -> list[Row]:
    """The runs with their arm: shuffled, or the share of the steps that a topic-ordered training took shuffled."""
    of_matrix = rows(MATRIX / "summary.csv", attention="mha", position_enc="rope")
    share = {"shuffled": SHUFFLED, "topic": "0.25"}
    compared = [{**row, "arm": share[row["data_ordering"]]} for row in of_matrix]
    return compared + [{**row, "arm": row["data_ordering.cooldown_share"]} for row in rows(folder / "summary.csv")]


def difference(runs: list[Row], metric: str, share: str, low: str = SHUFFLED) -> Scalar:
    """An arm less another within a seed, over seeds, with Student's interval."""
    return average([row for row in runs if row["arm"] in (low, share)], metric, "arm", low, share)


def selectivity(runs: list[Row], seed: str, arm: str) -> float:
    (run,) = (row for row in runs if (row["seed"], row["arm"]) == (seed, arm))
    return float(run["selectivity"])


def fragments(folder: Path) -> list[str]:
    runs = arms(folder)
    seeds = {arm: {row["seed"] for row in runs if row["arm"] == arm} for arm in (SHUFFLED, *SHARES)}
    assert len(set(map(frozenset, seeds.values()))) == 1
    found = {share: difference(runs, "selectivity", share) for share in SHARES}
    longer, shorter = (difference(runs, "selectivity", high, low) for low, high in (("0.25", "0.75"), ("0", "0.25")))
    forgetting = difference(runs, "forgetting_nats", "0")
    # What the verdicts say.
    # Within a seed: what 0.75 leaves, less half of what 0.25 leaves.
    levels = {"0.75": ("b", 1.0), "0.25": ("a", 0.5)}
    paired = average(
        [
            {
                "seed": seed,
                "arm": name,
                "left": str(share * (selectivity(runs, seed, arm) - selectivity(runs, seed, SHUFFLED))),
            }
            for seed in seeds[SHUFFLED]
            for arm, (name, share) in levels.items()
        ],
        *("left", "arm", "a", "b"),
    )
    assert longer["ci_low"] > 0 and shorter["ci_low"] > 0 and paired["ci_high"] < 0 and found["0.75"]["ci_high"] < 0
    assert forgetting["ci_low"] < 0 < forgetting["ci_high"]
    loss = difference(runs, "loss_nats", "0.75")
    assert loss["ci_low"] < 0 < loss["ci_high"]
    lines = []
    for share in SHARES:
        cells = [with_bound(difference(runs, metric, share), scale) for metric, scale in OUTCOMES.values()]
        lines.append(f"| {share} | {' | '.join(cells)} |")
    return [
        *lines,
        f"from 0.25 to 0.75 changes the difference by {spelled(longer, scale=100, signed=True)} points; from 0 to 0.25 it "
        f"changes by {spelled(shorter, scale=100, signed=True)}",
        f"differ from those on shuffled data by {spelled(found['0.75'], scale=100, signed=True)} points",
        f"{len(seeds[SHUFFLED])} seeds",
        f"at a share of 0.75 is higher by {fixed(loss['ci_high'], 4)} nats at most",
        f"what 0.75 leaves exceeds half of what 0.25 leaves, {spelled(paired, scale=100, signed=True)} points",
        f"{spelled(forgetting, signed=True)} nats",
    ]


def main() -> None:
    folder = Path("experiments/matrix_cooldown")
    runs = arms(folder)
    marks = []
    for share in SHARES:
        found = difference(runs, "selectivity", share)
        value, low, high = (100 * found[end] for end in ("value", "ci_low", "ci_high"))
        marks.append(Interval(label=f"{100 * float(share):.0f} % shuffled", value=value, low=low, high=high))
    xlabel = "topic selectivity, topic-ordered less shuffled (points)"
    interval_plot(marks, xlabel=xlabel, zero_line=True).save(folder / "difference_by_cooldown.svg")


if __name__ == "__main__":
    main()
