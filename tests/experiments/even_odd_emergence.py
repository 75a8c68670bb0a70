"""Even against odd heads on one planted and one null suite."""

from __future__ import annotations

from pathlib import Path

from headdyn.core.numbers import p_value
from headdyn.studies.organisms.settings import Organism
from tests.experiments.records import fixed, read, rows, scalar

SETTINGS = ()


def fragments(folder: Path) -> list[str]:
    null, planted, study = (entry["verdict"] for entry in read(folder / "verdict.json"))
    last = {series: rows(folder / "timeline.csv", series=series)[-1] for series in "012"}
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

    firsts = steps(planted["measures"]["strength"]), steps(study["measures"]["original_strength"])
    ends = with_interval("1"), fixed(study["measures"]["original_strength"]["last"], 2), with_interval("0")
    return [
        f"planted from step {onset} on",
        f"pair ({planted['split']['pairs']}), of even against odd also the balanced split ({planted['split']['splits']})",
        f"| strength > {threshold} first in steps | {firsts[0]} | {firsts[1]} | never |",
        f"| strength at the last checkpoint | {ends[0]} | {ends[1]} | {ends[2]} |",
        f"checkpoints | {p_value(planted['split']['p'])} | no null | {p_value(null['split']['p'])} |",
        f"| the truth | {onset} | {onset} | nothing |",
    ]
