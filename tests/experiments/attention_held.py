"""Trainings of the matrix whose heads are all held at even attention, beside free ones of the same seeds.

`python -m tests.experiments.attention_held SWEEP…` records the sweeps' losses and draws the figure of the matrix's corpus.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from headdyn.core.figures import Curve, curves
from headdyn.sweep.record import SweepRecord
from tests.experiments.records import Row, Scalar, average, fixed, read, span, spelled

SETTINGS = (
    "step 16 on",
    "form** (step 16 lies among",
    "first 16 steps",
    "lies above 0.15 nats",
    "lies within −0.02 and 0.02 nats",
    "of 800 steps;",
    "Losses are of 256 validation sequences",
    "eads free for the first 16 steps",
    "held from step 16",
    "ρ 0.5), attention must find",
    "held models end more than 0.3 nats above",
    "hold 95 % intervals over seeds",
)
FREE, HELD, LATER = ARMS = "heads free", "every head held", "every head held from step 16 on"
STEPS = (11, 28, 50, 150, 400, 800)  # of the evaluations that all arms share
LINES = ("floor_nats", "random_nats", "position_only_nats", "speaker_blind_nats")


def record(sweeps: list[Path]) -> list[dict[str, Any]]:
    """The seed, the arm, the corpus's lines and the losses by step of every training."""
    found = {}
    for job in (job for sweep in sweeps for job in SweepRecord.read(sweep).complete):
        clamp = job.run.manifest["config"]["train"]["clamp"]
        arm = FREE if clamp["pattern"] == "none" else LATER if clamp["from_step"] else HELD
        seed = job.run.manifest["config"]["seed"]
        lines = {name: job.run.value(name) for name in LINES}
        losses = [(step, round(loss, 5)) for step, loss in job.metrics["val_loss_nats"]]
        found[seed, arm] = {"seed": seed, "arm": arm, **lines, "losses": losses}
    return [found[key] for key in sorted(found)]


def at_end(trainings: list[dict[str, Any]]) -> list[Row]:
    """Every training's loss at its last step, above the floor, and the share of the gap from guessing that it closed."""
    ends = []
    for each in trainings:
        loss, floor, random = each["losses"][-1][1], each["floor_nats"], each["random_nats"]
        numbers = {"loss": loss, "above": loss - floor, "closed": (random - loss) / (random - floor)}
        ends.append({"seed": str(each["seed"]), "arm": each["arm"], **{n: str(v) for n, v in numbers.items()}})
    return ends


def difference(ends: list[Row], low: str, high: str) -> Scalar:
    return average([row for row in ends if row["arm"] in (low, high)], "loss", "arm", low, high)


def table(ends: list[Row]) -> list[str]:
    """A row for each arm of one corpus; the last cell is what holding the heads costs."""
    lines = []
    for arm in (arm for arm in ARMS if any(row["arm"] == arm for row in ends)):
        mine = [row for row in ends if row["arm"] == arm]
        above, closed = (
            span((float(row["above"]) for row in mine), 3),
            span((float(row["closed"]) for row in mine), 0, scale=100),
        )
        cost = "–" if arm == FREE else spelled(difference(ends, FREE, arm), signed=True)
        lines.append(f"| {arm} | {len(mine)} | {above} | {closed} % | {cost} |")
    return lines


def worths(trainings: list[dict[str, Any]]) -> list[float]:
    """What selecting is worth to a predictor on each training's corpus: the better line that does not select, above the floor."""
    return [min(each[line] for line in LINES[2:]) - each["floor_nats"] for each in trainings]


def cost_at(trainings: list[dict[str, Any]], step: int, arm: str) -> Scalar:
    """What holding the heads costs at a step of training, over seeds."""
    losses = [
        {"seed": str(each["seed"]), "arm": each["arm"], "loss": str(dict(each["losses"])[step])} for each in trainings
    ]
    return difference(losses, FREE, arm)


