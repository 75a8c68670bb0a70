"""What README.md says it finds, from the folders of experiments/ that it cites."""

from __future__ import annotations

from pathlib import Path

from tests.experiments import matrix_segments, model_organisms
from tests.experiments.records import read, rows, span

SETTINGS = (
    "95 % intervals over seeds",
    "strength > 0.5",
    "read 59 % within-topic attention",
    "(its Run 1, all four RoPE trainings: 59.2 to 59.5 %)",
)


def fragments(experiments: Path) -> list[str]:
    segments = experiments / "matrix_segments"
    order = {label: matrix_segments.order_effects(segments, label) for label in matrix_segments.OUTCOMES}
    selectivity, probes, loss, _ = order.values()
    rope = rows(segments / "summary.csv", position_enc="rope")
    within = [float(row["within_ratio"]) for row in rope]
    beyond = [float(row["within_ratio"]) - float(row["within_ratio_null"]) for row in rope]
    suites = [read(path) for path in sorted((experiments / "model_organisms" / "suites").glob("*.json"))]
    planted, others, found, false, rule = model_organisms.detections(suites)
    assert probes[-1] == loss[-1]
    return [
        *(f"| {label} | {' | '.join(cells[:-1])} |" for label, cells in list(order.items())[:3]),
        f"(both q = {loss[-1]})",
        f"is not significant (q = {selectivity[-1]})",
        f"Here it is {span(within, 0, scale=100)} % in the RoPE models",
        f"all but {span(beyond, 1, scale=100)} points of it",
        f"even/odd structure in {found} of {len(planted)}",
        f"Of the {len(others)} others it finds something over the trajectory in {false}, and",
        f"in {rule}: a difference that {len(others)} suites do not establish",
    ]
