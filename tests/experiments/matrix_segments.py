"""The 2x2x2 matrix on segments, three seeds."""

from __future__ import annotations

from pathlib import Path

from tests.experiments.matrix import with_bound
from tests.experiments.records import average, effect, p_is, read, rows, scalar, span, spelled

SETTINGS = (
    "intervals are 95 %",
    "where an interval holds 0",
    # what the study reported
    "its Run 1",
    "by 3 to 4 points",
    "(entropy 3.7 to 4.6 nats)",
)
ORDER = ("shuffled", "topic")
OUTCOMES = {  # row of the table: (metric, scale)
    "topic selectivity (points of attention)": ("selectivity", 100),
    "probe accuracy, middle layer (points)": ("probe_accuracy_middle", 100),
    "held-out loss (nats)": ("loss_nats", 1),
    "within-topic attention (points)": ("within_ratio", 100),
}


def order_effects(folder: Path, label: str) -> list[str]:
    """Topic-ordered less shuffled training: in RoPE runs, in DroPE runs, on average; and the q of the average."""
    metric, scale = OUTCOMES[label]
    runs = [row for row in rows(folder / "summary.csv") if row["position_enc"] in ("rope", "drope")]
    arms = [[row for row in runs if row["position_enc"] == arm] for arm in ("rope", "drope")]
    recorded = effect(folder / "effects.json", metric, {"data_ordering": ORDER})
    parts = [average(part, metric, "data_ordering", *ORDER) for part in (*arms, runs)]
    assert spelled(parts[-1], scale=scale) == spelled(recorded, scale=scale)
    return [*(with_bound(part, scale) for part in parts), p_is(recorded["q"], "q").removeprefix("q = ")]


def fragments(folder: Path) -> list[str]:
    runs, file = rows(folder / "summary.csv"), folder / "effects.json"
    arms = {arm: [row for row in runs if row["position_enc"] == arm] for arm in ("rope", "drope", "rope_control")}
    seeds = len({row["seed"] for row in runs})
    half = effect(file, "selectivity", {"data_ordering": ORDER, "position_enc": ("rope", "drope")})
    change = {part: 2 * half[part] for part in ("value", "ci_low", "ci_high")}  # science.md §17: half the difference
    entropy = effect(file, "entropy_nats", {"position_enc": ("rope", "drope")})
    within = order_effects(folder, "within-topic attention (points)")[1]
    _, dropped, pooled_order, q = order_effects(folder, "topic selectivity (points of attention)")
    # What the answer and the verdicts say.
    assert float(q) > 0.05 and entropy["q"] < 0.05
    probe = order_effects(folder, "probe accuracy, middle layer (points)")
    assert all(cell.startswith("−") for cell in probe[:3]) and float(probe[-1]) < 0.05

    def closed(order: str) -> str:
        return span((float(row["gap_closed"]) for row in arms["rope"] if row["data_ordering"] == order), 0, scale=100)

    def losses(arm: str) -> str:
        return span((float(row["loss_nats"]) for row in arms[arm]), 2)

    matched = read(folder / "matched_loss.json")
    pooled = {entry["outcome"]: spelled(entry, scale=100, signed=True) for entry in matched["pooled"]}
    beyond = [float(row["within_ratio"]) - float(row["within_ratio_null"]) for row in arms["rope"]]
    lens = [
        spelled(average(arms["rope"], f"{name}_selectivity_no_self", "data_ordering", *ORDER), scale=100, signed=True)
        for name in ("raw", "rollout", "tensorlens")
    ]
    seen_less = {
        other: spelled(
            average(arms["rope"], f"tensorlens_less_{other}_no_self", "data_ordering", *ORDER), scale=100, signed=True
        )
        for other in ("raw", "rollout")
    }
    pairs = [scalar(row, "tensorlens_less_raw_no_self") for row in runs]
    apart = sum(pair["ci_low"] > 0 or pair["ci_high"] < 0 for pair in pairs)
    assert not any(row["recovered"] == "true" for row in arms["drope"])
    return [
        *(f"| {label} | {' | '.join(order_effects(folder, label))} |" for label in OUTCOMES),
        f"{seeds} seeds of the eight conditions",
        f"{len(runs)} runs, one CPU thread each",
        f"is the seed ({seeds})",
        f"moves topic selectivity by {pooled_order} points of attention ({seeds} seeds, q = {q})",
        f"order's effect on selectivity by {spelled(change, scale=100, signed=True)} points, {p_is(half['q'], 'q')}",
        f"shuffled ones closed {closed('shuffled')} % of the gap",
        f"topic-ordered ones {closed('topic')} %",
        f"(pairs {span((abs(pair['loss_difference']) for pair in matched['pairs']), 3)} nats apart)",
        f"{pooled['selectivity']} points of selectivity and {pooled['probe_accuracy_middle']} points of probe accuracy",
        f"topic is {span((float(row['within_ratio']) for row in arms['rope']), 0, scale=100)} % in RoPE models",
        f"all but {span(beyond, 1, scale=100)} points of it",
        f"losses of {losses('drope')} nats, from {losses('rope')} before the drop",
        f"their rotation end at {losses('rope_control')}",
        f"In RoPE models: {lens[0]}, {lens[1]} and {lens[2]} points of selectivity by raw attention, rollout and TensorLens",
        f"TensorLens less raw attention {seen_less['raw']}, less rollout {seen_less['rollout']}, over seeds",
        f"are {span((pair['value'] for pair in pairs), 2, scale=100, signed=True)} points apart; {apart} of {len(pairs)} "
        "paired intervals exclude 0",
        f"q = {q} averaged over positions",
        f"after DroPE {dropped}, in arms that did not recover",
        f"undecided: {within}, in arms that did not recover",
        f"supported: {spelled(entropy, signed=True)} nats, {p_is(entropy['q'], 'q')}, in arms that did not recover",
    ]
