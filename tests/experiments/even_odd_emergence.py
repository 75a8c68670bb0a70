"""Even against odd heads on one planted and one null suite."""

from __future__ import annotations

from pathlib import Path

from headdyn.core.numbers import p_value
from headdyn.studies.organisms.settings import Organism
from tests.experiments.records import fixed, p_is, read, rows, scalar, spelled

SETTINGS = ("To have p ≤ 0.05 among", "Intervals are 95 %")


def fragments(folder: Path) -> list[str]:
    null, planted, study = (entry["verdict"] for entry in read(folder / "verdict.json"))
    course = {series: rows(folder / "timeline.csv", series=series) for series in "012"}
    last = {series: points[-1] for series, points in course.items()}
    strength = {series: scalar(row, "strength") for series, row in last.items()}
    organism = Organism(name="planted", organism="planted")
    onset = f"{organism.onset * planted['total_steps']:.0f}"
    threshold = planted["measures"]["strength"]["threshold"]
    assert null["measures"]["strength"]["class"] == "none"

    def steps(measure: dict[str, int]) -> str:
        return f"{measure['emerges_after_step']} to {measure['emerges_at_step']}"

    def with_interval(series: str) -> str:
        value = strength[series]
        return f"{fixed(value['value'], 2)} [{fixed(value['ci_low'], 2)}, {fixed(value['ci_high'], 2)}]"

    nats = {series: [scalar(point, "strength_nats") for point in points] for series, points in course.items()}
    bound = {series: float(row["strength_nats_band"]) for series, row in last.items()}
    reverse = min(course["0"], key=lambda point: float(point["strength_nats"]))  # odd above even by most
    least = scalar(reverse, "strength_nats")
    odd = {"value": -least["value"], "ci_low": -least["ci_high"], "ci_high": -least["ci_low"]}
    most = max(point["value"] for point in nats["0"])
    # What the page says in words.
    assert planted["split"]["p"] <= 0.05 < null["split"]["p"] and not null["split"]["found"]
    assert float(reverse["trajectory_p"]) <= 0.05
    assert planted["measures"]["strength"]["emerges_after_step"] < float(onset)
    assert float(onset) < planted["measures"]["strength"]["emerges_at_step"]
    assert study["measures"]["original_strength"]["emerges_at_step"] < float(onset)
    firsts = steps(planted["measures"]["strength"]), steps(study["measures"]["original_strength"])
    ends = with_interval("1"), fixed(study["measures"]["original_strength"]["last"], 2), with_interval("0")
    return [
        f"planted from step {onset} on",
        f"pair ({planted['split']['pairs']}), of even against odd also the balanced split ({planted['split']['splits']})",
        f"| strength > {threshold} first in steps | {firsts[0]} | {firsts[1]} | never |",
        f"dates the specialisation rightly (steps {firsts[0]}; planted from {onset} on)",
        f"where an excess of even over odd by {fixed(bound['0'], 2)} nats would have stood out",
        f"| strength of Δ at the last checkpoint (nats) | {spelled(nats['1'][-1])} | – | {spelled(nats['0'][-1])} |",
        f"even exceeds odd by {fixed(most, 3)} nats at most",
        f"it would have to by {fixed(bound['0'], 2)} nats, in the planted suite by {fixed(bound['1'], 1)}",
        f"odd exceeds even by {spelled(odd)} nats at step {reverse['step']}, {p_is(float(reverse['trajectory_p']))} over all",
        f"| strength at the last checkpoint | {ends[0]} | {ends[1]} | {ends[2]} |",
        f"checkpoints | {p_value(planted['split']['p'])} | no null | {p_value(null['split']['p'])} |",
        f"| the truth | {onset} | {onset} | nothing |",
    ]
