"""The snapshots of one training of the matrix."""

from __future__ import annotations

from pathlib import Path

from tests.experiments.records import fixed, read, rows, scalar, spelled

SETTINGS = ("intervals are 95 %",)


def fragments(folder: Path) -> list[str]:
    (entry,), points = read(folder / "verdict.json"), rows(folder / "timeline.csv")
    measures, total, runs = entry["verdict"]["measures"], entry["verdict"]["total_steps"], rows(folder / "summary.csv")
    plateau = float(runs[0]["mixture_nats"])
    steps = [int(point["step"]) for point in points]
    below = next(i for i, point in enumerate(points) if float(point["loss_nats"]) < plateau)
    assert all(float(point["loss_nats"]) < plateau for point in points[below:])
    assert measures["specialisation"]["class"] == "none"

    def row(after: int, by: int) -> str:
        return f"| {after} to {by} | {fixed(100 * after / total, 0)} to {fixed(100 * by / total, 0)} % |"

    def end(metric: str, scale: float = 1) -> str:
        return spelled(scalar(points[-1], metric), scale=scale)

    emerges = {n: (m["emerges_after_step"], m["emerges_at_step"]) for n, m in measures.items()}
    return [
        f"The {len(points)} log-spaced snapshots of one training of {total} steps",
        f"({runs[0]['selectivity_n']}; {runs[0]['loss_nats_n']} of the loss)",
        f"plateau {row(steps[below - 1], steps[below])} {end('loss_nats')} nats |",
        f"highest excess {row(*emerges['probe_accuracy_middle'])} {end('probe_accuracy_middle', 100)} % |",
        f"half of its highest {row(*emerges['selectivity'])} {end('selectivity', 100)} points |",
    ]
