"""What was tried to break a sweep, and which mistakes the tests noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headdyn.core.statistics import binomial_interval
from tests.experiments.records import fixed, read

SETTINGS = ("kill 90 % of random mistakes", "95 % Clopper–Pearson intervals")


def fragments(folder: Path) -> list[str]:
    tried = read(folder / "tried.json")
    launchers, replicas, fuzz = tried["launchers"], tried["replicas"], tried["fuzz"]
    return [
        *faults(folder),
        *mutants(folder),
        f"A sweep of {launchers['runs']} runs by {launchers['launchers'][0]}, by {launchers['launchers'][1]} and by "
        f"{launchers['launchers'][2]} gave the {launchers['files']} files of one",
        f"One training on {replicas['processes']} processes in {replicas['parts']} parts",
        f"within {replicas['loss_nats']} nats and {replicas['weights']} in any weight",
        f"stopped by {' or '.join(launchers['signals'])} queued",
        f"{fuzz['planned']} odd commands were planned or refused in a line, and {fuzz['processes']} of those refused",
    ]


def faults(folder: Path) -> list[str]:
    """The table's rows."""
    return [
        f"| {row['what']} | {row['tried']} | {row['same']} | {row['refused']} | {len(row['lost'])} |"
        for row in read(folder / "faults.json")
    ]


def mutants(folder: Path) -> list[str]:
    """The table's rows: of each part how many were tried, are equivalent and were killed, and the rate of the others."""
    lines = [json.loads(line) for line in (folder / "mutants.jsonl").read_text(encoding="utf-8").splitlines()]
    first = read(folder / "tried.json")["mutants_at_first"]
    reasons = {identity(line): line["reason"] for line in read(folder / "equivalent_mutants.json")}
    assert all(reasons.values()) and set(reasons) <= {identity(line) for line in lines if line["outcome"] == "survived"}
    rows = []
    for part in dict.fromkeys(line["part"] for line in lines):
        tried = [line for line in lines if line["part"] == part]
        equivalent = sum(identity(line) in reasons for line in tried)
        killed, count = sum(line["outcome"] != "survived" for line in tried), len(tried) - equivalent
        low, high = (fixed(100 * float(end), 0) for end in binomial_interval(killed, count))
        interval = "chosen, no sample" if part == "by hand" else f"{fixed(100 * killed / count, 0)} % [{low}, {high}]"
        earlier = "{} of {}".format(*first[part]) if part in first else "–"
        rows.append(f"| {part} | {earlier} | {len(tried)} | {equivalent} | {killed} | {interval} |")
    return rows


def identity(mutant: dict[str, Any]) -> tuple[Any, ...]:
    return mutant["module"], mutant["change"], mutant["place"]
