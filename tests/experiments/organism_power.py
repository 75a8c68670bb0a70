"""How strongly, and where, must something be planted for a detector to find it? Suites with a known answer, by grade."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from headdyn.studies.organisms.detection import QUESTIONS
from headdyn.studies.organisms.power import DETECTORS, GRADES
from headdyn.studies.organisms.settings import Organism
from tests.experiments.records import fixed, high, low, percent, read, span

LAST, TRAJECTORY, RULE, RANKED, ONSET = DETECTORS
SETTINGS = (
    "95 %, Clopper–Pearson",
    "strength > 0.5",
    "by 2 suites",
    "one more at 0.003.",
    "and of the new ones at most 1 of 4, where nothing",
    # what was predicted of weak planting
    "at a weight of 0 nothing is planted and the exact null finds at most 1 of 6",
    "at 0.001 it misses at least one of 6; from 0.01 on it misses none",
    "finds planting from a weight of 0.01 on",
    "four were run at 0, 0.001 and 0.003, none from 0.01 on",
    "in the block from a weight of 0.01 on that",
    "shows 5 % exactly for both directions",
    "Of 4 more suites at each of six weights, numbers 10 to 13",
    "in the same suites from 0.01 on and nothing below: the exact null finds all 16 from 0.01 on",
    "at most 1 of 4 at 0; the onset, with the heads not known, is dated in all 8 at 0.1 and 1 and in none of 16 weaker",
    "finds none at 0 and 0.003 and all 8 at 0.1 and 1",
    "(0.25 elsewhere), 4 suites at each share of 0.1, 0.5 and 0.75, committed before theirs: with the heads not known, all 12",
    "finds all 12 at the last checkpoint",
    "planted at shares of 0.1 and 0.5 is dated 1 or 2 checkpoints",
    "what is planted at 0.75 shows",
    "by 0.75 learning rates are low",
)
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
        *of_strength(summaries["strength"], records["strength"]["suites"]),
        *of_position(summaries["position"], records["position"]["suites"]),
        *of_onset(records["onset"]["suites"]),
        *of_layer_and_redundancy(summaries["layer"], summaries["redundancy"]),
    ]


def says(detector: str, suite: dict[str, Any]) -> bool | None:
    """A detector's answer about a suite."""
    return QUESTIONS[detector][1](suite)


