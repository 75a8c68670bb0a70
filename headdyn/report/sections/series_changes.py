"""What analyses of a whole series found that judge no emergence: changes from first to last, and their figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from headdyn.core.numbers import count, units
from headdyn.report.markup import gallery, heading, soft, table
from headdyn.report.page import measured, picture
from headdyn.report.section import Section
from headdyn.report.series.record import series_titles, verdicts
from headdyn.sweep.record import SweepRecord


@dataclass(frozen=True, kw_only=True)
class Changes:
    """One such analysis of one series. Rows are (metric, scalar, units, meaning); `reason` says why there are none."""

    title: str
    text: str
    reason: str
    rows: Sequence[tuple[str, Mapping[str, Any], str, str]]
    figures: Mapping[str, Path]


def section(sweep: SweepRecord) -> Section | None:
    """None where there was no such analysis."""
    parts, found = [], changes(sweep)
    for each in found:
        rows = [[metric, measured(scalar), of, meaning] for metric, scalar, of, meaning in each.rows]
        parts.append(
            heading(each.title) + soft(" ".join(filter(None, (each.text, each.reason and f"Absent: {each.reason}."))))
        )
        parts += [table(["metric", "value", "units", "meaning"], rows)] if rows else []
        parts.append(gallery(picture(path, f"{each.title}: {name}") for name, path in each.figures.items()))
    names = " · ".join(dict.fromkeys(each.title.partition(":")[0] for each in found))
    return Section("changes", names, Markup("").join(parts)) if parts else None


def changes(sweep: SweepRecord) -> list[Changes]:
    """Every analysis of verdict.json that judged no emergence, in its order."""
    entries = verdicts(sweep.folder)
    titles = series_titles(entries)
    found = []
    for entry in entries:
        verdict = entry["verdict"]
        if "counted" in verdict:
            continue
        name, steps = entry["analysis"].replace("_", " "), verdict.get("steps", [])
        text = f"{count(len(steps), 'checkpoint')}, step {steps[0]} to {steps[-1]}." if len(steps) > 1 else ""
        text += "".join(f" {revision} is left out: {why}." for revision, why in verdict.get("left_out", {}).items())
        found.append(
            Changes(
                title=": ".join(filter(None, (name[0].upper() + name[1:], titles[entry["series"]]))),
                text=text.strip(),
                reason=verdict.get("reason", ""),
                rows=[
                    (metric, scalar, units(scalar), entry["meanings"].get(metric, ""))
                    for metric, scalar in entry["summary"].items()
                ],
                figures={title: sweep.folder / file for title, file in entry["figures"].items()},
            )
        )
    return found
