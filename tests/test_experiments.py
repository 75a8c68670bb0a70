"""The recorded series, judged again from their timelines, and every number that the pages of experiments/ print."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headdyn.analysis.interventions.specialization import Specialization
from headdyn.analysis.series.emergence import Emergence
from headdyn.analysis.series.emergence_measure import measure_from_rows
from headdyn.analysis.series.judgement import Measure, judge
from headdyn.studies.even_odd_emergence import hypotheses
from headdyn.studies.organisms.detection import default_settings, markdown, read_rows, record_key, summarise
from tests.experiments.records import plain

ROOT = Path(__file__).parents[1]
PAGES = {path.parent.name: path for path in sorted(ROOT.glob("experiments/*/README.md"))}
A_WORD = re.compile(r"[^\W\d]|[%|]")
CHECKED = sorted(PAGES)
RECORDS = sorted((Path(__file__).parents[1] / "experiments").glob("*/verdict.json"))
PARTS = ("ci_low", "ci_high", "null", "p")
# What was defined or worded anew since the records were made (docs/science.md, changes of definitions).
REDEFINED = {"pace", "probabilities_reason"}
# What is worked out from the pairs' own values, which a timeline does not hold.
OF_PAIRS = {
    *("n", "monotone", "reversals", "probabilities", "emerges_at_step_95"),
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
    judgement = judge(measure, verdict["total_steps"], settings, np.random.default_rng(0), draws=2_000)
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
    rows = read_rows(folder)
    record = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    assert len(rows) >= 20 and record["suites"] == rows and same(record["summary"], summarise(rows))
    assert (folder / "table.md").read_text(encoding="utf-8") == markdown(summarise(rows))
    for row in rows:  # so that the same command adds to them
        shared = dataclasses.replace(default_settings(row["kind"], row["suite"]), streams="suite")
        assert row["key"] == record_key(shared, Specialization())


# -- the pages' numbers -----------------------------------------------------------------------------------------------


def wrong_in(text: str, pieces: Sequence[str]) -> list[str]:
    """What is wrong with plain text: pieces that it lacks, pieces without a word, and numbers that no piece accounts for."""
    wrong = [f"a piece needs a word beside its numbers: {piece}" for piece in pieces if not A_WORD.search(piece)]
    wrong += [f"not in the text: {piece}" for piece in pieces if piece not in text]
    for piece in sorted(pieces, key=len, reverse=True):
        text = text.replace(piece, " ")
    return wrong + [f"from no record: {text[max(0, m.start() - 40) : m.end() + 20]}" for m in re.finditer(r"\d+", text)]


def page_of(path: Path) -> str:
    return plain(path.read_text(encoding="utf-8"))


def pieces_of(name: str, folder: Path) -> list[str]:
    module = importlib.import_module(f"tests.experiments.{name}")
    return [plain(piece) for piece in [*module.fragments(folder), *module.SETTINGS]]


@pytest.mark.parametrize("name", CHECKED)
def test_every_number_of_a_page_is_that_of_its_records(name: str) -> None:
    assert wrong_in(page_of(PAGES[name]), pieces_of(name, PAGES[name].parent)) == []


def test_every_number_of_what_the_readme_finds_is_that_of_the_records() -> None:
    _, _, findings = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What it finds\n")
    findings, heading, _ = findings.partition("\n## ")
    assert findings and heading
    assert wrong_in(plain(findings), pieces_of("readme", ROOT / "experiments")) == []


def test_the_minutes_of_make_run_are_those_of_the_record() -> None:
    record = json.loads((ROOT / "experiments" / "speed" / "sweep.json").read_text(encoding="utf-8"))
    seconds = [runs["cold"] for key in record if "laptop" in key for runs in record[key]["seconds"]["side by side"]]
    minutes = sorted({round(each / 60) for each in seconds})
    words = " to ".join({5: "five", 6: "six", 7: "seven"}[each] for each in (minutes[0], minutes[-1]))
    assert f"a matrix of eight runs, and its report: {words} minutes on two cores" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", CHECKED)
def test_every_changed_number_of_a_page_is_seen(name: str) -> None:
    """Each number that a record accounts for, raised by one in its first digit."""
    pieces, text = pieces_of(name, PAGES[name].parent), page_of(PAGES[name])
    numbers_in_text = list(re.finditer(r"\d", text))
    assert numbers_in_text
    for digit in numbers_in_text:
        changed = text[: digit.start()] + str((int(digit.group()) + 1) % 10) + text[digit.end() :]
        assert wrong_in(changed, pieces), text[max(0, digit.start() - 30) : digit.end() + 30]


@pytest.mark.parametrize("name", CHECKED)
def test_a_changed_record_is_seen(name: str, tmp_path: Path) -> None:
    """Every fraction of the records, a tenth larger."""
    folder = Path(shutil.copytree(PAGES[name].parent, tmp_path / name))
    records = [path for path in folder.rglob("*") if path.suffix in (".json", ".csv")]
    if not records:
        pytest.skip("a page without records of its own")
    for path in records:
        raised = re.sub(
            r"(?<![\w.])\d+\.\d+(?![.\w])", lambda m: str(float(m.group()) * 1.1), path.read_text(encoding="utf-8")
        )
        path.write_text(raised, encoding="utf-8")
    try:
        pieces = pieces_of(name, folder)
    except AssertionError:  # what the page says in words does not hold either
        return
    assert wrong_in(page_of(PAGES[name]), pieces)


def test_a_page_is_searched_for_numbers_everywhere_but_in_code_and_names() -> None:
    page = "# 3 seeds\n\nPythia-160m at\n5 of 15 (`x=3`), [0.1](a1.svg)\n\n    code 7\n\n| 2 | −0.37 |\n"
    assert plain(page) == "at 5 of 15 (), [0.1] | 2 | −0.37 |"
    assert wrong_in(plain(page), ["at 5 of 15", "[0.1]", "| 2 | −0.37 |"]) == [
        "a piece needs a word beside its numbers: [0.1]"
    ]
    assert wrong_in(plain(page), ["at 5 of 15", "| 2 | −0.38 |"])[0] == "not in the text: | 2 | −0.38 |"
    assert len(wrong_in(plain(page), ["at 5 of 15", "| 2 | −0.37 |"])) == 2
