"""The 2x2x2 matrix on conversations, eight seeds, with the arms that tell a drop of positions from further training.

`python -m tests.experiments.matrix SWEEP` records what the drop does to the order's effect at each layer of a sweep, and
`python -m tests.experiments.matrix corpora FOLDER…` how far topic order keeps the topics of these corpora apart.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy import optimize, stats

from headdyn.core.numbers import listed
from headdyn.data.ordering import dominant_topics
from headdyn.studies.topic_order.retention import collapse, null_shares, retention, two_groups
from headdyn.sweep.effects import unrecovered
from headdyn.sweep.record import SweepRecord
from tests.experiments import attention_held, emergence, repeats
from tests.experiments.records import (
    Row,
    Scalar,
    average,
    effect,
    fixed,
    p_is,
    p_of,
    percent,
    read,
    rows,
    span,
    spelled,
    would_be_seen,
)

SETTINGS = (
    "800 steps each",
    "taken between steps 496 and 800",
    "intervals are 95 %",
    "Where q is 0.05 or more",
    "within 0.05 nats of the loss",
    ": 15 or more",
    "just below 0.05 with all",
    "no q is below 0.05",
    "with q < 0.05, four times in five",
    "of one test at p < 0.05",
    "in layer 1 before the drop",
    "normal values (p < 0.05)",
    # what was predicted
    "lower by 2 to 7 points, at losses within 0.02 nats",
    "between 0 and +2 points",
    "the interval holds 0 and most",
    "within 2 points of 0",
)
PILOT = Path(__file__).parents[2] / "experiments" / "matrix_pilot" / "pilot.csv"
HELD = Path(__file__).parents[2] / "experiments" / "attention_held" / "trainings.json"
SEEN = "0"  # the seed that make run had shown before the prediction was written
LAST = 800  # the last step
MARGIN_NATS = 0.05  # an arm within it of the loss before the drop has recovered
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


def unseen(contrast: Scalar, scale: float = 1) -> str:
    """`; 2.2 would be seen`, behind a difference that was not found: by its q, where it has one, else by one test.

    Nothing stands behind a difference that exceeds the bound of its one test.
    """
    smallest = contrast["detectable"] if "q" in contrast else would_be_seen(contrast)
    assert smallest is not None  # by its q the difference was found
    two_digits = f"{scale * smallest:#.2g}".removesuffix(".")
    return "" if abs(contrast["value"]) > smallest else f"; {two_digits} would be seen"


def with_bound(contrast: Scalar, scale: float = 1) -> str:
    """`+0.02 [−0.30, +0.33]; 0.44 would be seen`: the bound stands where the interval holds 0."""
    bound = unseen(contrast, scale) if contrast["ci_low"] < 0 < contrast["ci_high"] else ""
    return spelled(contrast, scale=scale, signed=True) + bound


def change_by_the_drop(file: Path, metric: str) -> Scalar:
    """Order's effect in DroPE runs less that in RoPE runs: twice the interaction, which is half of it (science.md §17)."""
    interaction = effect(file, metric, RETENTION)
    parts = ("value", "ci_low", "ci_high", "detectable")
    return interaction | {part: 2 * interaction[part] for part in parts if interaction[part] is not None}


def row(folder: Path, label: str) -> str:
    metric, scale = OUTCOMES[label]
    file = folder / "effects.json"
    found = [*(effect(file, metric, levels) for levels in (ORDER, HEADS, POSITIONS)), change_by_the_drop(file, metric)]
    cells = [cell(each, scale) + ("" if each["detectable"] is None else unseen(each, scale)) for each in found]
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
    detectable = entry["detectable"]  # none beside a change that was found
    bound = "–" if detectable is None else f"{float(f'{100 * detectable:.2g}'):g}"
    return f"| {measure} | {entry['layer']} | {' | '.join(cells)} | {fixed(entry['q'], 2)} | {bound} |"


