"""The figures of the checkpoint studies that this project repeats, beside ours under both protocols.

The studies were of one model, so their figures stand only beside the same model's; their claims on the hypotheses are
quoted wherever these are judged, as what they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from headdyn.core.numbers import fixed, number
from headdyn.report.cells import Cell, cell
from headdyn.report.series.record import Series
from headdyn.sweep.jobs import Job

_PARTS = ("query", "key", "value")


@dataclass(frozen=True)
class Beside:
    """One of the study's tables with ours beside it, or why there is none (`reason`).

    `columns` are (heading, sub-heading); a row is its label and its cells.
    """

    title: str
    source: str = ""
    note: str = ""
    reason: str = ""
    columns: Sequence[tuple[str, str]] = ()
    rows: Sequence[tuple[str, Sequence[Cell]]] = ()


def concerns(model: str, study: str = "pythia_emergence") -> bool:
    """Whether a study's figures are of this model, by the last part of its name."""
    return model.rstrip("/").rpartition("/")[2] == str(studies()[study]["model"]).rpartition("/")[2]


def claims() -> Mapping[str, Mapping[str, str]]:
    """What the emergence study said of each of its hypotheses, with its evidence."""
    return studies()["pythia_emergence"]["hypotheses"]


def known_final(model: str) -> float | None:
    """The strength that the study reports at its last checkpoint; None for other models."""
    return float(studies()["pythia_emergence"]["rows"][-1][3]) if concerns(model) else None


def seed_silhouettes(model: str) -> dict[str, list[tuple[int, float]]]:
    """The study's silhouettes by part over steps; {} for other models."""
    study = studies()["pythia_weight_silhouette"]
    if not concerns(model, "pythia_weight_silhouette"):
        return {}
    return {part: [(row[0], row[1 + i]) for row in study["rows"]] for i, part in enumerate(_PARTS)}


def seed_strengths(model: str) -> list[tuple[int, float]]:
    """The study's strengths over steps; [] for other models."""
    return [(row[0], row[3]) for row in studies()["pythia_emergence"]["rows"]] if concerns(model) else []


def beside(series: Sequence[Series]) -> list[Beside]:
    """The study's tables that these series can be held against; one reason where the models are others."""
    of_prompts = [each for each in series if each.of_prompts]
    if not of_prompts:
        return []
    found = []
    for model in dict.fromkeys(each.model for each in of_prompts):
        same = [each for each in of_prompts if each.model == model]
        if not concerns(model):
            named = studies()["pythia_emergence"]["model"]
            reason = f"The studies' figures are of {named} alone; of {model} they report none."
            if any(each.organism for each in same):
                reason += " What is known of this suite by construction is checked under quality control."
            found.append(Beside(title="Emergence of even/odd specialisation", reason=reason))
            continue
        found.append(_timeline(same))
        if any(each.points(f"{kind}_silhouette") for each in same for kind in ("qk", "seed_query")):
            found.append(_silhouettes(same))
    return found


def _timeline(series: Sequence[Series]) -> Beside:
    """Seed value | our value under protocol=seed | our value under protocol=corrected, a row a step."""
    study = studies()["pythia_emergence"]
    theirs = {row[0]: row[1:] for row in study["rows"]}
    ours = _by_step(series)
    columns = [
        ("the study", "even, odd: right"),
        ("the study", "strength"),
        ("ours, protocol=seed", "even, odd: right"),
        ("ours, protocol=seed", "strength, one prompt"),
        ("ours, protocol=corrected", "strength over pairs"),
        ("ours, protocol=corrected", "strength of Δ (nats)"),
    ]
    rows = []
    for step in sorted(theirs.keys() | ours.keys()):
        said = theirs.get(step)
        first = [Cell("–"), Cell("–")] if said is None else [Cell(f"{_verdict(said[0])}, {_verdict(said[1])}")]
        first += [] if said is None else [Cell(fixed(said[2], 0, signed=True))]
        rows.append((f"step {number(step)}", [*first, *_our_cells(ours.get(step, []))]))
    return Beside("Emergence of even/odd specialisation", study["source"], study["note"], "", columns, rows)


def _our_cells(jobs: Sequence[Job]) -> list[Cell]:
    seed = next((job for job in jobs if "seed_strength" in job.run.scalars), None)
    best = next(iter(jobs), None)
    if seed is None:
        reason = "not run under protocol=seed" if jobs else "not run"
        parts = [Cell(reason=reason)] * 2
    else:
        values = [seed.run.value(f"seed_{half}_success") for half in ("even", "odd")]
        parts = [Cell(", ".join(_verdict(v) for v in values)), cell(seed.scalar("seed_strength"), "seed_strength")]
    if best is None:
        return [*parts, Cell(reason="not run"), Cell(reason="not run")]
    return [*parts, *(cell(best.scalar(name), name) for name in ("strength", "strength_nats"))]


def _silhouettes(series: Sequence[Series]) -> Beside:
    study = studies()["pythia_weight_silhouette"]
    theirs = {row[0]: row[1:] for row in study["rows"]}
    ours = _by_step(series)
    columns = [("the study", part) for part in _PARTS]
    columns += [("ours, protocol=seed", part) for part in _PARTS]
    columns += [("ours, protocol=corrected", name) for name in ("QK circuits", "OV circuits")]
    rows = []
    for step in sorted(theirs.keys() | ours.keys()):
        said = theirs.get(step)
        first = [Cell("–")] * 3 if said is None else [Cell(fixed(v, 3)) for v in said]
        jobs = ours.get(step, [])
        names = (*(f"seed_{part}_silhouette" for part in _PARTS), "qk_silhouette", "ov_silhouette")
        rows.append((f"step {number(step)}", [*first, *(_first(jobs, name) for name in names)]))
    return Beside("Silhouettes of two weight clusters", study["source"], study["note"], "", columns, rows)


def _first(jobs: Sequence[Job], name: str) -> Cell:
    job = next((job for job in jobs if name in job.run.scalars), None)
    return Cell(reason="not run") if job is None else cell(job.scalar(name), name)


def _by_step(series: Sequence[Series]) -> dict[int, list[Job]]:
    found: dict[int, list[Job]] = {}
    for each in series:
        for row in each.counted:
            job = each.jobs.get(row["revision"])
            if job is not None and job.complete:
                found.setdefault(row["step"], []).append(job)
    return found


def _verdict(success: float | None) -> str:
    return "–" if success is None else "yes" if success else "no"


@cache
def studies() -> dict[str, Any]:
    """Everything in seed_tables.json."""
    return json.loads((Path(__file__).parents[1] / "seed_tables.json").read_text(encoding="utf-8"))
