"""How strongly, and where, must something be planted for a detector to find it? Suites with a known answer, by grade."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headdyn.studies.organisms.power import DETECTORS, GRADES
from tests.experiments.records import fixed, high, low, percent, read, span

LAST, TRAJECTORY, RULE, RANKED, ONSET = DETECTORS
SETTINGS = ("95 %, Clopper–Pearson", "strength > 0.5", "by 2 suites")
Summary = list[dict[str, Any]]


def fragments(folder: Path) -> list[str]:
    """The tables of the grades on record, and what is said of strength and position."""
    files = {grade: folder / f"{grade}.json" for grade in GRADES}
    records = {grade: read(file) for grade, file in files.items() if file.exists()}
    summaries = {
        grade: [row for row in record["summary"] if row["grade"] == grade] for grade, record in records.items()
    }
    of_both = [row["suites"] for grade in ("strength", "position") for row in summaries[grade]]
    return [
        *(table(summary, grade) for grade, summary in summaries.items()),
        *(f"{grade.capitalize()}: {trainings(summary)} trainings" for grade, summary in summaries.items()),
        f"with {span(of_both, 0)} suites a grade",
        *of_strength(summaries["strength"]),
        *of_position(summaries["position"], records["position"]["suites"]),
        *of_layer_and_redundancy(summaries["layer"], summaries["redundancy"]),
    ]


def of_layer_and_redundancy(layer: Summary, redundancy: Summary) -> list[str]:
    """What the exact null finds at every layer and with groups, and how often the planted half is ranked first."""
    assert all(
        total(summary, which) == (total(summary, LAST)[1],) * 2
        for summary in (layer, redundancy)
        for which in (LAST, TRAJECTORY)
    )
    first = {
        several: total([row for row in redundancy if (row["value"] > 1) == several], RANKED)
        for several in (False, True)
    }
    found, grouped = (total(summary, TRAJECTORY) for summary in (layer, redundancy))
    return [
        f"finds {found[0]} of {found[1]} suites at the two layers and {grouped[0]} of {grouped[1]} with one, two and three groups",
        f"first in {first[True][0]} of {first[True][1]} suites with groups, in {first[False][0]} of {first[False][1]} without",
    ]


def of_strength(summary: Summary) -> list[str]:
    """What the exact null finds at every strength, and where other detectors fail."""
    found, suites = total(summary, TRAJECTORY)
    assert (found, suites) == total(summary, LAST), "misses no suite"
    assert found == suites, "misses no suite"
    weak = sorted(row["value"] for row in summary if row["detector"] == ONSET and row["yes"] < row["suites"])
    weakest = [row for row in summary if row["value"] in weak]
    dated, count = total(weakest, ONSET)
    by_rule, _ = total(weakest, RULE)
    rule_everywhere, _ = total(summary, RULE)
    assert dated == 0, "wrongly or not at all"
    assert weak == sorted({row["value"] for row in summary})[: len(weak)], "the weakest"
    assert suites - rule_everywhere == count - by_rule, "misses no other"
    return [
        f"finds {found} of {suites} suites ({percent(low(found, suites))}–{percent(high(found, suites))} %), "
        f"down to a weight of {min(row['value'] for row in summary)}",
        f"In the {count} weakest suites, at {' and '.join(map(str, weak))}",
        f"the studies' rule misses {count - by_rule}",
        f"fails have {count} suites in all",
    ]


def of_position(summary: Summary, suites: list[dict[str, Any]]) -> list[str]:
    """What is found where something acts in the block, at the last token, and at the answer."""

    def found(position: str, alignment: str, detector: str = TRAJECTORY) -> str:
        (row,) = [
            row
            for row in summary
            if (row["value"], row["alignment"], row["detector"]) == (position, alignment, detector)
        ]
        return f"{row['yes']} of {row['suites']}"

    answer = [row for row in summary if row["value"] == "answer"]
    assert not any(row["yes"] for row in answer), "found by none"
    numbers = [row["suites"] for row in answer]
    of_left = [row for row in suites if row["planting"]["position"] == "last" and row["alignment"] == "left"]
    assert not any(row["all_success"] > row["plain_success"] for row in of_left), "changes no answer"
    return [
        f"{found('block', 'span')} suites planted in the block",
        f"and {found('last', 'span')} planted at the last token",
        f"{found('last', 'right', LAST)} of the latter are found at the last checkpoint; "
        f"by their left ends {found('last', 'left', LAST)}, where",
        f"Planted at the answer, 0 of {max(numbers)} are found",
        f"0 of {span(numbers, 0)} suites leaves up to {span((row['ci_high'] for row in answer), 0, scale=100)} % open",
    ]


def table(summary: Summary, grade: str) -> str:
    """A row for each planting: in how many suites every detector finds it; for positions, by the alignment of prompts."""
    keys = ("value", "alignment") if grade == "position" else ("value",)
    heads = [grade, *(("prompts aligned by",) if grade == "position" else ()), *DETECTORS]
    rows: dict[tuple[Any, ...], dict[str, str]] = {}
    for entry in summary:
        ends = "–".join(fixed(100 * entry[end], 0) for end in ("ci_low", "ci_high"))
        cell = f"{entry['yes']} of {entry['suites']} ({ends} %)"
        rows.setdefault(tuple(entry[key] for key in keys), {})[entry["detector"]] = cell
    lines = [
        heads,
        *([*map(str, place), *(cells.get(name, "–") for name in DETECTORS)] for place, cells in rows.items()),
    ]
    header, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([header, f"|{'---|' * len(heads)}", *body])


def total(summary: Summary, detector: str) -> tuple[int, int]:
    """In how many suites a detector says yes, over all values of a grade, and of how many."""
    rows = [row for row in summary if row["detector"] == detector]
    return sum(row["yes"] for row in rows), sum(row["suites"] for row in rows)


def trainings(summary: Summary) -> int:
    """Each is analysed with one alignment or with several."""
    most: dict[Any, int] = {}
    for row in summary:
        most[row["value"]] = max(row["suites"], most.get(row["value"], 0))
    return sum(most.values())
