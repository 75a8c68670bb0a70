"""How strongly, and where, must something be planted for a detector to find it? Suites with a known answer, by grade."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headdyn.studies.organisms.power import DETECTORS
from tests.experiments.records import fixed, read

SETTINGS = ("95 %, Clopper–Pearson", "strength > 0.5", "at 0.01 and 0.03")


def fragments(folder: Path) -> list[str]:
    strength, position = (read(folder / f"{grade}.json") for grade in ("strength", "position"))
    return [
        *table(strength["summary"], "value"),
        *table(position["summary"], "value", "alignment"),
        *(
            f"{grade}: {count(rows['suites'])} trainings"
            for grade, rows in (("Strength", strength), ("Position", position))
        ),
    ]


def table(summary: list[dict[str, Any]], *keys: str) -> list[str]:
    """A row for each planting: how many suites every detector finds it in."""
    rows: dict[tuple[Any, ...], dict[str, str]] = {}
    for entry in summary:
        low, high = (fixed(100 * entry[end], 0) for end in ("ci_low", "ci_high"))
        cell = f"{entry['yes']} of {entry['suites']} ({low}–{high} %)"
        rows.setdefault(tuple(entry[key] for key in keys), {})[entry["detector"]] = cell
    return [
        f"| {' | '.join(map(str, place))} | {' | '.join(cells.get(detector, '–') for detector in DETECTORS)} |"
        for place, cells in rows.items()
    ]


def count(suites: list[dict[str, Any]]) -> int:
    return len({(row["suite"], *sorted(row["planting"].items())) for row in suites})
