"""The 2x2x2 matrix as the study ran it (protocol=original), three seeds.

`python -m tests.experiments.matrix_original` draws the figure.
"""

from __future__ import annotations

from pathlib import Path

from headdyn.core.figures import Interval, interval_plot
from tests.experiments.records import average, fixed, rows, span, spelled

SETTINGS = (
    "intervals are 95 %",
    # what the study reported, and what was predicted
    "its Run 1",
    "of 3 to 4 points",
    "(entropy 3.7 to 4.6 nats)",
    "less than 1 point",
    "Selecting is worth under 0.1 nats",
    "within 0.05 nats",
    "lies below +3 points",
    "a recalibration of 1 % of the steps",
)
ORDER = ("shuffled", "topic")
OUTCOMES = {  # row of the table: (metric, scale)
    "topic selectivity (points of attention)": ("selectivity", 100),
    "within-topic attention (points)": ("within_ratio", 100),
    "probe accuracy, middle layer (points)": ("probe_accuracy_middle", 100),
    "held-out loss (nats)": ("loss_nats", 1),
}


def fragments(folder: Path) -> list[str]:
    runs = rows(folder / "summary.csv")
    arms = {arm: [row for row in runs if row["position_enc"] == arm] for arm in ("rope", "drope")}
    seeds = {row["seed"] for row in runs}
    lines = []
    for label, (metric, scale) in OUTCOMES.items():
        parts = [average(arms[arm], metric, "data_ordering", *ORDER) for arm in arms]
        # The change of the order's effect by the drop, within a seed: topic-ordered runs count once, shuffled ones against.
        signed = [
            row | {"effect": str((1 if row["data_ordering"] == "topic" else -1) * 2 * float(row[metric]))}
            for row in runs
        ]
        parts.append(average(signed, "effect", "position_enc", "rope", "drope"))
        lines.append(f"| {label} | {' | '.join(spelled(part, scale=scale, signed=True) for part in parts)} |")
    entropy = average(runs, "entropy_nats", "position_enc", "rope", "drope")
    worth = [float(row["position_only_nats"]) - float(row["floor_nats"]) for row in runs]

    def losses(arm: str) -> str:
        return span((row["loss_nats"] for row in arms[arm]), 2)

    def closed(order: str) -> str:
        mine = [row["gap_closed"] for row in arms["rope"] if row["data_ordering"] == order]
        return span(mine, 0, scale=100)

    assert all(float(row["selectivity"]) > 0.01 for row in arms["rope"])
    return [
        *lines,
        f"{len(runs)} runs, {len(seeds)} seeds",
        f"{sum(row['recovered'] == 'true' for row in arms['drope'])} of {len(arms['drope'])} DroPE arms recovered",
        f"from {losses('rope')} to {losses('drope')} nats",
        f"{closed('shuffled')} % of the gap in shuffled order, {closed('topic')} % in topic order",
        f"Selecting is worth {fixed(min(worth), 3)} to {fixed(max(worth), 3)} nats",
        f"selectivities of {span((row['selectivity'] for row in arms['rope']), 1, scale=100)} points",
        f"Probes of the middle layer are at their ceiling: {span((row['probe_accuracy_middle'] for row in runs), 1, scale=100)} "
        f"% in all runs, and {span((row['probe_token_identity'] for row in runs), 1, scale=100)} %",
        f"raises selectivity by {spelled(average(runs, 'selectivity', 'position_enc', 'rope', 'drope'), scale=100, signed=True)} points",
        f"raises the entropy by {spelled(entropy, signed=True)} nats",
    ]


def main() -> None:
    folder, marks = Path("experiments/matrix_original"), []
    for arm, label in (("rope", "RoPE runs"), ("drope", "DroPE runs")):
        runs = rows(folder / "summary.csv", position_enc=arm)
        found = average(runs, "selectivity", "data_ordering", *ORDER)
        value, low, high = (100 * found[end] for end in ("value", "ci_low", "ci_high"))
        marks.append(Interval(label=label, value=value, low=low, high=high))
    xlabel = "topic selectivity, topic-ordered less shuffled (points)"
    interval_plot(marks, xlabel=xlabel, zero_line=True).save(folder / "effect_of_order.svg")


if __name__ == "__main__":
    main()
