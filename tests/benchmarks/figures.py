"""How the benchmarks print what they measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def three(values: Sequence[float], unit: str = "") -> str:
    """Median and spread."""
    return f"{statistics.median(values):.3g}{unit} (from {min(values):.3g} to {max(values):.3g})"