def fragments(folder: Path) -> list[str]:
    runs, file = rows(folder / "summary.csv"), folder / "effects.json"
    order, gqa, drope = (effect(file, "selectivity", levels) for levels in (ORDER, HEADS, POSITIONS))
    loss, change = effect(file, "loss_nats", ORDER), change_by_the_drop(file, "selectivity")
    # What the answer and the verdicts say.
    assert max(order["q"], drope["q"]) < 0.05 < min(gqa["q"], change["q"])
    assert -0.07 < order["ci_low"] < order["ci_high"] < -0.02 and -0.02 < loss["ci_low"] < loss["ci_high"] < 0.02
    assert gqa["ci_low"] < 0 and 0.01 < gqa["ci_high"] < 0.02
    assert -0.02 < change["ci_low"] < 0 < change["ci_high"]
    pilot = rows(PILOT, speaker="announced", mode="laptop", position_enc="drope")
    (cost,) = (float(run["raw_drop_nats"]) - float(run["parent_nats"]) for run in pilot)
    in_words = spelled(change, scale=100, signed=True)
    return [
        f"{len(runs)} runs, {order['n']} seeds",
        f"moves topic selectivity by {spelled(order, scale=100, signed=True)} points of attention ({order['n']} seeds, "
        f"{p_is(order['q'], 'q')})",
        f"dropping positions moves it by {spelled(drope, scale=100, signed=True)} points; no effect of grouped queries was found, "
        f"though {fixed(100 * gqa['detectable'], 1)} points would have been seen",
        *(row(folder, label) for label in OUTCOMES),
        f"had cost {fixed(cost, 3)} of the {MARGIN_NATS:g} nats allowed",
        f"not supported: {in_words} points{unseen(change, 100)}",
        of_even_attention(),
        *of_unseen_seeds(runs),
        how_early(),
        *of_corpus(folder, runs),
        *of_tags(folder, runs),
        *of_order(folder, runs),
        *of_drop(folder, runs),
    ]


def of_unseen_seeds(runs: list[Row]) -> list[str]:
    """Order's effect on the seeds that had not been seen when it was predicted: one test each, without a family."""
    unseen_runs = [run for run in runs if run["seed"] != SEEN]
    cells = []
    for metric, words in (("selectivity", "of selectivity"), ("probe_accuracy_middle", "of probe accuracy")):
        found = average(unseen_runs, metric, "data_ordering", "shuffled", "topic")
        cells.append(f"{spelled(found, scale=100, signed=True)} points {words} ({p_is(p_of(found))})")
    return [f"over the other {found['n']} seeds the effect is {' and '.join(cells)}"]


def how_early() -> str:
    """What experiments/emergence says of the RoPE runs' strongest head."""
    pieces = emergence.fragments(HELD.parents[1] / "emergence")
    (half,) = (piece for piece in pieces if piece.startswith("between steps") and "of 800 in" in piece)
    (level,) = (piece for piece in pieces if piece.startswith("| topic selectivity, strongest head, 10 points"))
    later = level.split(" | ")[3]
    return f"half of its height {half}, in either order with ordinary heads and in shuffled order with grouped queries; 10 points come later in topic order by a factor of {later}"


def of_corpus(folder: Path, runs: list[Row]) -> list[str]:
    """How mild the order is, and how far models and predictors stay from the floor."""
    order = read(folder / "order.json")
    assert len(order) == len({run["seed"] for run in runs})

    def above(line: str) -> list[float]:
        return [float(run[line]) - float(run["floor_nats"]) for run in runs]

    def excess(arm: str) -> list[float]:
        return [float(run["excess_nats"]) for run in runs if run["position_enc"] == arm]

    assert min(excess("rope")) > 0 and max(excess("drope")) < min(above("speaker_blind_nats"))
    four = fixed(fmean(attention_held.worths(read(HELD))), 2)
    by_corpus = {run["seed"]: worth for run, worth in zip(runs, above("position_only_nats"), strict=True)}
    return [
        f"{span((each['of_block'] for each in order), 0, scale=100)} % of the tokens in a topic's block are of this topic",
        f"{span((1 - each['of_topic'] for each in order), 0, scale=100)} % of its tokens come in other blocks",
        f"end {span(excess('rope'), 3)} nats above the floor with RoPE, {span(excess('drope'), 3)} after the drop",
        f"stays {span(above('speaker_blind_nats'), 2)} nats above it",
        f"stays {span(above('position_only_nats'), 2)} nats above the floor, on average {fixed(fmean(by_corpus.values()), 2)} ({four} on the four corpora above)",
    ]


