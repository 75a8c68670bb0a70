"""What was tried to break a sweep, and which mistakes the tests noticed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from headdyn.core.statistics import binomial_interval
from tests.experiments.records import fixed, read

SETTINGS = ("kill 90 % of random mistakes", "95 % Clopper–Pearson intervals")


def fragments(folder: Path) -> list[str]:
    tried = read(folder / "tried.json")
    launchers, replicas = tried["launchers"], tried["replicas"]
    return [
        *faults(folder),
        *mutants(folder),
        f"A sweep of {launchers['runs']} runs by {launchers['launchers'][0]}, by {launchers['launchers'][1]} and by "
        f"{launchers['launchers'][2]} gave the {launchers['files']} files of one",
        f"One training on {replicas['processes']} processes in {replicas['parts']} parts",
        f"within {replicas['loss_nats']} nats and {replicas['weights']} in any weight",
        f"stopped by {' or '.join(launchers['signals'])} queued",
    ]


def faults(folder: Path) -> list[str]:
    """The table's rows."""
    return [
        f"| {row['what']} | {row['tried']} | {row['same']} | {row['refused']} | {len(row['lost'])} |"
        for row in read(folder / "faults.json")
    ]


def mutants(folder: Path) -> list[str]:
    lines = [json.loads(line) for line in (folder / "mutants.jsonl").read_text(encoding="utf-8").splitlines()]
    made, survived = (Counter(line["part"] for line in each) for each in (
        lines, [line for line in lines if line["outcome"] == "survived"]
    ))  # fmt: skip
    rows = []
    for part, count in made.items():
        killed = count - survived[part]
        low, high = (fixed(100 * float(end), 0) for end in binomial_interval(killed, count))
        interval = "chosen, no sample" if part == "by hand" else f"{fixed(100 * killed / count, 0)} % [{low}, {high}]"
        rows.append(f"| {part} | {count} | {killed} | {interval} |")
    return rows
