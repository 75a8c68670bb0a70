"""The pilot of the matrix's corpus, a row a training: `python -m tests.experiments.matrix_pilot` draws its figure."""

from __future__ import annotations

from pathlib import Path

from headdyn.core.figures import Interval, interval_plot
from tests.experiments.records import Row, fixed, rows, span

SETTINGS = (
    "within 0.1 nats of the exact floor",
    "worth 0.2 nats or more",
    "stays above 0.1 nats",
)  # what was asked for
ARMS = {"rope": "RoPE", "nope": "NoPE", "drope": "DroPE"}
CORPUS = ("speaker", "switch", "row_spread")


def fragments(folder: Path) -> list[str]:
    runs = rows(folder / "pilot.csv")
    corpora = dict.fromkeys(tuple(row[name] for name in CORPUS) for row in runs)
    fitting = [corpus for corpus in corpora if all(meets(row) for row in of_corpus(runs, corpus))]
    assert len(fitting) == 1
    final = of_corpus(runs, fitting[0])
    worth = {fixed(float(row["selection_worth_nats"]), 3) for row in final}
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
    assert {row["mode"] for row in final} == {"smoke", "laptop"} and {row["position_enc"] for row in final} == set(ARMS)
    return [
        *map(line, runs),
        f"On {len(fitting)} of the {len(corpora)} corpora tried ({final[0]['speaker']} speakers, ρ {final[0]['switch']}, row "
        f"spread {final[0]['row_spread']})",
        f"its {len(final)} models end {span((float(row['excess_nats']) for row in final), 3)} nats above the floor, selecting "
        f"is worth {' to '.join(sorted(worth))} nats",
        f"further from the floor: {smoke['nope'][0]} nats at 0.4 and {smoke['nope'][1]} at 0.6 (smoke, announced); RoPE "
        f"{smoke['rope'][0]} and {smoke['rope'][1]}",
        f"first row, {fixed(float(spread['excess_nats']), 3)}, differs",
        f"the loss is {span(costs, 3)} nats higher",
        f"ρ {final[0]['switch']} and row spread {final[0]['row_spread']} let",
    ]


def of_corpus(runs: list[Row], corpus: tuple[str, ...]) -> list[Row]:
    return [row for row in runs if tuple(row[name] for name in CORPUS) == corpus]


def meets(row: Row) -> bool:
    """The three conditions: the loss near the floor, selecting worth enough, and every head selecting."""
    near, worth = float(row["excess_nats"]) <= 0.1, float(row["selection_worth_nats"]) >= 0.2
    return near and worth and float(row["lowest_head"]) > 0


def line(row: Row) -> str:
    arm = ARMS[row["position_enc"]]
    worth, excess = (fixed(float(row[name]), 3) for name in ("selection_worth_nats", "excess_nats"))
    heads = f"{fixed(float(row['lowest_head']), 0)} to {fixed(float(row['highest_head']), 0)}"
    cells = [row["speaker"], row["switch"], row["row_spread"], row["mode"], arm, worth, excess]
    return f"| {' | '.join([*cells, fixed(float(row['selectivity_points']), 1), heads])} |"


def main() -> None:
    folder, marks = Path("experiments/matrix_pilot"), []
    runs = rows(folder / "pilot.csv")
    for corpus in dict.fromkeys((*(row[name] for name in CORPUS), row["mode"]) for row in runs):
        mine = [row for row in runs if (*(row[name] for name in CORPUS), row["mode"]) == corpus]
        speaker, switch, spread, mode = corpus
        name = f"{speaker}, ρ {switch}, row spread {spread}, {mode}"
        worth = float(mine[0]["selection_worth_nats"])
        marks.append(Interval(label=name, value=worth, group="what selecting is worth (asked for: 0.2 or more)"))
        for row in sorted(mine, key=lambda row: list(ARMS).index(row["position_enc"])):
            above, group = float(row["excess_nats"]), "loss above the floor (asked for: 0.1 or less)"
            marks.append(Interval(label=ARMS[row["position_enc"]], value=above, group=group))
    interval_plot(marks, xlabel="nats a token", title="One training each", zero_line=True).save(
        folder / "loss_and_worth.svg"
    )


if __name__ == "__main__":
    main()