def of_even_attention() -> str:
    """What it costs to hold every head at even attention, beside the worth of selecting (experiments/attention_held)."""
    trainings = read(HELD)
    cost = attention_held.difference(attention_held.at_end(trainings), attention_held.FREE, attention_held.HELD)
    worth = fmean(attention_held.worths(trainings))
    return f"end {spelled(cost)} nats higher ({cost['n']} seeds), of {fixed(worth, 2)} that selecting is worth"


def of_tags(folder: Path, runs: list[Row]) -> list[str]:
    """What attention by visible tags alone scores, and whether models know which topic it is."""
    tags = read(folder / "tags.json")
    found = [float(run["selectivity"]) for run in runs]
    probed, of_token = (
        [float(run[name]) for run in runs] for name in ("probe_accuracy_middle", "probe_token_identity")
    )
    assert {str(each["seed"]) for each in tags} == {run["seed"] for run in runs}
    assert all(each["topics_are_tags"] for each in tags) and max(found) < min(each["announced_tag"] for each in tags)
    assert min(probed) > max(of_token)
    return [
        f"{span((each['own_tag'] for each in tags), 1, scale=100)} points if it attended evenly",
        f"{span((each['announced_tag'] for each in tags), 1, scale=100)} if to those of the announced next speaker",
        f"models here have {span(found, 1, scale=100)}, mean over heads",
        f"names it rightly for {span(probed, 0, scale=100)} % of tokens; from the token alone one does for "
        f"{span(of_token, 0, scale=100)} %",
    ]


def of_groups(folder: Path, groups: list[dict[str, Any]]) -> list[str]:
    """The test for two groups of heads run by run with its power, and pooled with seeds as units."""
    in_groups = sum(entry["p"] < 0.05 for entry in groups)
    assert stats.binomtest(in_groups, len(groups), 0.05, alternative="greater").pvalue > 0.05
    beyond_chance = (
        int(stats.binom.isf(0.05, len(groups), 0.05)) + 1
    )  # the fewest runs that would be too many by chance
    rate = optimize.brentq(lambda share: stats.binom.sf(beyond_chance - 1, len(groups), share) - 0.8, 0.05, 1)
    power = read(folder / "two_groups_power.json")
    # Runs without groups are found at 5 %, so that this share of runs with groups gives that rate of findings.
    needed = [percent((rate - 0.05) / (each["found"] - 0.05)) for each in power]
    assert {entry["heads"] for entry in groups} == {4}
    by_chance = float(null_shares(4).mean())
    shares = []
    for entry in groups:
        *_, arm, seed = entry["label"].split()
        shares += [
            {"seed": seed, "arm": arm, "share": str(entry["share"])},
            {"seed": seed, "arm": "normal values", "share": str(by_chance)},
        ]
    pooled = {arm: average(shares, "share", "arm", "normal values", arm) for arm in ("RoPE", "DroPE")}
    would_add = power[0]["share"] - by_chance
    assert all(each["value"] < 0 < each["ci_high"] < would_add for each in pooled.values())
    in_points = {arm: spelled(each, scale=100, signed=True) for arm, each in pooled.items()}
    return [
        f"in {in_groups} of {len(groups)} runs",
        f"chance gives {fixed(0.05 * len(groups), 0)}",
        f"findings in {percent(rate)} % of runs would be seen",
        f"two pairs that lie {listed([str(each['apart']) for each in power])} standard deviations apart in "
        f"{listed([percent(each['found']) for each in power])} % of simulated runs: to be seen, such pairs would have to be in "
        f"{listed(needed)} % of runs",
        f"by chance form groups that explain {percent(max(entry['share'] for entry in groups if entry['p'] >= 0.05))} %",
        f"With seeds as units ({pooled['RoPE']['n']}) the mean share explained, less that of normal values, is "
        f"{in_points['RoPE']} points with RoPE and {in_points['DroPE']} after the drop; pairs {power[0]['apart']} standard "
        f"deviations apart in every run would add {fixed(100 * would_add, 0, signed=True)}",
    ]


