"""The 2x2x2 matrix as the study ran it (protocol=original), three seeds.

`python -m tests.experiments.matrix_original` draws the figure.
"""

from __future__ import annotations

from pathlib import Path

from scipy import stats

from headdyn.core.figures import Interval, interval_plot
from headdyn.studies.pages import facts
from tests.experiments.matrix import unseen
from tests.experiments.records import Row, Scalar, average, fixed, p_is, p_of, rows, span, spelled, would_be_seen

SETTINGS = (
    "intervals are 95 %",
    "is below 0.05",
    "of Run 1: one seed, 27 M weights",
    # what the study reported, and what was predicted
    "of 3 to 4 points",
    "(entropy 3.7 to 4.6 nats)",
    "less than 1 point",
    "Selecting is worth under 0.1 nats",
    "within 0.05 nats",
    "lies below +3 points",
    "a recalibration of 1 % of the steps",
)
ORDER = ("shuffled", "topic")
ARMS = {"rope": "RoPE", "drope": "DroPE"}
OUTCOMES = {  # row of the table: (metric, scale)
    "topic selectivity (points of attention)": ("selectivity", 100),
    "within-topic attention (points)": ("within_ratio", 100),
    "probe accuracy, middle layer (points)": ("probe_accuracy_middle", 100),
    "held-out loss (nats)": ("loss_nats", 1),
}


def order_effects(runs: list[Row], metric: str) -> list[Scalar]:
    """The order's effect in RoPE runs and in DroPE runs, and the second less the first."""
    arms = [[row for row in runs if row["position_enc"] == arm] for arm in ARMS]
    # The change of the order's effect by the drop, within a seed: topic-ordered runs count once, shuffled ones against.
    signed = [
        row | {"effect": str((1 if row["data_ordering"] == "topic" else -1) * 2 * float(row[metric]))} for row in runs
    ]
    return [
        *(average(arm, metric, "data_ordering", *ORDER) for arm in arms),
        average(signed, "effect", "position_enc", *ARMS),
    ]


def beside_the_study(runs: list[Row]) -> list[str]:
    """A row for each arm: within-topic attention and the gap closed, in the study, here and by chance."""
    reported = facts("topic_order")
    random, floor = reported["random_loss_nats"], reported["bayes_loss_nats_claimed"]
    column = list(reported["columns"]).index("within_ratio")
    lines = []
    for arm, label in ARMS.items():
        for order, ordered in zip(ORDER, ("shuffled", "topic order"), strict=True):
            theirs = [
                row["values"] for row in reported["rows"] if (row["position_enc"], row["data_ordering"]) == (arm, order)
            ]
            mine = [row for row in runs if (row["position_enc"], row["data_ordering"]) == (arm, order)]
            assert len(theirs) == 2 and len(mine) == 6
            cells = [
                span((values[column] for values in theirs), 1),
                *(
                    span((float(row[name]) for row in mine), 0, scale=100)
                    for name in ("within_ratio", "within_ratio_null")
                ),
                span(((random - values[0]) / (random - floor) for values in theirs), 0, scale=100),
                span((float(row["gap_closed"]) for row in mine), 0, scale=100),
                span(map(without_the_topic, mine), 0, scale=100),
            ]
            lines.append(f"| {label}, {ordered} | {' | '.join(cells)} |")
    return [*lines, f"its own floor, {floor} nats"]


def without_the_topic(run: Row) -> float:
    """The share of the gap that the best bigram closes that does not know the topic."""
    random, mixture, floor = (float(run[f"{line}_nats"]) for line in ("random", "mixture", "floor"))
    return (random - mixture) / (random - floor)


