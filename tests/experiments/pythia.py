"""What the studies of Pythia-160m would cost."""

from __future__ import annotations

from pathlib import Path

from tests.experiments.records import fixed, read

SETTINGS = ()


def fragments(folder: Path) -> list[str]:
    cost = read(folder / "cost.json")
    return [
        f"for {cost['checkpoints_of_both_studies']} checkpoints of {cost['weights'] / 1e6:.0f} M weights: "
        f"{fixed(cost['download_bytes'] / 1e9, 1)} GB",
        f"{fixed(cost['weight_bytes'] / 1e9, 2)} GB of memory",
        f"About {fixed(cost['core_hours'], 1)} hours of one CPU core for the first command's {cost['checkpoints']} checkpoints",
    ]
