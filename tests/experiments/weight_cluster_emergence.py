"""Clusters of weights on one planted suite."""

from __future__ import annotations

from pathlib import Path

from headdyn.core.numbers import p_value
from headdyn.studies.organisms.settings import Organism
from tests.experiments.records import fixed, read, rows, scalar

SETTINGS = ("silhouettes rise to 0.6", "the study found 0 of 3")  # the study's own report
ROWS = {
    "best silhouette, QK circuits (free of gauge)": "qk_best_silhouette",
    "best silhouette, OV circuits": "ov_best_silhouette",
    "best silhouette, effects of heads on the answers": "behaviour_best_silhouette",
    "silhouette of query weights as the study read them": "original_query_silhouette",
    "of key weights": "original_key_silhouette",
    "of value weights": "original_value_silhouette",
    "weight clusterings that predict which heads repair": "prediction_accuracy",
}


def fragments(folder: Path) -> list[str]:
    points = rows(folder / "timeline.csv", series="1")
    last = {metric: scalar(points[-1], metric) for metric in ROWS.values()}
    total, suite = (
        read(folder / "verdict.json")[1]["verdict"]["total_steps"],
        Organism(name="planted", organism="planted"),
    )
    best = max(last[f"{circuit}_best_silhouette"]["value"] for circuit in ("qk", "ov"))
    return [
        *(
            f"| {label} | {fixed(last[m]['value'], 3)} | {fixed(last[m]['null'], 3)} | {p_value(last[m]['p'])} |"
            for label, m in ROWS.items()
        ),
        f"silhouette of {fixed(best, 2)} makes no groups",
        f"the last of {len(points)} checkpoints",
        f"from step {suite.onset * total:.0f} on",
        f"({suite.num_heads} in the layer)",
    ]