def of_order(folder: Path, runs: list[Row]) -> list[str]:
    """The order's effect with and without positions, at matched loss, by topic, on single heads and on forgetting."""
    file = folder / "effects.json"
    pooled = read(folder / "matched_loss.json")["pooled"]
    matched = {entry["outcome"]: entry for entry in pooled if entry["factor"] == "data_ordering"}
    with_rope, dropped = (effect(file, "selectivity", ORDER, {"position_enc": arm}) for arm in ("rope", "drope"))
    forgetting = effect(file, "forgetting_nats", ORDER)
    by_topic = [
        run | {"apart": str(float(run["selectivity_first_topic"]) - float(run["selectivity_last_topic"]))}
        for run in runs
    ]
    first, last, apart = (
        average(by_topic, metric, "data_ordering", "shuffled", "topic")
        for metric in ("selectivity_first_topic", "selectivity_last_topic", "apart")
    )
    assert matched["selectivity"]["q"] < 0.05 and apart["ci_low"] < 0 < apart["ci_high"] and forgetting["q"] > 0.05
    rope = [run for run in runs if run["position_enc"] == "rope"]
    best = [float(run["selectivity_top"]) for run in rope]
    below = [run for run, top in zip(rope, best, strict=True) if top < 0.15]
    ordered = sum(run["data_ordering"] == "topic" for run in below)

    def of_runs(order: str) -> str:
        return span((float(run["selectivity"]) for run in rope if run["data_ordering"] == order), 1, scale=100)

    return [
        f"changes selectivity by {spelled(with_rope, scale=100, signed=True)} points in RoPE runs and by "
        f"{spelled(dropped, scale=100, signed=True)} in DroPE runs",
        f"At matched loss it is {spelled(matched['selectivity'], scale=100, signed=True)} points "
        f"({p_is(matched['selectivity']['q'], 'q')})",
        f"and {spelled(matched['probe_accuracy_middle'], scale=100, signed=True)} points of probe accuracy",
        f"select by {of_runs('shuffled')} points in shuffled order, by {of_runs('topic')} in topic order",
        f"by {spelled(forgetting, signed=True)} nats, {p_is(forgetting['q'], 'q')}{unseen(forgetting)}",
        f"changes by {spelled(first, scale=100, signed=True)} points, on the topic met last by "
        f"{spelled(last, scale=100, signed=True)}; the two differ by {spelled(apart, scale=100, signed=True)}"
        f"{unseen(apart, 100)}",
        f"of a RoPE run has {span(best, 1, scale=100)} points",
        f"in {len(best) - len(below)} of {len(best)} runs",
        f"{ordered} of the other {len(below)} were trained in topic order",
        f"it is {fixed(100 * dropped['value'], 1)} points after DroPE",
    ]


