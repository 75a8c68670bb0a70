"""The pilot of the matrix's corpus: a row a training."""

from __future__ import annotations

from pathlib import Path

from tests.experiments.records import Row, fixed, rows, span

SETTINGS = (
    "within 0.1 nats of the exact floor",
    "worth 0.2 nats or more",
    "stays above 0.1 nats",
)  # what was asked for


def fragments(folder: Path) -> list[str]:
    runs = rows(folder / "pilot.csv")
    chosen = {"speaker": "announced", "mode": "laptop"}
    final = [row for row in runs if all(row[name] == cell for name, cell in chosen.items())]
    drope = [row for row in runs if row["position_enc"] == "drope"]
    nope = [row for row in runs if row["position_enc"] == "nope"]
    spread = max(nope, key=lambda row: float(row["excess_nats"]))
    smoke = {
        arm: [
            fixed(float(row["excess_nats"]), 3) for row in runs if (row["mode"], row["position_enc"]) == ("smoke", arm)
        ]
        for arm in ("nope", "rope")
    }
    costs = [float(row["raw_drop_nats"]) - float(row["parent_nats"]) for row in drope]
    assert all(row["recovered"] == "True" for row in drope)
    assert all(float(row["excess_nats"]) < 0.1 and float(row["lowest_head"]) > 0 for row in final)
    assert all(float(row["selection_worth_nats"]) >= 0.2 for row in final)
    return [
        *map(line, runs),
        f"further from the floor: {smoke['nope'][0]} nats at 0.4 and {smoke['nope'][1]} at 0.6 (smoke, announced); RoPE "
        f"{smoke['rope'][0]} and {smoke['rope'][1]}",
        f"first row, {fixed(float(spread['excess_nats']), 3)}, differs",
        f"the loss is {span(costs, 3)} nats higher",
        f"ρ {final[0]['switch']} and row spread {final[0]['row_spread']} let",
    ]


def line(row: Row) -> str:
    arm = {"rope": "RoPE", "nope": "NoPE", "drope": "DroPE"}[row["position_enc"]]
    worth, excess = (fixed(float(row[name]), 3) for name in ("selection_worth_nats", "excess_nats"))
    heads = f"{fixed(float(row['lowest_head']), 0)} to {fixed(float(row['highest_head']), 0)}"
    cells = [row["speaker"], row["switch"], row["row_spread"], row["mode"], arm, worth, excess]
    return f"| {' | '.join([*cells, fixed(float(row['selectivity_points']), 1), heads])} |"
