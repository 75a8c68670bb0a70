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
    spread = max((row for row in runs if row["position_enc"] == "nope"), key=lambda row: float(row["excess_nats"]))
    costs = [float(row["raw_drop_nats"]) - float(row["parent_nats"]) for row in drope]
    assert all(row["recovered"] == "True" for row in drope)
    assert all(float(row["excess_nats"]) < 0.1 and float(row["lowest_head"]) > 0 for row in final)
    assert all(float(row["selection_worth_nats"]) >= 0.2 for row in final)
    return [
        *map(line, runs),
        f"vary by {spread['row_spread']} a model without positions stays {fixed(float(spread['excess_nats']), 3)} nats above",
        f"the loss is {span(costs, 3)} nats higher",
        f"ρ {final[0]['switch']} and row spread {final[0]['row_spread']} let",
    ]


def line(row: Row) -> str:
    arm = {"rope": "RoPE", "nope": "NoPE", "drope": "DroPE"}[row["position_enc"]]
    worth, excess = (fixed(float(row[name]), 3) for name in ("selection_worth_nats", "excess_nats"))
    heads = f"{fixed(float(row['lowest_head']), 0)} to {fixed(float(row['highest_head']), 0)}"
    cells = [row["speaker"], row["switch"], row["row_spread"], row["mode"], arm, worth, excess]
    return f"| {' | '.join([*cells, fixed(float(row['selectivity_points']), 1), heads])} |"
