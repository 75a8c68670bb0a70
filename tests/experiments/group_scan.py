"""Scans over groups of heads on suites with a known answer: `python -m tests.experiments.group_scan SWEEP` records them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from headdyn.analysis.interventions.group_scan import GroupScan
from headdyn.core.figures import Interval, interval_plot
from headdyn.sweep.record import SweepRecord
from tests.experiments.records import fixed, judged, p_is, read, share, span, spelled

SETTINGS = (
    "fixed at 0.5 nats",
    "with a weight of 0.01 or more whose",
    "at 0 nothing is planted",
    "and at 0.1 a group",
    "in no suite at 0",
    "At 0.003, where",
    "had found three suites of four",
    "twelve heads",
    "number 5",
    "p ≤ 0.05",
    "p > 0.05",
    "it is 0.05 or less also",
    "is over pairs (95 %)",
)
WEAK = 0.01  # the least strength at which the scan finds what is planted
PLANTED = {0, 2, 4, 6, 8, 10}


def record(sweep: Path) -> list[dict[str, Any]]:
    """Of every suite the group that stands out most, the scan's p, and what the group adds on other pairs."""
    suites = []
    for job in SweepRecord.read(sweep).complete:
        model, groups = job.run.manifest["config"]["model"], pq.read_table(job.run.folder / "group_scan.parquet")
        best = max(groups.to_pylist(), key=lambda group: group["standardised"])
        added = job.run.scalars["best_group_nats"]
        found = {name: added[name] for name in ("value", "ci_low", "ci_high", "p")}
        graded = {"strength": model["strength"]} if "model.strength" in job.factors else {}
        suites.append({"kind": model["organism"], "suite": model["suite"], **graded, "heads": best["heads"], **found})
    return suites


def fragments(folder: Path) -> list[str]:
    suites, graded = read(folder / "scans.json"), read(folder / "graded.json")
    planted, null = ([each for each in suites if each["kind"] == kind] for kind in ("planted", "null"))
    found, false = (sum(map(is_rare, group)) for group in (planted, null))
    enough, still_false = (sum(map(is_found, group)) for group in (planted, null))
    least, right = GroupScan.least_nats, sum(map(is_even, planted))
    sizes = span((len(each["heads"]) for each in planted), 0)
    assert false == len(null) - 1
    (quiet,) = (each for each in null if not is_rare(each))
    smallest = min(filter(is_rare, null), key=lambda each: float(each["value"]))
    # What the verdicts say, and that the size tells the two kinds of suites apart.
    assert found == right == enough == len(planted) and still_false == 0
    assert any(len(each["heads"]) < 6 for each in planted)
    assert min(each["ci_low"] for each in planted) > max(each["ci_high"] for each in null)
    added = [span((each["value"] for each in filter(is_rare, group)), n) for group, n in ((planted, 1), (null, 2))]

    def at(strength: float) -> list[dict[str, Any]]:
        return [each for each in graded if each["strength"] == strength]

    strengths = sorted({each["strength"] for each in graded})
    (draws,) = {len(at(strength)) for strength in strengths}
    weak, strong = ([each for each in graded if (each["strength"] < WEAK) == is_weak] for is_weak in (True, False))
    assert not any(map(is_found, weak)) and all(map(is_right, strong))
    small = [each["value"] for each in filter(is_rare, at(0))]
    return [
        *(grade(strength, at(strength)) for strength in strengths),
        f"| at full strength and at 0.1 a group of planted heads alone is found | "
        f"{judged(all(map(is_right, at(0.1) + at(1))))} |",
        f"| nothing is found where nothing is planted (strength 0) | {judged(not any(map(is_found, at(0))))} |",
        f"| at 0.003 the scan misses some | {judged(not all(map(is_found, at(0.003))))}: it misses all, by its least; "
        "their best groups are right |",
        f"At 0.003 the best group has planted heads alone in {sum(map(is_even, at(0.003)))} of {draws}, but adds less than the least; at 0 "
        f"it has in {sum(map(is_even, at(0)))} of {draws}",
        f"(in {len(small)} of {draws} new ones by {span(small, 2)})",
        f"a group of planted heads alone is found in {share(draws, draws)} at each "
        f"weight of planting from {WEAK:g} on, and in {share(0, draws)} at 0.003 and at 0",
        f"here any least from {fixed(max(each['ci_low'] for each in weak) + 0.005, 2)} to "
        f"{fixed(min(each['ci_low'] for each in strong) - 0.005, 2)} nats gives",
        *(
            f"| {each['kind']} {each['suite']} | {', '.join(map(str, each['heads']))} | {each['p']:.3f} | "
            f"{spelled(each, signed=True)} |"
            for each in suites
        ),
        f"in {share(right, len(planted), ' planted suites')} a group of planted heads alone, which adds {added[0]} nats",
        f"in {share(false, len(null), ' suites without planting')} by a group that adds {added[1]} nats",
        f"above a least of {least:g} nats",
        f"It then finds a group in {share(enough, len(planted), ' planted suites')} and in "
        f"{share(still_false, len(null), ' suites without planting')}",
        f"The {least:g} nats were chosen after these runs",
        f"any least from {fixed(max(each['ci_low'] for each in null), 2)} to "
        f"{fixed(min(each['ci_low'] for each in planted), 1)} nats gives the same here",
        f"of a planted suite has {sizes} of the six",
        f"of null {quiet['suite']}, the one that finds nothing",
        f"That group adds {fixed(quiet['ci_high'], 3, signed=True)} nats at most",
        f"in null {smallest['suite']} a group that adds {fixed(smallest['value'], 3, signed=True)} nats had "
        f"{p_is(smallest['p'])}",
    ]


