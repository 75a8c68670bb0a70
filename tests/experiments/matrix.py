"""The 2x2x2 matrix on conversations, eight seeds, with the arms that tell a drop of positions from further training.

`python -m tests.experiments.matrix SWEEP` records what the drop does to the order's effect at each layer of a sweep, and
`python -m tests.experiments.matrix corpora FOLDER…` how far topic order keeps the topics of these corpora apart.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from headdyn.data.ordering import dominant_topics
from headdyn.studies.topic_order.retention import collapse, retention, two_groups
from headdyn.sweep.effects import unrecovered
from headdyn.sweep.record import SweepRecord
from tests.experiments.records import average, effect, fixed, p_is, read, rows, span, spelled, would_be_seen

SETTINGS = (
    "800 steps each",
    "intervals are 95 %",
    "0.05 nats of the loss",
    "reaches 15 points",
    "no q is below 0.05",
    "of one test at p < 0.05",
    "for q < 0.05 among all outcomes",
    "in layer 1 before the drop",
    "normal values (p < 0.05",
    # what was predicted
    "lower by 2 to 7 points, at losses within 0.02 nats",
    "between 0 and +2 points",
    "the interval holds 0 and most",
    "within 2 points of 0 (positive",
)
OUTCOMES = {  # row of the table: (metric, scale)
    "topic selectivity (points of attention)": ("selectivity", 100),
    "of the most selective head (points)": ("selectivity_top", 100),
    "probe accuracy, middle layer (points)": ("probe_accuracy_middle", 100),
    "held-out loss (nats)": ("loss_nats", 1),
    "attention entropy (nats)": ("entropy_nats", 1),
}
ORDER = {"data_ordering": ["shuffled", "topic"]}
HEADS = {"attention": ["mha", "gqa"]}
POSITIONS = {"position_enc": ["rope", "drope"]}
RETENTION = {**ORDER, **POSITIONS}


def cell(entry: dict[str, Any], scale: float) -> str:
    return f"{spelled(entry, scale=scale, signed=True)}, {p_is(entry['q'], 'q')}"


def row(folder: Path, label: str) -> str:
    metric, scale = OUTCOMES[label]
    cells = [
        cell(effect(folder / "effects.json", metric, levels), scale) for levels in (ORDER, HEADS, POSITIONS, RETENTION)
    ]
    return f"| {label} | {' | '.join(cells)} |"


def record(sweep: Path) -> dict[str, Any]:
    """What dropping positions changes: the order's effect by layer, heads in two groups, and the loss on its way back."""
    jobs = [job for job in SweepRecord.read(sweep).complete if not unrecovered(job.run)]
    losses = []  # in nats over the loss before the drop: right after it, at its highest and at the end
    for facts in (job.run.scalars["recalibration"] for job in jobs if job.recalibrated):
        course = [loss - facts["parent_loss_nats"] for loss in facts["val_loss_nats"].values()]
        losses.append({"after": course[0], "highest": max(course), "end": course[-1]})
    return {"layers": retention(jobs), "two_groups": two_groups(jobs), "collapse": collapse(jobs), "losses": losses}


def by_layer(entry: dict[str, Any]) -> str:
    measure = {"selectivity": "topic selectivity", "probe_accuracy": "probe accuracy"}[entry["measure"]]
    cells = [spelled(part, scale=100, signed=True) for part in (entry["rope"], entry["drope"], entry)]
    # No bound stands beside a difference that is larger than it.
    detectable = float(f"{100 * entry['detectable']:.2g}")
    bound = f"{detectable:g}" if abs(entry["value"]) <= entry["detectable"] else "–"
    return f"| {measure} | {entry['layer']} | {' | '.join(cells)} | {fixed(entry['q'], 2)} | {bound} |"