def of_drop(folder: Path, runs: list[Row]) -> list[str]:
    """What the drop does: to order's effect by layer, to heads in two groups, to the loss; and its control arms."""
    record, steps = read(folder / "retention.json"), matched_steps(folder)
    layers, losses = record["layers"], record["losses"]
    above, below = (sum(sign * entry[end] > 0 for entry in layers) for sign, end in ((1, "ci_low"), (-1, "ci_high")))
    assert not any(entry["q"] < 0.05 for entry in layers)
    arms = [run for run in runs if run["position_enc"] == "drope"]
    assert len(losses) == len(arms) and max(loss["after"] for loss in losses) < MARGIN_NATS

    plain = [run for run in runs if run["attention"] == "mha" and run["data_ordering"] == "shuffled"]
    raw = [run | {"position_enc": "raw"} for run in rows(folder / "raw_drop.csv", data_ordering="shuffled")]
    compared = [*plain, *rows(folder / "controls.csv"), *raw]

    def less_rope(arm: str, metric: str, scale: float = 1) -> str:
        return with_bound(average(compared, metric, "position_enc", "rope", arm), scale)

    kept, dropped, at_once = (
        average(compared, "selectivity", "position_enc", "rope", arm) for arm in ("rope_control", "drope", "raw")
    )
    assert kept["ci_low"] < 0 < kept["ci_high"] < dropped["ci_low"] and at_once["value"] > dropped["value"] / 2
    labels = {
        "drope": "DroPE",
        "raw": "positions dropped, no further step",
        "rope_control": "rotation kept, trained on for as long",
        "nope": "no positions from the start",
    }
    pooled = read(folder / "matched_loss.json")["pooled"]
    matched = {entry["outcome"]: entry for entry in pooled if entry["factor"] == "position_enc"}
    return [
        f"{above + below} of the {len(layers)} intervals exclude 0, {above} above it and {below} below",
        *map(by_layer, layers),
        *repeats.sentences(folder),
        *of_groups(folder, record["two_groups"]),
        record["collapse"],
        f"{sum(run['recovered'] == 'true' for run in arms)} of {len(arms)} DroPE arms recovered",
        of_rounds(steps["position_enc"]["drope"]),
        f"as RoPE runs are taken at steps {span(steps['position_enc']['rope'], 0)}",
        f"in RoPE runs at {span((step for arm in steps['data_ordering'].values() for step in arm if step < LAST), 0)}",
        f"already ({span((loss['after'] for loss in losses), 3)}); they end at {span((loss['end'] for loss in losses), 3)}, "
        f"{sum(loss['end'] > loss['after'] for loss in losses)} of {len(losses)} higher than right after the drop, "
        f"and {sum(loss['highest'] > MARGIN_NATS for loss in losses)} passed {MARGIN_NATS:g} on the way",
        f"DroPE raises selectivity by {spelled(matched['selectivity'], scale=100, signed=True)} points "
        f"({p_is(matched['selectivity']['q'], 'q')}), and that of the most selective head by "
        f"{spelled(matched['selectivity_top'], scale=100, signed=True)}",
        *(
            f"| {label} | {less_rope(arm, 'selectivity', 100)} | {less_rope(arm, 'loss_nats')} |"
            for arm, label in labels.items()
        ),
    ]


def matched_steps(folder: Path) -> dict[str, dict[str, list[int]]]:
    """By factor and level the steps at which runs are compared at matched loss; of the order, those of RoPE runs."""
    pairs = {}
    for pair in read(folder / "matched_loss.json")["pairs"]:
        if pair["factor"] == "position_enc" or pair["factors"].get("position_enc") == "rope":
            pairs[pair["factor"], *pair["runs"].values()] = pair["steps"]
    steps: dict[str, dict[str, list[int]]] = {}
    for (factor, *_), each in pairs.items():
        for level, step in each.items():
            steps.setdefault(factor, {}).setdefault(level, []).append(step)
    return steps


def of_rounds(steps: list[int]) -> str:
    """How many arms recovered within the planned steps, and how many in further rounds."""
    counts = {step: steps.count(step) for step in sorted(set(steps))}
    (planned, within), (second, later), (third, last) = counts.items()
    assert (second, third) == (2 * planned, 4 * planned)  # each round is as long as all before it
    return (
        f"{within} of them within the planned {planned} steps. An arm that has not recovered goes on in further rounds until it "
        f"has: {later} went on to {second} steps, {last} to {third}"
    )


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