def of_onset(rows: list[dict[str, Any]]) -> list[str]:
    """When planting at other times of training is dated, and how many updates it has until the next checkpoint."""
    by_share: dict[float, list[dict[str, Any]]] = {}
    for row in rows:
        by_share.setdefault(row["planting"]["onset"], []).append(row)
    off = {share: [row["detected_onset_off_by"] for row in suites] for share, suites in by_share.items()}
    dated = [each for share in (0.1, 0.5) for each in off[share]]
    assert sorted(set(dated)) == [1, 2] and set(off[0.75]) == {None}
    same = [
        row for row in rows if all(row[f"onset_{name}"] == row[f"detected_onset_{name}"] for name in ("at", "off_by"))
    ]
    found = {share: sum(bool(says(LAST, row)) for row in suites) for share, suites in by_share.items()}
    n, late = len(rows), by_share[0.75]
    usual = Organism(name="planted", organism="planted")

    def updates(share: float) -> int:
        organism = dataclasses.replace(usual, onset=share)
        steps = [organism.training_step(revision) for revision in organism.series("original_11")]
        return min(step for step in steps if step > organism.onset_step) - organism.onset_step

    return [
        f"after planting began, in {len(dated)} of {len(dated)} suites",
        f"nowhere above the threshold, in {off[0.75].count(None)} of {len(late)}",
        f"the same dates in {len(same)} of {n} suites",
        f"leaves {updates(usual.onset)} updates of {usual.steps} before the next checkpoint, where 0.1, 0.5 and 0.75 leave "
        f"{updates(0.1)}, {updates(0.5)} and {updates(0.75)}",
        f"finds {sum(found.values())} of {n} at the last checkpoint, {found[0.75]} of {len(late)} of those planted at 0.75",
        f"so in {sum(each in (0, 1) for each in [*dated, *off[0.75]])} of {n};",
        f"finds all {n} is **not supported**: it finds {sum(found.values())}",
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


def of_strength(summary: Summary, rows: list[dict[str, Any]]) -> list[str]:
    """What the exact null finds at every strength, and where other detectors fail.

    Suites of one number share initial weights and batches over the strengths, so numbers are the independent draws.
    """
    odd = sum(row["found"] and row["strength_nats"] <= 0 for row in rows if row["planting"]["strength"] == 0.001)
    draws = {row["suite"] for row in rows if row["planting"]["strength"] >= 0.01}
    new = [row for row in rows if row["suite"] >= 10]
    strong, weak = (
        [row["detected_onset_off_by"] for row in new if (row["planting"]["strength"] >= 0.1) == is_strong]
        for is_strong in (True, False)
    )
    assert not any(off == 0 for off in weak) and sorted(strong)[-2:] == [0, 1]  # one a checkpoint late, none early
    assert all(row["detected_onset_off_by"] is None or row["detected_onset_off_by"] >= 0 for row in rows), "too late"
    missed = [
        row["detected_onset_off_by"]
        for row in rows
        if row["planting"]["strength"] and row["detected_onset_off_by"] != 0
    ]
    weights = (0, 0.003, 0.01, 0.03, 0.1, 1)
    at_new = {weight: [row for row in new if row["planting"]["strength"] == weight] for weight in weights}
    assert all(len(suites) == 4 for suites in at_new.values()), "4 more suites at each of six weights"
    new_found = [row for weight, suites in at_new.items() if weight >= 0.01 for row in suites]
    assert all(says(LAST, row) and says(TRAJECTORY, row) for row in new_found)
    assert not any(says(RULE, row) for weight in (0, 0.003) for row in at_new[weight])
    assert all(says(RULE, row) for weight in (0.1, 1) for row in at_new[weight])

    def at(detector: str, low_end: float, high_end: float = 1) -> tuple[int, int]:
        return total([row for row in summary if low_end <= row["value"] <= high_end], detector)

    def text(counts: tuple[int, int]) -> str:
        return f"{counts[0]} of {counts[1]}"

    assert all(at(LAST, *ends) == at(TRAJECTORY, *ends) for ends in ((0, 0), (0.001, 0.001), (0.01,)))
    found, suites = at(TRAJECTORY, 0.01)
    assert found == suites and at(LAST, 0.003, 0.003)[0] == at(TRAJECTORY, 0.003, 0.003)[0] + 1  # "one more"
    assert at(ONSET, 0, 0.03)[0] == 0
    assert at(RULE, 0.1)[0] == at(RULE, 0.1)[1] and at(RULE, 0, 0.003)[0] == 0
    misses = at(RULE, 0.01, 0.03)[1] - at(RULE, 0.01, 0.03)[0]
    return [
        f"finds {text((found, suites))} suites from a weight of 0.01 on",
        f"at 0.01 itself {text(at(LAST, 0.01, 0.01))}, {percent(low(*at(LAST, 0.01, 0.01)))}–100 %",
        f"in each of {len(draws)} independent draws, {percent(low(len(draws), len(draws)))}–100 %",
        f"new suites: all {len(new_found)}, of {len({row['suite'] for row in new})} draws",
        f"all {len(strong)} new suites at 0.1 and 1 is **not supported**: in {strong.count(0)}, and in the other a checkpoint late",
        f"in none of {len(weak)} weaker ones is **supported**",
        f"In {odd} of {at(LAST, 0.001, 0.001)[1]} at 0.001 p is below 0.05 because odd heads do more",
        f"{text(at(TRAJECTORY, 0.003, 0.003))} at 0.003, {text(at(LAST, 0.001, 0.001))} at 0.001, and {text(at(LAST, 0, 0))} "
        "at 0, where nothing is planted",
        f"finds {text(at(RULE, 0, 0.003))} suites below 0.01 and misses {misses} of {at(RULE, 0.01, 0.03)[1]} at 0.01 and 0.03",
        f"of the {len(missed)} in which it is missed, {sum(off is not None for off in missed)} are dated too late",
        f"and {missed.count(None)} have none",
        "That it misses some at 0.001 is **supported**, by "
        f"{at(LAST, 0.001, 0.001)[1] - at(LAST, 0.001, 0.001)[0]} of {at(LAST, 0.001, 0.001)[1]};",
        f"({text(at(LAST, 0, 0))}, which leaves up to {percent(high(*at(LAST, 0, 0)))} % open",
        f"the onset is dated in {text(at(ONSET, 0.1))} suites from 0.1 on and in {text(at(ONSET, 0.001, 0.03))} weaker ones",
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