def fragments(folder: Path) -> list[str]:
    runs = rows(folder / "summary.csv")
    arms = {name: [run for run in runs if run["position_enc"] == name] for name in ("rope", "drope")}
    seeds = len({run["seed"] for run in runs})
    plain = [run for run in runs if run["attention"] == "mha" and run["data_ordering"] == "shuffled"]
    others = rows(folder / "controls.csv")
    raw = [run | {"position_enc": "raw"} for run in rows(folder / "raw_drop.csv", data_ordering="shuffled")]
    compared = [*plain, *others, *raw]

    def less_rope(arm: str, metric: str, scale: float = 1) -> str:
        return spelled(average(compared, metric, "position_enc", "rope", arm), scale=scale, signed=True)

    def selectivity(arm: str, order: str) -> str:
        chosen = [run for run in arms[arm] if run["data_ordering"] == order]
        return span((run["selectivity"] for run in chosen), 1, scale=100)

    file = folder / "effects.json"
    at_equal_loss = read(folder / "matched_loss.json")["pooled"]
    matched, dropped = (
        {entry["outcome"]: entry for entry in at_equal_loss if entry["factor"] == factor}
        for factor in ("data_ordering", "position_enc")
    )
    simple = {arm: effect(file, "selectivity", ORDER, {"position_enc": arm}) for arm in arms}
    gqa = effect(file, "selectivity", HEADS)
    interaction = effect(file, "selectivity", RETENTION)
    forgetting = effect(file, "forgetting_nats", ORDER)
    best = [float(run["selectivity_top"]) for run in arms["rope"]]
    recovered = sum(run["recovered"] == "true" for run in arms["drope"])
    worth = [float(run["position_only_nats"]) - float(run["floor_nats"]) for run in runs]
    by_layers = read(folder / "retention.json")
    significant = [entry for entry in by_layers["layers"] if entry["q"] < 0.05]
    apart = [entry for entry in by_layers["layers"] if entry["ci_low"] > 0 or entry["ci_high"] < 0]
    losses = by_layers["losses"]
    order = read(folder / "order.json")
    assert len(order) == seeds
    assert len(losses) == len(arms["drope"]) and max(loss["after"] for loss in losses) < 0.05
    in_groups = sum(entry["p"] < 0.05 for entry in by_layers["two_groups"])
    assert not significant
    assert all(float(run["loss_nats"]) > float(run["floor_nats"]) for run in runs)
    blind = span((float(run["speaker_blind_nats"]) - float(run["floor_nats"]) for run in runs), 2)
    by_topic = [
        run | {"apart": str(float(run["selectivity_first_topic"]) - float(run["selectivity_last_topic"]))}
        for run in runs
    ]
    first, last, apart_by_topic = (
        average(by_topic, metric, "data_ordering", "shuffled", "topic")
        for metric in ("selectivity_first_topic", "selectivity_last_topic", "apart")
    )
    assert apart_by_topic["ci_low"] < 0 < apart_by_topic["ci_high"]
    return [
        *(row(folder, label) for label in OUTCOMES),
        f"{span((each['of_block'] for each in order), 0, scale=100)} % of the tokens in a topic's block are of this topic",
        f"{span((1 - each['of_topic'] for each in order), 0, scale=100)} % of its tokens come in other blocks",
        f"stays {blind} nats above the floor",
        f"{spelled(first, scale=100, signed=True)} points of the selectivity of queries on the topic met first and "
        f"{spelled(last, scale=100, signed=True)} on the topic met last",
        f"the two differ by {spelled(apart_by_topic, scale=100, signed=True)} points; a difference of "
        f"{fixed(100 * would_be_seen(apart_by_topic), 1)} would have been seen",
        f"{len(runs)} runs, {seeds} seeds",
        f"by {spelled(simple['rope'], scale=100, signed=True)} points in RoPE runs and by "
        f"{spelled(simple['drope'], scale=100, signed=True)} points in DroPE runs",
        f"{selectivity('rope', 'shuffled')} points a run in shuffled order, {selectivity('rope', 'topic')} in topic order",
        f"At matched loss topic order still takes {spelled(matched['selectivity'], scale=100, signed=True)} points "
        f"({p_is(matched['selectivity']['q'], 'q')})",
        f"and {spelled(matched['probe_accuracy_middle'], scale=100, signed=True)} points of probe accuracy",
        f"DroPE raises selectivity by {spelled(dropped['selectivity'], scale=100, signed=True)} points at matched loss "
        f"({p_is(dropped['selectivity']['q'], 'q')})",
        f"head by {spelled(dropped['selectivity_top'], scale=100, signed=True)} points",
        f"{spelled(forgetting, signed=True)} nats more than shuffled ones, {p_is(forgetting['q'], 'q')}",
        f"In {sum(value >= 0.15 for value in best)} of {len(best)} RoPE runs",
        f"it has {span(best, 1, scale=100)} points",
        f"{recovered} of {len(arms['drope'])} DroPE arms recovered",
        f"{span((run['excess_nats'] for run in arms['rope']), 3)} nats above the floor with RoPE",
        f"{span((run['excess_nats'] for run in arms['drope']), 3)} after the drop",
        f"a difference of {fixed(100 * gqa['detectable'], 1)} points would have been seen four times in five",
        f"{fixed(100 * simple['drope']['value'], 1)} points after DroPE",
        f"a change of order's effect by {fixed(2 * 100 * interaction['detectable'], 1)} points would have been seen",
        f"changes selectivity by {less_rope('rope_control', 'selectivity', 100)} points",
        f"one of {fixed(forgetting['detectable'], 4)} nats would have been seen",
        f"| DroPE | {less_rope('drope', 'selectivity', 100)} | {less_rope('drope', 'loss_nats')} |",
        f"| positions dropped, no further step | {less_rope('raw', 'selectivity', 100)} | {less_rope('raw', 'loss_nats')} |",
        f"| rotation kept, trained on for as long | {less_rope('rope_control', 'selectivity', 100)} | "
        f"{less_rope('rope_control', 'loss_nats')} |",
        f"| no positions from the start | {less_rope('nope', 'selectivity', 100)} | {less_rope('nope', 'loss_nats')} |",
        *map(by_layer, by_layers["layers"]),
        f"{len(apart)} of the {len(by_layers['layers'])} intervals exclude 0",
        f"In {in_groups} of {len(by_layers['two_groups'])} runs",
        by_layers["collapse"],
        f"already ({span((loss['after'] for loss in losses), 3)}); they end at {span((loss['end'] for loss in losses), 3)}, "
        f"{sum(loss['end'] > loss['after'] for loss in losses)} of {len(losses)} higher than right after the drop, "
        f"and {sum(loss['highest'] > 0.05 for loss in losses)} passed 0.05 on the way",
        f"stays {fixed(min(worth), 2)} to {fixed(max(worth), 2)} nats above the floor",
    ]


def purity(topics_NT: np.ndarray) -> dict[str, float]:
    """How far topic order keeps topics apart: the share of a block's tokens that are of the block's topic, and of a topic's
    tokens that stand in its block; means over topics."""
    block_N, topics = dominant_topics(topics_NT, topics_NT.max() + 1), range(topics_NT.max() + 1)
    own = np.array([(topics_NT[block_N == topic] == topic).sum() for topic in topics])
    sizes = np.array([(topics_NT[block_N == topic]).size for topic in topics])
    return {
        "of_block": float((own / sizes).mean()),
        "of_topic": float((own / np.bincount(topics_NT.flatten())).mean()),
    }


def main(arguments: list[str]) -> None:
    folder, (kind, *paths) = Path("experiments/matrix"), arguments
    if kind == "corpora":
        found: Any = [purity(np.load(Path(path) / "train_topics.npy")) for path in paths]
    else:
        found = record(Path(kind))
    name = "order" if kind == "corpora" else "retention"
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
