"""What was tried to break a sweep, and which mistakes the tests noticed."""

from __future__ import annotations

import json
import re
from collections.abc import Container
from pathlib import Path
from typing import Any

from headdyn.core.statistics import binomial_interval
from tests.experiments.records import fixed, high, percent, read

SAMPLES = ("mutants.jsonl", "fresh_mutants.jsonl", "third_mutants.jsonl")
AGAIN = ("fresh_mutants_again.jsonl", "third_mutants_again.jsonl")
SETTINGS = (
    "kill 90 % of random mistakes",
    "That 90 % of random mistakes",
    "holds 90 %",
    "so that the 90 % predicted are undecided",
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
        *(f"stopped after {len(lines_of(folder / name))} of 160 in random order" for name in SAMPLES[1:]),
        f"{fuzz['planned']} odd commands were planned or refused in a line, and {fuzz['processes']} of those refused",
    ]


def faults(folder: Path) -> list[str]:
    """The table's rows, and how long all of them took."""
    rows = read(folder / "faults.json")
    tried, same, refused = (sum(row[cell] for row in rows) for cell in ("tried", "same", "refused"))
    assert tried == same + refused and not any(row["lost"] for row in rows), "nothing is lost"
    return [
        f"in {tried} tries: {same} ended with the same bits and {refused} were refused",
        f"**supported** for the faults in the table: 0 of {tried} tries, at most {percent(high(0, tried))} % of such",
        f"{fixed(sum(row['seconds'] for row in rows) / 60, 0)} minutes on two cores",
        *(
            f"| {row['what']} | {row['tried']} | {row['same']} | {row['refused']} | {len(row['lost'])} |"
            for row in rows
        ),
    ]


def mutants(folder: Path) -> list[str]:
    """The tables' rows: of each part how many were tried, are equivalent and were killed, and the rate of the others."""
    of_old_sample, of_fresh_sample, of_third_sample = (lines_of(folder / name) for name in SAMPLES)
    first = read(folder / "tried.json")["mutants_at_first"]
    reasons = {identity(line): line["reason"] for line in read(folder / "equivalent_mutants.json")}
    every = (*of_old_sample, *of_fresh_sample, *of_third_sample)
    survivors = {identity(line) for line in every if line["outcome"] == "survived"}
    assert all(reasons.values()) and set(reasons) <= survivors
    rows = []
    for part, lines in by_part(of_old_sample).items():
        earlier = "{} of {}".format(*first[part]) if part in first else "–"
        rows.append(f"| {part} | {earlier} | {rate(lines, reasons, chosen=part == 'by hand')} |")
    assert len({*map(identity, every)}) == len(every)
    for sample in (of_fresh_sample, of_third_sample):
        rows += [f"| {part} | {rate(lines, reasons)} |" for part, lines in (*by_part(sample).items(), ("all", sample))]
    again = {identity(line): line["outcome"] for name in AGAIN for line in lines_of(folder / name)}
    open_ones = survivors & set(again) - set(reasons)
    killed = sum(again[mutant] != "survived" for mutant in open_ones)
    before, (share, *ends) = (interval(rate(sample, reasons)) for sample in (of_fresh_sample, of_third_sample))
    drawing = interval(rate(by_part(of_old_sample)["drawing"], reasons))
    assert int(ends[0]) < 90 < int(ends[1]), "undecided"
    noticed, drawn = (sum(first[part][i] for part in first if part != "by hand") for i in (0, 1))
    assert high(noticed, drawn) < 0.9 and int(before[2]) < 90, "not supported"
    return [
        "of random mistakes in four parts of the code the tests notice {} % [{}, {}]".format(share, *ends),
        f"**not supported** for earlier tests: {noticed} of {drawn} at first, "
        "{} % [{}, {}] in the second sample".format(*before),
        "Of drawing, {} % [{}, {}] are noticed".format(*drawing),
        *rows,
        f"{killed} of the {len(open_ones)} that are not equivalent and whose code is still there",
        f"the third sample's {share} % is",
    ]


def interval(cells: str) -> list[str]:
    """The rate of a row and its ends, in per cent."""
    return re.findall(r"\d+", cells)[-3:]


def lines_of(record: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]


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
