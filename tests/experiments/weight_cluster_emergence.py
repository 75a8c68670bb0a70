"""Clusters of weights on one planted suite."""

from __future__ import annotations

from pathlib import Path

from headdyn.analysis.head_clusters import HeadClusters
from headdyn.core.numbers import p_value
from headdyn.studies.organisms.settings import Organism
from tests.experiments.records import Row, Scalar, fixed, read, rows, scalar, span

SETTINGS = ("silhouettes rise to 0.6", "the study found 0 of 3", "groups begin at 0.25")  # the study's report; §12
REJECTED = "behaviour_best_silhouette"  # its null was random directions (docs/science.md, changes of definitions)
ROWS = {
    "best silhouette, QK circuits (free of gauge)": "qk_best_silhouette",
    "best silhouette, OV circuits": "ov_best_silhouette",
    "best silhouette, effects of heads on the answers": "behaviour_best_silhouette",
    "silhouette of query weights as the study read them": "original_query_silhouette",
    "of key weights": "original_key_silhouette",
    "of value weights": "original_value_silhouette",
    "weight clusterings that predict which heads repair": "prediction_accuracy",
    "agreement (adjusted Rand) of two QK clusters with even and odd": "qk_parity_rand",
    "of two OV clusters with even and odd": "ov_parity_rand",
    "of two QK clusters with two clusters of effects": "qk_behaviour_rand",
    "of two OV clusters with two clusters of effects": "ov_behaviour_rand",
}
PIECES = [metric for metric in ROWS.values() if metric.startswith("original_")]
AGREEMENTS = [metric for metric in ROWS.values() if metric.endswith("_rand")]


def fragments(folder: Path) -> list[str]:
    points = rows(folder / "timeline.csv", series="1")
    last = {metric: scalar(points[-1], metric) for metric in ROWS.values()}
    total, suite = (
        read(folder / "verdict.json")[1]["verdict"]["total_steps"],
        Organism(name="planted", organism="planted"),
    )
    best = max(last[f"{circuit}_best_silhouette"]["value"] for circuit in ("qk", "ov"))
    clusterings = 2 * (len(HeadClusters().kmeans_k) + len(HeadClusters().ward_k))
    pieces, agreements = seen_and_not(points, PIECES), seen_and_not(points, AGREEMENTS)
    # What the page says in words.
    assert best < 0.25
    assert last["prediction_accuracy"]["value"] == 0
    assert clusterings * last["prediction_accuracy"]["null"] <= 0.05  # Markov: the chance of one clustering or more
    assert len(agreements[0]) == 1
    assert len(pieces[0]) <= 0.1 * sum(map(len, pieces))
    assert all(last[metric]["p"] > 0.05 for metric in (*PIECES, *AGREEMENTS))

    def p_of(metric: str) -> str:
        p = p_value(last[metric]["p"])
        return p if metric != REJECTED else f"{p}, **from a null since rejected: it says nothing**"

    return [
        *(
            f"| {label} | {fixed(last[m]['value'], 3)} | {fixed(last[m]['null'], 3)} | {p_of(m)} |"
            for label, m in ROWS.items()
        ),
        f"silhouette of {fixed(best, 2)} makes no groups",
        f"the best silhouette of its circuits is {fixed(best, 3)}",
        f"where one of {clusterings} would have been seen",
        f"one of the {clusterings} clusterings would have been enough for p ≤ 0.05",
        f"of its {sum(map(len, pieces))} silhouettes ({len(points)} checkpoints) {len(pieces[0])} have p ≤ 0.05",
        f"They lie {span(pieces[0], 3)} above their null",
        f"could have been seen; {fixed(max(pieces[1]), 3)} was not",
        f"of {sum(map(len, agreements))} ({len(points)} checkpoints) {len(agreements[0])} has p ≤ 0.05, an agreement of "
        f"{fixed(max(agreements[0]), 2)}; {fixed(max(agreements[1]), 2)} was not seen",
        f"the last of {len(points)} checkpoints",
        f"from step {suite.onset * total:.0f} on",
        f"({suite.num_heads} in the layer)",
    ]


def seen_and_not(points: list[Row], metrics: list[str]) -> tuple[list[float], list[float]]:
    """By how much each value lies above its null, at every checkpoint: where p ≤ 0.05, and elsewhere."""
    every: list[Scalar] = [scalar(point, metric) for point in points for metric in metrics]
    return (
        [each["value"] - each["null"] for each in every if each["p"] <= 0.05],
        [each["value"] - each["null"] for each in every if each["p"] > 0.05],
    )
