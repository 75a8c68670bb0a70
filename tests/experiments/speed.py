"""What the benchmarks recorded."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from headdyn.core.numbers import fixed
from tests.experiments.records import read

SETTINGS = ("probes 3 times as fast",)


def fragments(folder: Path) -> list[str]:
    steps, growth = read(folder / "training_step_before.json"), read(folder / "scaling.json")
    muon, probes = read(folder / "optimizer_step.json"), read(folder / "probes.json")
    factors = ("sequences", "length", "heads", "layers")
    right = {fixed(100 * share, 1) for share in probes["accuracy"].values()}
    assert len(right) == 1
    return [
        *(step(record) for record in steps.values()),
        f"step of {muon['parameters'] / 1e6:.0f} M parameters: {fixed(median(muon['ratio']), 2)} times torch's speed "
        f"({fixed(muon['seconds'][0], 2)} against {fixed(muon['seconds'][1], 2)} s)",
        f"products alone are {fixed(100 * median(muon['share_of_limit']), 0)} % of it",
        f"layers: {fixed(median(probes['ratio']), 1)} times scikit-learn's speed ({fixed(probes['seconds'][0], 2)} "
        f"against {fixed(probes['seconds'][1], 2)} s), both right on {right.pop()} %",
        *(
            f"| {what} | {' | '.join(fixed(growth[key][factor]['exponent'], 2) for factor in factors)} |"
            for what, key in (("a training step", "training step"), ("attention statistics", "attention statistics"))
        ),
    ]


def step(record: dict[str, Any]) -> str:
    """A row of the table."""
    ratio, tokens, seconds = record["ratio"], record["tokens_per_second"], record["seconds"]
    whole = seconds["headdyn gradients"] + seconds["headdyn update"]
    share = median(record["share_of_limit"])
    cells = [
        record["shape"],
        record["batch"],
        f"{fixed(median(ratio), 2)} (from {fixed(min(ratio), 2)} to {fixed(max(ratio), 2)})",
        f"{tokens['headdyn']:,.0f}",
        f"{tokens['Hugging Face']:,.0f}",
        f"{fixed(100 * share, 0)} %",
        f"{fixed(100 * seconds['headdyn update'] / whole, 0)} %",
    ]
    return f"| {' | '.join(cells)} |"
