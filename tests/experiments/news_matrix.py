"""The matrix on news items, one seed: `python -m tests.experiments.news_matrix` draws its figure."""

from __future__ import annotations

from pathlib import Path

from headdyn.core.figures import Interval, interval_plot
from tests.experiments.records import Row, Scalar, fixed, p_is, rows, scalar, span, spelled, would_be_seen

SETTINGS = ("intervals are 95 %", "(98 M parameters)", "no q below 0.05")


def fragments(folder: Path) -> list[str]:
    runs = rows(folder / "summary.csv")
    rope = [row for row in runs if row["position_enc"] == "rope"]
    drope = [row for row in runs if row["position_enc"] == "drope"]
    first = {name: float(rope[0][f"{name}_nats"]) for name in ("trigram", "bigram", "random")}

    cells = {(row["attention"], row["data_ordering"]): measured(row, "selectivity") for row in rope}
    probes = [measured(row, "probe_accuracy_middle") for row in rope]
    seen, unseen = ([each for each in cells.values() if (each["q"] < 0.05) is found] for found in (True, False))
    order = {name: 100 * (cells[name, "topic"]["value"] - cells[name, "shuffled"]["value"]) for name in ("mha", "gqa")}

    def selectivity(attention: str, order: str) -> str:
        return spelled(cells[attention, order], scale=100)

    # What the page says in words.
    assert len(unseen) == 1 and min(each["value"] for each in seen) > 0
    assert all(each["q"] >= 0.05 for each in probes)
    assert all(float(row["loss_nats"]) > first["trigram"] for row in rope)
    assert all(float(row["within_ratio"]) - float(row["within_ratio_null"]) < 0.01 for row in rope)
    assert "selectivity_documents" not in runs[0]
    assert not any(row["recovered"] == "true" for row in drope)
    return [
        f"in one seed {len(seen)} of {len(rope)} RoPE models attend to their own topic "
        f"{span((each['value'] for each in seen), 2, scale=100)} points more than chance "
        f"({p_is(max(each['q'] for each in seen), 'q')})",
        f"one of the {len(rope)} that shows none, {fixed(100 * would_be_seen(unseen[0]), 2)} points would be found",
        f"shuffled is {fixed(order['mha'], 2, signed=True)} points with MHA and {fixed(order['gqa'], 2, signed=True)} with",
        f"{span((100 * would_be_seen(each) for each in probes), 1)} points more would be found",
        f"({rope[0]['selectivity_n']}; {rope[0]['loss_nats_n']} of the loss)",
        f"end at {span((float(row['loss_nats']) for row in rope), 2)} nats",
        f"trigram line] ({fixed(first['trigram'], 2)}; bigram {fixed(first['bigram'], 2)}, uniform {fixed(first['random'], 2)})",
        *(f"| {a.upper()} | {selectivity(a, 'shuffled')} | {selectivity(a, 'topic')} |" for a in ("mha", "gqa")),
        f"attention is {span((float(row['within_ratio']) for row in rope), 0, scale=100)} %",
        f"(null {span((float(row['within_ratio_null']) for row in rope), 0, scale=100)} %)",
        f"from {span((float(row['probe_accuracy_middle']) for row in rope), 0, scale=100)} % of the tokens in these models",
        f"baseline {span((float(row['probe_accuracy_middle_null']) for row in rope), 1, scale=100)} %",
        f"recovered: {span((float(row['loss_nats']) for row in drope), 2)} nats",
    ]


def measured(row: Row, metric: str) -> Scalar:
    """A metric of a run, with the number of its sequences."""
    return scalar(row, metric) | {"n": int(row[f"{metric}_n"])}


def main() -> None:
    folder, marks = Path("experiments/news_matrix"), []
    for row in sorted(rows(folder / "summary.csv"), key=lambda row: row["position_enc"] == "drope"):
        each = scalar(row, "selectivity")
        value, low, high = (100 * each[part] for part in ("value", "ci_low", "ci_high"))
        order = {"shuffled": "shuffled", "topic": "topic-ordered"}[row["data_ordering"]]
        group = "RoPE" if row["position_enc"] == "rope" else "DroPE, not recovered"
        marks.append(
            Interval(label=f"{row['attention'].upper()}, {order}", value=value, low=low, high=high, group=group)
        )
    figure = interval_plot(
        marks,
        xlabel="topic selectivity (points of attention beyond chance)",
        title="One seed of each model",
        zero_line=True,
    )
    figure.save(folder / "selectivity.svg")


if __name__ == "__main__":
    main()
