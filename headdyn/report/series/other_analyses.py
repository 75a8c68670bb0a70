"""What analyses of a whole series found that give no verdict on emergence: their changes, and the figures they drew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from headdyn.core.numbers import count, units
from headdyn.report.page import picture
from headdyn.report.series.record import series_titles, verdicts
from headdyn.sweep.record import SweepRecord


@dataclass(frozen=True, kw_only=True)
class OtherAnalysis:
    """One such analysis of one series. Rows are (metric, scalar, units, meaning); `reason` says why none."""

    title: str
    text: str
    reason: str
    rows: Sequence[tuple[str, Mapping[str, Any], str, str]]
    figures: Sequence[Markup]


def other_analyses(sweep: SweepRecord) -> list[OtherAnalysis]:
    """Every analysis of verdict.json that judged no emergence, in its order."""
    entries = verdicts(sweep.folder)
    titles = series_titles(entries)
    told = [entry for entry in entries if "counted" not in entry["verdict"]]
    return [_read(sweep, entry, titles[entry["series"]]) for entry in told]


def _read(sweep: SweepRecord, entry: Mapping[str, Any], series: str) -> OtherAnalysis:
    verdict, name = entry["verdict"], entry["analysis"].replace("_", " ")
    title = ": ".join(part for part in (name[0].upper() + name[1:], series) if part)
    steps = verdict.get("steps", [])
    text = f"{count(len(steps), 'checkpoint')}, step {steps[0]} to {steps[-1]}." if len(steps) > 1 else ""
    text += "".join(f" {revision} is left out: {why}." for revision, why in verdict.get("left_out", {}).items())
    rows = [
        (
            metric,
            scalar,
            units(scalar),
            entry["meanings"].get(metric, ""),
        )
        for metric, scalar in entry["summary"].items()
    ]
    return OtherAnalysis(
        title=title,
        text=text.strip(),
        reason=verdict.get("reason", ""),
        rows=rows,
        figures=[picture(sweep.folder / file, f"{title}: {name}") for name, file in entry["figures"].items()],
    )
