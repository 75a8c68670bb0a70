"""How strongly must something be planted for a detector to find it? Power against grades of planting (science.md §16).

A grade is a setting of the planting with several values; one is varied at a time. Every suite is recorded in a file of
its own, so that the same command continues where it stopped. Detectors are given the planted layer; they must find the
heads and the onset.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from headdyn.analysis.interventions.specialization import Specialization
from headdyn.core.figures import Figure, Interval, interval_plot
from headdyn.core.json_files import write_json
from headdyn.core.settings import build
from headdyn.core.source_code import provenance
from headdyn.core.store import Store
from headdyn.data.prompts import Alignment
from headdyn.studies.organisms.detection import (
    MANIFEST,
    Row,
    default_settings,
    examine,
    in_percent,
    read_suites,
    record_key,
    share_of,
)
from headdyn.studies.organisms.settings import Organism

log = logging.getLogger(__name__)

# The settings that may be graded, with the type of a value.
GRADES: Mapping[str, Callable[[str], Any]] = {
    "strength": float,
    "redundancy": int,
    "layer": int,
    "position": str,
    "onset": float,
}
DETECTORS = (
    "even/odd found, last checkpoint",
    "even/odd found, trajectory",
    "strength > 0.5, the original studies' rule",
    "planted half ranked first",
    "onset in its interval, heads not known",
)
Grades = Mapping[str, Sequence[Any]]


def parse_grades(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Grades from texts like strength=0,0.5,1. Raises ValueError for a setting that is not graded, or a bad value."""
    grades: dict[str, list[Any]] = {}
    for text in texts:
        key, _, listed = text.partition("=")
        if key not in GRADES or not listed:
            raise ValueError(f"--grade {text} must be KEY=VALUE,VALUE,… with KEY one of {', '.join(GRADES)}")
        try:
            grades[key] = [GRADES[key](value) for value in listed.split(",")]
        except ValueError:
            raise ValueError(f"--grade {text} has a value that is no {GRADES[key].__name__}") from None
        for value in grades[key]:
            build(Organism, {"name": "graded", "organism": "planted", key: value}, "model")
    return grades


def power(
    out: Path,
    *,
    grades: Grades,
    suites: int,
    store: Store,
    settings: Callable[[str, int], Organism] = default_settings,
    analysis: Specialization | None = None,
) -> list[Row]:
    """Do the suites of all grades that are not yet on record in `out`; write power.json and one figure per grade.

    The grade `position` is analysed with every alignment of prompts, other grades with the analysis's own alignment.
    Returns the summary over all suites of these grades on record: one row per grade, value, alignment and detector.
    """
    analysis = analysis or Specialization()
    (out / "suites").mkdir(parents=True, exist_ok=True)
    wanted = ((suite, grade, value) for suite in range(suites) for grade, values in grades.items() for value in values)
    for suite, grade, value in wanted:
        organism = _graded(settings("planted", suite), grade, value)
        for alignment in _alignments(grade, analysis):
            _examine(out, organism, store, dataclasses.replace(analysis, alignment=alignment))
    rows = read_suites(out)
    summary = summarise(rows, grades, settings("planted", 0), analysis)
    write_json(out / "power.json", {"summary": summary, "suites": rows})
    for grade in grades:
        figure(summary, grade).save(out / f"power_{grade}.svg")
    return summary


def _graded(base: Organism, grade: str, value: Any) -> Organism:
    """The suite with one setting changed; `base` itself, with its key, if the layer is the planted one anyway."""
    change: dict[str, Any] = {grade: value}
    graded = dataclasses.replace(base, **change)
    return base if grade == "layer" and graded.planted_layer == base.planted_layer else graded


def _alignments(grade: str, analysis: Specialization) -> Sequence[Alignment]:
    return get_args(Alignment) if grade == "position" else (analysis.alignment,)


def _examine(out: Path, organism: Organism, store: Store, analysis: Specialization) -> None:
    """Record one suite under one analysis, unless an equal suite of another grade is on record."""
    analysis = dataclasses.replace(analysis, layer=organism.planted_layer)
    key = record_key(organism, analysis)
    path = out / "suites" / f"{key}.json"
    if path.exists():
        return
    planting = {name: getattr(organism, name) for name in GRADES} | {"layer": organism.planted_layer}
    row = {"planting": planting, "alignment": analysis.alignment, "key": key, MANIFEST: provenance()}
    write_json(path, row | examine(organism, store, analysis))
    log.info("%s, %s, suite %d: done", planting, analysis.alignment, organism.suite)


def summarise(rows: Sequence[Row], grades: Iterable[str], base: Organism, analysis: Specialization) -> list[Row]:
    """For each grade, value, alignment and detector, how many suites say yes, with 95 % Clopper–Pearson intervals."""
    usual = {name: getattr(base, name) for name in GRADES} | {"layer": base.planted_layer}
    # A suite recorded before a setting could be graded has that setting's usual value.
    plantings = [usual | row["planting"] for row in rows]
    summary = []
    for grade in grades:
        others = {name: usual[name] for name in usual if name != grade}
        graded = [
            (each[grade], row) for each, row in zip(plantings, rows, strict=True) if others.items() <= each.items()
        ]
        for value in sorted({value for value, _ in graded}):
            for alignment in _alignments(grade, analysis):
                suites = [row for level, row in graded if (level, row["alignment"]) == (value, alignment)]
                for detector in DETECTORS:
                    if share := share_of(detector, suites):
                        place = {"grade": grade, "value": value, "alignment": alignment, "detector": detector}
                        summary.append(place | share)
    return summary


def figure(summary: Sequence[Row], grade: str) -> Figure:
    """Power of every detector against the values of one grade; for positions, by the alignment of prompts too."""
    rows = [row for row in summary if row["grade"] == grade]
    intervals = []
    for row in sorted(rows, key=lambda row: DETECTORS.index(row["detector"])):
        aligned = f", by {row['alignment']}" if grade == "position" else ""
        label = f"{grade} {row['value']}{aligned}"
        intervals.append(Interval(label=label, group=row["detector"], **in_percent(row)))
    return interval_plot(
        intervals,
        xlabel="suites in which it is found (%)",
        caption="Suites planted in even heads for which each detector says yes, with 95 % intervals (Clopper–Pearson)."
        + (" “By” names how prompts are aligned." if grade == "position" else ""),
    )
