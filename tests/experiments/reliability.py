"""What was tried to break a sweep, and which mistakes the tests noticed."""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from headdyn.core.statistics import binomial_interval
from tests.experiments.records import fixed, read

SETTINGS = (
    "the prediction of 90 % failed",
    "kill 90 % of random mistakes",
    "95 % Clopper–Pearson intervals",
)


def fragments(folder: Path) -> list[str]:
    tried = read(folder / "tried.json")
    launchers, replicas, fuzz = tried["launchers"], tried["replicas"], tried["fuzz"]
    return [
        *faults(folder),
        *mutants(folder),
        f"A sweep of {launchers['runs']} runs by {launchers['launchers'][0]}, by {launchers['launchers'][1]} and by "
        f"{launchers['launchers'][2]} gave the same files as one",
        f"One training on {replicas['processes']} processes in {replicas['parts']} parts",
        f"within {replicas['loss_nats']} nats and {replicas['weights']} in any weight",
        f"stopped by {' or '.join(launchers['signals'])} queued",
        f"stopped after {len((folder / 'fresh_mutants.jsonl').read_text(encoding='utf-8').splitlines())} of 160 in random order",
        f"{fuzz['planned']} odd commands were planned or refused in a line, and {fuzz['processes']} of those refused",
    ]


def faults(folder: Path) -> list[str]:
    """The table's rows, and how long all of them took."""
    rows = read(folder / "faults.json")
    return [
        f"{fixed(sum(row['seconds'] for row in rows) / 60, 0)} minutes on two cores",
        *(
            f"| {row['what']} | {row['tried']} | {row['same']} | {row['refused']} | {len(row['lost'])} |"
            for row in rows
        ),
    ]


def mutants(folder: Path) -> list[str]:
    """The tables' rows: of each part how many were tried, are equivalent and were killed, and the rate of the others."""
    of_old_sample, of_fresh_sample = (
        [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        for name in ("mutants.jsonl", "fresh_mutants.jsonl")
    )
    first = read(folder / "tried.json")["mutants_at_first"]
    reasons = {identity(line): line["reason"] for line in read(folder / "equivalent_mutants.json")}
    survivors = {identity(line) for line in (*of_old_sample, *of_fresh_sample) if line["outcome"] == "survived"}
    assert all(reasons.values()) and set(reasons) <= survivors
    rows = []
    for part, lines in by_part(of_old_sample).items():
        earlier = "{} of {}".format(*first[part]) if part in first else "–"
        rows.append(f"| {part} | {earlier} | {rate(lines, reasons, chosen=part == 'by hand')} |")
    fresh = by_part(of_fresh_sample)
    assert not {*map(identity, of_fresh_sample)} & {*map(identity, of_old_sample)}
    return [
        *rows,
        *(f"| {part} | {rate(lines, reasons)} |" for part, lines in (*fresh.items(), ("all", of_fresh_sample))),
    ]


def by_part(lines: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {part: [line for line in lines if line["part"] == part] for part in sorted({line["part"] for line in lines})}


def rate(lines: list[dict[str, Any]], reasons: Container[tuple[Any, ...]], chosen: bool = False) -> str:
    """Cells of a row: tried, equivalent, killed, and how often one that is not equivalent is killed."""
    equivalent = sum(identity(line) in reasons for line in lines)
    killed, count = sum(line["outcome"] != "survived" for line in lines), len(lines) - equivalent
    low, high = (fixed(100 * float(end), 0) for end in binomial_interval(killed, count))
    interval = "chosen, no sample" if chosen else f"{fixed(100 * killed / count, 0)} % [{low}, {high}]"
    return f"{len(lines)} | {equivalent} | {killed} | {interval}"


def identity(mutant: dict[str, Any]) -> tuple[Any, ...]:
    return mutant["module"], mutant["change"], mutant["place"]
