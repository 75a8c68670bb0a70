"""The matrix on news items, one seed."""

from __future__ import annotations

from pathlib import Path

from tests.experiments.records import fixed, rows, scalar, span, spelled

SETTINGS = ("intervals are 95 %", "(98 M parameters)")


def fragments(folder: Path) -> list[str]:
    runs = rows(folder / "summary.csv")
    rope = [row for row in runs if row["position_enc"] == "rope"]
    drope = [row for row in runs if row["position_enc"] == "drope"]
    first = {name: float(rope[0][f"{name}_nats"]) for name in ("trigram", "bigram", "random")}

    def selectivity(attention: str, order: str) -> str:
        (row,) = [row for row in rope if (row["attention"], row["data_ordering"]) == (attention, order)]
        return spelled(scalar(row, "selectivity"), scale=100)

    assert not any(row["recovered"] == "true" for row in drope)
    return [
        f"({rope[0]['selectivity_n']}; {rope[0]['loss_nats_n']} of the loss)",
        f"end at {span((float(row['loss_nats']) for row in rope), 2)} nats",
        f"trigram line ({fixed(first['trigram'], 2)}; bigram {fixed(first['bigram'], 2)}, uniform {fixed(first['random'], 2)})",
        *(f"| {a.upper()} | {selectivity(a, 'shuffled')} | {selectivity(a, 'topic')} |" for a in ("mha", "gqa")),
        f"attention is {span((float(row['within_ratio']) for row in rope), 0, scale=100)} %",
        f"(null {span((float(row['within_ratio_null']) for row in rope), 0, scale=100)} %)",
        f"from {span((float(row['probe_accuracy_middle']) for row in rope), 0, scale=100)} % of the tokens in these models",
        f"baseline {span((float(row['probe_accuracy_middle_null']) for row in rope), 1, scale=100)} %",
        f"recovered: {span((float(row['loss_nats']) for row in drope), 2)} nats",
    ]