def is_rare(suite: dict[str, Any]) -> bool:
    """Whether relabelled scans seldom have a group that stands out as much."""
    return bool(suite["p"] <= 0.05)


def is_found(suite: dict[str, Any]) -> bool:
    """Whether the scan calls a group found."""
    return is_rare(suite) and bool(suite["ci_low"] > GroupScan.least_nats)


def is_even(suite: dict[str, Any]) -> bool:
    """Whether the best group, found or not, has planted heads alone."""
    return set(suite["heads"]) <= PLANTED


def is_right(suite: dict[str, Any]) -> bool:
    """Whether it finds a group, of planted heads alone."""
    return is_found(suite) and is_even(suite)


def grade(strength: float, suites: list[dict[str, Any]]) -> str:
    """A row of the table by strength."""
    n, found, right, rare = len(suites), *(sum(map(answer, suites)) for answer in (is_found, is_right, is_rare))
    return f"| {strength:g} | {share(found, n)} | {right} | {rare} of {n} | {span((each['value'] for each in suites), 2)} |"


def main() -> None:
    folder = Path("experiments/group_scan")
    if len(sys.argv) > 1:
        suites = record(Path(sys.argv[1]))
        name = "graded" if "strength" in suites[0] else "scans"
        lines = ",\n ".join(map(json.dumps, suites))
        (folder / f"{name}.json").write_text(f"[{lines}]\n", encoding="utf-8")
    for name, file in (("scans", "best_groups"), ("graded", "best_groups_by_strength")):
        marks = [
            Interval(
                label=f"strength {each['strength']:g}, suite {each['suite']}"
                if "strength" in each
                else f"{each['kind']} {each['suite']}",
                value=each["value"],
                low=each["ci_low"],
                high=each["ci_high"],
            )
            for each in read(folder / f"{name}.json")
        ]
        xlabel = "what the best group adds to Δ (nats)"
        interval_plot(marks, xlabel=xlabel, zero_line=True).save(folder / f"{file}.svg")


if __name__ == "__main__":
    main()