def fragments(folder: Path) -> list[str]:
    runs = rows(folder / "summary.csv")
    arms = {arm: [row for row in runs if row["position_enc"] == arm] for arm in ARMS}
    seeds = {row["seed"] for row in runs}
    table = {label: order_effects(runs, metric) for label, (metric, _) in OUTCOMES.items()}
    dropped = {
        metric: average(runs, metric, "position_enc", *ARMS)
        for metric in ("within_ratio", "selectivity", "entropy_nats")
    }
    tests = [*(part for parts in table.values() for part in parts), *dropped.values()]
    q = stats.false_discovery_control([p_of(each) for each in tests])
    q_dropped = dict(zip(dropped, q[-len(dropped) :], strict=True))
    lines = []
    for label, parts in table.items():
        scale = OUTCOMES[label][1]
        cells = [spelled(part, scale=scale, signed=True) + unseen(part, scale) for part in parts]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    # What the answer and the verdicts say.
    assert min(q[: -len(dropped)]) > 0.05 > max(q_dropped["within_ratio"], q_dropped["entropy_nats"])
    assert all(float(row["selectivity"]) > 0.01 for row in arms["rope"]) and dropped["entropy_nats"]["value"] > 0
    assert table["probe accuracy, middle layer (points)"][2]["ci_high"] < 0.03
    assert not any(row["recovered"] == "true" for row in arms["drope"])
    worth = [float(row["position_only_nats"]) - float(row["floor_nats"]) for row in runs]
    selecting, within = (table[label] for label in list(OUTCOMES)[:2])

    def points(metric: str) -> str:
        return f"{spelled(dropped[metric], scale=100, signed=True)} points ({p_is(q_dropped[metric], 'q')})"

    def seen(parts: list[Scalar]) -> list[str]:
        return [f"{100 * would_be_seen(part):#.2g}" for part in parts[:2]]

    def losses(arm: str) -> str:
        return span((float(row["loss_nats"]) for row in arms[arm]), 2)

    def nulls(metric: str, places: int = 0) -> str:
        return span((float(row[metric]) for row in runs), places, scale=100)

    return [
        *lines,
        *beside_the_study(runs),
        f"{len(runs)} runs, {len(seeds)} seeds",
        f"With {len(seeds)} seeds no effect",
        f"one of {' or '.join(seen(selecting))} points of selectivity would be seen",
        f"attend {nulls('within_ratio_null')} % within the topic, and a bigram that does not know the topic closes "
        f"{span(map(without_the_topic, runs), 0, scale=100)} % of the gap",
        f"over all {len(tests)} comparisons of this page",
        f"{sum(row['recovered'] == 'true' for row in arms['drope'])} of {len(arms['drope'])} DroPE arms recovered",
        f"losses are {losses('rope')} nats before the drop and {losses('drope')} nats after a recalibration",
        f"Selecting is worth {fixed(min(worth), 3)} to {fixed(max(worth), 3)} nats",
        f"selectivities of {span((float(row['selectivity']) for row in arms['rope']), 1, scale=100)} points, DroPE runs of "
        f"{span((float(row['selectivity']) for row in arms['drope']), 1, scale=100)}",
        f"not supported: {span((float(row['selectivity']) for row in arms['rope']), 1, scale=100)} points in RoPE runs",
        f"Even attention has {nulls('within_ratio_uniform')} %",
        f"Probes of the middle layer are at their ceiling: {nulls('probe_accuracy_middle', 1)} % in all runs, and "
        f"{nulls('probe_token_identity', 1)} %",
        f"changes within-topic attention by {points('within_ratio')}, and selectivity by {points('selectivity')}",
        f"the entropy by {spelled(dropped['entropy_nats'], signed=True)} nats ({p_is(q_dropped['entropy_nats'], 'q')})",
        f"within-topic attention by {' and '.join(seen(within))} points would be seen",
    ]


def main() -> None:
    folder, marks = Path("experiments/matrix_original"), []
    for arm, name in ARMS.items():
        runs = rows(folder / "summary.csv", position_enc=arm)
        found = average(runs, "selectivity", "data_ordering", *ORDER)
        value, low, high = (100 * found[end] for end in ("value", "ci_low", "ci_high"))
        marks.append(Interval(label=f"{name} runs", value=value, low=low, high=high))
    xlabel = "topic selectivity, topic-ordered less shuffled (points)"
    interval_plot(marks, xlabel=xlabel, zero_line=True).save(folder / "effect_of_order.svg")


if __name__ == "__main__":
    main()
