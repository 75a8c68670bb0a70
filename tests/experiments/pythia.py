"""What the studies of Pythia-160m would cost."""

from __future__ import annotations

from pathlib import Path

from headdyn.models.revisions import LISTS
from tests.experiments.records import fixed, read

SETTINGS = ()


def fragments(folder: Path) -> list[str]:
    cost = read(folder / "cost.json")
    evens, clusters, every = cost["checkpoints"], len(LISTS["original_8"]), cost["checkpoints_of_both_studies"]
    hours, of_clusters = (fixed(cost["core_hours"] * share, 1) for share in (1, clusters / evens))
    download = f"{fixed(cost['download_bytes'] / 1e9, 1)} GB"
    return [
        f"at least {hours}, {hours} and {of_clusters} hours of one CPU core and {download} of downloads",
        f"| first | {evens} | at least {hours} |",
        f"| second | {evens} | at least {hours} |",
        f"| third | {clusters} | at least {of_clusters} |",
        f"{download} for {every} checkpoints of {cost['weights'] / 1e6:.0f} M weights, of which {evens + clusters - every} serve both",
        f"{fixed(cost['weight_bytes'] / 1e9, 2)} GB for the weights of one checkpoint",
    ]