def fragments(folder: Path) -> list[str]:
    trainings, markers = read(folder / "trainings.json"), read(folder / "markers.json")
    ends = at_end(trainings)
    cost, cost_later = (difference(ends, FREE, arm) for arm in (HELD, LATER))
    made_up_for = difference(ends, HELD, LATER)
    marker_ends = at_end(markers)
    marker_cost = difference(marker_ends, FREE, HELD)
    held = {row["seed"]: float(row["loss"]) for row in marker_ends if row["arm"] == HELD}
    shares_closed = sorted(round(100 * float(row["closed"])) for row in marker_ends if row["arm"] == FREE)
    costs = [held[row["seed"]] - float(row["loss"]) for row in marker_ends if row["arm"] == FREE]
    misses = [each["losses"][-1][1] - each["speaker_blind_nats"] for each in markers if each["arm"] == HELD]
    assert (
        min(misses) > 0 and sum(cost > miss for cost, miss in zip(sorted(costs), sorted(misses), strict=True)) == 3
    ), "mostly"
    lines, worth = worths(markers), float(np.mean(worths(trainings)))
    shares = [fixed(100 * cost[part] / worth, 0) for part in ("value", "ci_low", "ci_high")]
    # What the verdicts say.
    assert cost["ci_low"] > 0 and cost["ci_high"] < 0.15
    assert -0.02 < made_up_for["ci_low"] < made_up_for["ci_high"] < 0.02 and cost_later["ci_low"] > 0
    assert all(float(row["closed"]) > 0.9 for row in ends)
    assert 2.5 < cost_at(trainings, STEPS[1], LATER)["value"] / cost_later["value"] < 3.5, "three times"
    assert 0.3 > min(costs) > 0 and sorted(costs)[1] > 0.3
    assert all(float(row["above"]) > line for row, line in zip(marker_ends, lines, strict=True) if row["arm"] == HELD)
    return [
        *table(ends),
        *table(marker_ends),
        *(
            f"| {step} | {' | '.join(spelled(cost_at(trainings, step, arm), signed=True) for arm in (HELD, LATER))} |"
            for step in STEPS
        ),
        f"at step {STEPS[1]} already costs {spelled(cost_at(trainings, STEPS[1], LATER))} nats, three times what it costs",
        f"ends {spelled(cost)} nats higher ({cost['n']} seeds)",
        f"selecting is worth {fixed(worth, 2)} nats",
        f"costs {spelled(cost)} nats, {shares[0]} % [{shares[1]}, {shares[2]}] of the {fixed(worth, 2)} nats that",
        f"{shares[0]} % [{shares[1]}, {shares[2]}] of its worth",
        f"{shares[0]} % [{shares[1]}, {shares[2]}] of what selecting is worth",
        f"the {fixed(cost['value'], 3)} nats are the price",
        *(f"{words} by {spelled(made_up_for, signed=True)} nats" for words in ("differ", "changes this")),
        f"by {spelled(marker_cost)} nats above free ones ({marker_cost['n']} seeds), {span(costs, 2)} in single seeds",
        f"so in {sum(cost > 0.3 for cost in costs)} of {len(costs)} seeds",
        f"closes {shares_closed[0]} % of the gap, against {shares_closed[1]} to {shares_closed[-1]} % in the others",
        f"which they miss by {span(misses, 2)} nats",
        f"{spelled(marker_cost)} nats where evidence lies in transitions ({marker_cost['n']} seeds;",
        f"the best predictor by distance, {span(lines, 2)} nats above the floor",
    ]


def main() -> None:
    folder, names = Path("experiments/attention_held"), [Path(name) for name in sys.argv[1:]]
    if names:
        markers = [name for name in names if not name.name.startswith(("matrix", "head_emergence"))]
        for file, sweeps in (("trainings", [name for name in names if name not in markers]), ("markers", markers)):
            if not sweeps:
                continue  # of this corpus the record stays
            found = record(sweeps)
            count = {each["seed"]: sum(other["seed"] == each["seed"] for other in found) for each in found}
            paired = [each for each in found if count[each["seed"]] == max(count.values())]
            lines = ",\n ".join(map(json.dumps, paired))
            (folder / f"{file}.json").write_text(f"[{lines}]\n", encoding="utf-8")
    trainings, drawn = read(folder / "trainings.json"), []
    for arm in ARMS:
        courses = [dict(each["losses"]) for each in trainings if each["arm"] == arm]
        steps = sorted(set(courses[0]).intersection(*courses) - {0})
        losses_CK = np.array([[course[step] for step in steps] for course in courses])
        low_K, high_K = losses_CK.min(0), losses_CK.max(0)
        drawn.append(Curve(label=arm, x=np.array(steps), y=losses_CK.mean(0), low=low_K, high=high_K))
    blind = np.mean([min(each["position_only_nats"], each["speaker_blind_nats"]) for each in trainings])
    floor = np.mean([each["floor_nats"] for each in trainings])
    references = {"best predictor by distance": float(blind), "floor": float(floor)}
    figure = curves(
        drawn, xlabel="training step", ylabel="held-out loss (nats)", title="Loss with every head held at even attention",
        references=references, log_x=True,
    )  # fmt: skip
    figure.save(folder / "loss_with_heads_held.svg")


if __name__ == "__main__":
    main()
