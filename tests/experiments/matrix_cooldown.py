"""The matrix's topic-ordered arm with shuffled ends of different lengths."""

from __future__ import annotations

from pathlib import Path

SETTINGS = (
    "RoPE, ordinary heads, 8 seeds",
    "those at 0.25 are",
    "at a share of 0.75 less that at 0.25 lies above 0",
    "At a share of 0.75 less than half of what 0.25 leaves",
    "of what 0.75 leaves is nearer to 0 than half of what 0.25 leaves",
    "at a share of 0 lies above 0",
)


def fragments(folder: Path) -> list[str]:
    return []
