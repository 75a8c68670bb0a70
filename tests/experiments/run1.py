"""What Run 1 would cost."""

from __future__ import annotations

from pathlib import Path

from tests.experiments.records import fixed, read

ASSUMED_TFLOPS = 100
SETTINGS = ("attention of 59 %, and about 30 % of the gap",)  # the study's figures


def fragments(folder: Path) -> list[str]:
    cost = read(folder / "cost.json")
    seconds = cost["operations"] / (ASSUMED_TFLOPS * 1e12)
    duration = f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
    return [
        f"it would take a GPU or about {cost['core_hours']:,.0f} core hours",
        f"{cost['trainings']} trainings of {cost['weights'] / 1e6:.0f} M weights over {cost['tokens'] / 1e9:.1f} G tokens in all, "
        f"{cost['operations']:.1e} operations".replace("e+", "e"),
        f"On a GPU: {duration} (assumed: {ASSUMED_TFLOPS} TFLOP/s",
        f"On CPUs: about {cost['core_hours']:,.0f} core hours",
        f"{fixed(cost['state_bytes'] / 1e9, 2 if cost['state_bytes'] < 1e9 else 1)} GB for weights, gradients",
        f"takes {cost['step_sequences']} sequences at a time reached {fixed(cost['step_peak_bytes'] / 1e9, 1)} GB in all",
        f"{fixed(cost['snapshot_bytes'] / 1e9, 1)} GB for snapshots",
    ]
