"""The recorded series, judged again from their timelines: what does not need the pairs comes out the same."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headdyn.analysis.series.emergence import Emergence
from headdyn.analysis.series.emergence_measure import measure_from_rows
from headdyn.analysis.series.judgement import Measure, judge
from headdyn.studies.even_odd_emergence import hypotheses
from headdyn.studies.organisms.detection import markdown, summarise

RECORDS = sorted((Path(__file__).parents[1] / "experiments").glob("*/verdict.json"))
PARTS = ("ci_low", "ci_high", "null", "p")
# What was defined anew since the records were made (docs/science.md, changes of definitions).
REDEFINED = {"pace"}
# What is worked out from the pairs' own values, which a timeline does not hold.
OF_PAIRS = {
    *("n", "monotone", "reversals", "probabilities", "probabilities_reason", "emerges_at_step_95"),
    "emerges_at_step_95_reason",
}


def judgements() -> Iterator[tuple[str, dict[str, Any], list[dict[str, str]], str, dict[str, Any]]]:
    """Every measure on record, with the rows of its series' checkpoints that count."""
    for path in RECORDS:
        with path.with_name("timeline.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["counts"] == "true"]
        for entry in json.loads(path.read_text(encoding="utf-8")):
            mine = [row for row in rows if int(row["series"]) == entry["series"]]
            for name, judgement in entry["verdict"].get("measures", {}).items():
                yield f"{path.parent.name} {entry['series']} {name}", entry["verdict"], mine, name, judgement


CASES = list(judgements())


def numbers(rows: list[dict[str, str]], name: str) -> dict[int, dict[str, float]]:
    """A metric's row at every step that has it, as a checkpoint's summary holds it."""
    found = {}
    for row in rows:
        if row.get(name):
            cells = {"value": row[name], **{part: row.get(f"{name}_{part}", "") for part in PARTS}}
            found[int(row["step"])] = {part: float(text) for part, text in cells.items() if text}
    return found


def again(
    verdict: Mapping[str, Any], rows: list[dict[str, str]], name: str, record: Mapping[str, Any]
) -> dict[str, Any]:
    """The measure judged anew, with the settings of a run's defaults."""
    settings, values = Emergence(), numbers(rows, name)
    threshold = None if record["rule"].startswith("above half") else record["threshold"]
    if rows[0].get(f"{name}_band"):  # a measure of the split: what is beyond chance was told from the splits
        test = {key: record[key] for key in ("p", "beyond_chance", "against_chance")}
        value_K = np.array([row["value"] for row in values.values()])
        measure = Measure(name=name, steps=tuple(values), value_K=value_K, threshold=threshold, **test)
    else:
        measure = measure_from_rows(name, values, threshold, settings.alpha)
    judgement = judge(measure, verdict["total_steps"], settings, np.random.default_rng(0))
    later = {key: judgement[key] for key in judgement if key not in record}  # what records did not hold yet
    judged = hypotheses.judge({**record, **later, "pace": judgement["pace"]}, settings)
    return {**judgement, "hypotheses": {name: judged[name] for name in ("H1", "H2", "H3")}}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-12)
    return type(one) is type(other) and one == other


def test_there_are_records() -> None:
    assert [path.parent.name for path in RECORDS] == [
        "even_odd_emergence",
        "topic_head_emergence",
        "weight_cluster_emergence",
    ]
    assert len(CASES) == 7 + 3 + 11


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_a_measure_on_record_is_judged_the_same_again(case: tuple[Any, ...]) -> None:
    _, verdict, rows, name, record = case
    anew = again(verdict, rows, name, record)
    if name in ("qk_best_silhouette", "ov_best_silhouette"):  # none reaches a quarter, so none counts any more
        assert anew["class"] == "none" and anew["none_reason"].endswith("too small for groups")
        assert same(record["highest"], anew["highest"]) and same(record["p"], anew["p"])
        return
    record = {**record, "hypotheses": {h: said for h, said in record["hypotheses"].items() if h in anew["hypotheses"]}}
    left_out = REDEFINED | (OF_PAIRS if record["n"] else set())
    kept = [key for key in record if key not in left_out]
    assert len(kept) >= 18
    assert {key for key in kept if not same(record[key], anew[key])} == set()
    if record["pace"] is not None:  # the recorded checkpoints lie too far apart for "sudden"
        assert anew["pace"] in ("undecided", "gradual")


def test_a_changed_number_would_be_seen() -> None:
    _, verdict, rows, name, record = CASES[0]
    assert not same(again(verdict, rows, name, record)["last"], record["last"] + 1e-9)


def test_the_study_of_detectors_is_summed_up_the_same_again() -> None:
    folder = RECORDS[0].parents[1] / "model_organisms"
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "suites").glob("*.json"))]
    record = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    assert len(rows) == 20 and record["suites"] == rows and same(record["summary"], summarise(rows))
    assert (folder / "table.md").read_text(encoding="utf-8") == markdown(summarise(rows))
