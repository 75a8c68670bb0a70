"""Reading committed records, and printing their numbers as headdyn prints them."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize, stats

from headdyn.core.numbers import fixed, p_is, spelled

Row = dict[str, str]
Scalar = dict[str, Any]

__all__ = [
    "at_most",
    "average",
    "effect",
    "fixed",
    "high",
    "judged",
    "low",
    "p_is",
    "p_of",
    "percent",
    "plain",
    "read",
    "rows",
    "scalar",
    "share",
    "span",
    "spelled",
    "would_be_seen",
]


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def rows(path: Path, **where: str) -> list[Row]:
    """The rows of a CSV file whose cells are as `where` says."""
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if all(row[name] == cell for name, cell in where.items())]


def scalar(row: Row, metric: str) -> Scalar:
    """A metric of a row with its interval, null and p, where the row has them."""
    cells = {"value": row[metric]} | {
        part: row.get(f"{metric}_{part}", "") for part in ("ci_low", "ci_high", "null", "p", "q")
    }
    return {part: float(text) for part, text in cells.items() if text}


def effect(
    path: Path, outcome: str, levels: Mapping[str, Sequence[str]], held: Mapping[str, str] | None = None
) -> Scalar:
    """The contrast, or interaction, of exactly these levels in an effects.json; with others held, the simple effect."""
    wanted = {name: list(pair) for name, pair in levels.items()}
    (entry,) = [
        entry
        for entry in read(path)
        if entry["outcome"] == outcome
        and entry["levels"] == wanted
        and entry.get("held", {}) == (held or {})
        and entry.get("kind") != "mean"
    ]
    return dict(entry)


def average(runs: Iterable[Row], metric: str, factor: str, low: str, high: str) -> Scalar:
    """`high` less `low` within a seed, averaged over seeds, with Student's interval (95 %): without headdyn's statistics."""
    runs = list(runs)
    seeds = sorted({row["seed"] for row in runs})
    arms = {
        level: [
            np.mean([float(row[metric]) for row in runs if row["seed"] == seed and row[factor] == level])
            for seed in seeds
        ]
        for level in (low, high)
    }
    differences = np.subtract(arms[high], arms[low])
    half = stats.t.ppf(0.975, len(seeds) - 1) * stats.sem(differences)
    value = float(differences.mean())
    return {"value": value, "ci_low": value - half, "ci_high": value + half, "n": len(seeds)}


def standard_error(contrast: Scalar) -> float:
    """From Student's interval (95 %)."""
    return float((contrast["ci_high"] - contrast["value"]) / stats.t.ppf(0.975, contrast["n"] - 1))


def p_of(contrast: Scalar) -> float:
    """Student's two-sided p, from the interval."""
    return float(2 * stats.t.sf(abs(contrast["value"]) / standard_error(contrast), contrast["n"] - 1))


def would_be_seen(contrast: Scalar) -> float:
    """The smallest effect found in four of five repetitions: where Student's noncentral t passes its bound that often."""
    error, freedom = standard_error(contrast), contrast["n"] - 1
    bound = stats.t.ppf(0.975, freedom)
    found = optimize.brentq(lambda size: stats.nct.sf(bound, freedom, size) - 0.8, 0, 20)
    return float(found * error)


def low(yes: int, n: int) -> float:
    """Clopper–Pearson's lower end, 95 %, two-sided."""
    return float(stats.beta.ppf(0.025, yes, n - yes + 1)) if yes else 0.0


def high(yes: int, n: int) -> float:
    """Clopper–Pearson's upper end."""
    return float(stats.beta.ppf(0.975, yes + 1, n - yes)) if yes < n else 1.0


def percent(share: float) -> str:
    """A share as whole per cent."""
    return fixed(100 * share, 0)


def share(yes: int, n: int, units: str = "") -> str:
    """`4 of 4 planted suites (40 to 100 %)`, with the interval of low and high."""
    return f"{yes} of {n}{units} ({percent(low(yes, n))} to {percent(high(yes, n))} %)"


def judged(holds: bool) -> str:
    return "supported" if holds else "not supported"


def at_most(value: float, places: int) -> str:
    """A bound, rounded up."""
    return fixed(math.ceil(value * 10**places) / 10**places, places)


def span(values: Iterable[float], places: int, *, scale: float = 1.0, signed: bool = False) -> str:
    """`81 to 83`: the least and the greatest, or the one number where both print alike."""
    values = [scale * float(value) for value in values]
    ends = [fixed(end, places, signed=signed) for end in (min(values), max(values))]
    return " to ".join(dict.fromkeys(ends))


def plain(text: str) -> str:
    """Prose alone, on one line: without code, headings, targets of links, section numbers and names such as Pythia-160m."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]*`", "", re.sub(r"^(?:    .*|#.*)$", "", text, flags=re.MULTILINE))
    text = re.sub(r"\]\([^)]*\)", "]", text)
    text = re.sub(r"§\d+|arXiv \d+\.\d+|\b[A-Za-z]+[-_]?\d[\w.-]*\w|\b[A-Za-z]+\d\b", "", text)
    return " ".join(text.split())
