"""The snapshots of one training of the matrix."""

from __future__ import annotations

from pathlib import Path

from tests.experiments.records import fixed, read, rows, scalar, spelled, would_be_seen

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

    last = runs[-1]
    variance = scalar(last, "specialisation") | {"n": int(last["specialisation_n"])}
    seen = would_be_seen(variance)
    half = next(i for i, point in enumerate(points) if float(point["gap_closed"]) > 0.5)
    emerges = {n: (m["emerges_after_step"], m["emerges_at_step"]) for n, m in measures.items()}
    probe, heads = emerges["probe_accuracy_middle"], emerges["selectivity"]
    assert int(last["revision"].removeprefix("step")) == steps[-1] == total
    assert variance["ci_low"] < 0 < variance["ci_high"]
    assert steps[half] <= steps[below] <= probe[0] < probe[1] <= heads[0]
    return [
        f"The {len(points)} log-spaced snapshots of one training of {total} steps",
        f"({runs[0]['selectivity_n']}; {runs[0]['loss_nats_n']} of the loss)",
        f"plateau {row(steps[below - 1], steps[below])} {end('loss_nats')} nats |",
        f"highest excess {row(*probe)} {end('probe_accuracy_middle', 100)} % |",
        f"half of its highest {row(*heads)} {end('selectivity', 100)} points |",
        f"not shown | | {spelled(variance)} share² |",
        f"variance of {fixed(seen, 4)} share² would be seen in four of five repetitions: topics that differ by "
        f"{fixed(100 * seen**0.5, 1)} points",
        f"leaves the topic-blind plateau first (steps {steps[below - 1]} to {steps[below]}), then a probe reads the topic "
        f"(steps {probe[0]} to {probe[1]}), then heads select it (steps {heads[0]} to {heads[1]})",
        f"of the {fixed(100 * float(last['within_ratio']), 0)} % of attention within the topic nearness alone gives "
        f"{fixed(100 * float(last['within_ratio_null']), 0)} %",
        f"By that date of the loss, steps {steps[half - 1]} to {steps[half]}, it falls first",
    ]
