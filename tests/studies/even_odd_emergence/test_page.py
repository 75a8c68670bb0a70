"""What the study's page adds to a series: hypotheses, the study's figures, what misleads, the known end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headdyn.report.sections.quality import Check
from headdyn.studies.even_odd_emergence import checks, headlines, sections
from headdyn.studies.even_odd_emergence.page import hypotheses
from headdyn.studies.pages import facts, is_of
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_record import read_series
from tests.report.series_folders import STEPS, emerging, judgement_at, verdict
from tests.report.test_sweep_page import Text

PYTHIA = "EleutherAI/pythia-160m"
OWN = {"value": 1.0, "null": 0.0, "n": 1, "unit": "prompt"}
HALVES = {"original_even_success": {"value": 1.0, "n": 1}, "original_odd_success": {"value": 0.0, "n": 1}}


def parts(folder: Path) -> dict[str, str]:
    """The text of every section, by title."""
    return {s.title: Text(f"<body>{s.html}</body>").text for s in sections(SweepRecord.read(folder))}


def final(folder: Path) -> Check:
    (check,) = (c for c in checks(SweepRecord.read(folder)) if c.question.startswith("Does the final checkpoint"))
    return check


def test_hypotheses_are_told_by_every_measure(tmp_path: Path) -> None:
    (statement,) = headlines(SweepRecord.read(emerging(tmp_path)))
    lead, *evidence = statement.sentences
    assert lead.count("H1 rejected") == 2 and lead.count("H5 supported") == 2
    assert "evidence 1; evidence 2" in evidence[0]


def test_the_studys_own_measure_decides_nothing(tmp_path: Path) -> None:
    measures = verdict()["measures"] | {"original_strength": judgement_at(143_000, 64_000)}
    folder = emerging(tmp_path, verdict(measures=measures), more=[{"original_strength": OWN}] * 4)
    lead, *_, own = hypotheses(read_series(SweepRecord.read(folder))[0])
    assert "one prompt" not in lead
    assert "on one prompt and without a null, strength exceeds 0.5 in (64 000, 143 000]; that decides nothing" in own


def test_series_that_no_judge_saw_have_no_hypotheses(tmp_path: Path) -> None:
    measures = verdict()["measures"]
    for judgement in measures.values():
        del judgement["hypotheses"]
    folder = emerging(tmp_path, verdict(measures=measures))
    assert headlines(SweepRecord.read(folder)) == [] and "The hypotheses H1 to H5" not in parts(folder)


def test_hypotheses_are_a_table_with_the_studys_claims(tmp_path: Path) -> None:
    read = parts(emerging(tmp_path))["The hypotheses H1 to H5"]
    assert "H3 statement 3 confirmed emerges at step 143000 rejected probability 88 % evidence 3" in read


def test_the_studys_figures_stand_beside_those_of_its_model(tmp_path: Path) -> None:
    more: list[dict[str, Any]] = [{"original_strength": OWN, **HALVES}] * 4
    own = parts(emerging(tmp_path / "own", model=PYTHIA, protocol="original", more=more))
    read = own["The study's figures beside ours"]
    assert "step 143 000 yes, no +1 yes, no 1 1.00 [0.88, 1.12] 8.00 [7.88, 8.12]" in read
    assert "step 16 000 no, no 0 absent: not run" in read
    other = parts(emerging(tmp_path / "other"))["The study's figures beside ours"]
    assert "The study's figures are of EleutherAI/pythia-160m alone, not of some/suite." in other
    assert "yes, no" not in other


def test_the_studys_figures_concern_one_model() -> None:
    reported = facts("even_odd_emergence")["timeline"]
    assert is_of(PYTHIA, reported) and is_of("/suites/pythia-160m/", reported) and not is_of("pythia-1.4b", reported)
    assert all(row[3] == row[1] - row[2] for row in reported["rows"])  # a strength is even less odd, in its table too
    assert reported["rows"][-1] == [143_000, 1, 0, 1]


def test_what_the_study_did_is_explained_with_numbers_where_it_was_repeated(tmp_path: Path) -> None:
    title = "What the study did, and why it misleads"
    more: list[dict[str, Any]] = [
        {"original_strength": OWN | {"value": value}, **HALVES} for value in (1.0, 1.0, 0.0, 1.0)
    ]
    read = parts(emerging(tmp_path / "original", protocol="original", more=more))[title]
    assert "W_O mixes all heads into every number" in read
    # The study's strength is 1, 1, 0 and 1, ours 0, 0, 0.75 and 1.
    assert "+1 at 3, 0 at 1, −1 at 0" in read and "disagree on “above 0.5” at 3 of 4" in read
    assert "Among 6 splits, even/odd's Δ has p from 0.33 to 0.33 checkpoint by checkpoint, below 0.05 at 0 of 4" in read
    assert "virtual permutation" not in read and "query_key_value" not in read  # other studies'
    assert title not in parts(emerging(tmp_path / "corrected"))


def test_what_the_models_wrote_stands_there_with_whether_trials_repeat(tmp_path: Path) -> None:
    folder = emerging(tmp_path, protocol="original", more=[{"original_strength": OWN}] * 4)
    rows = [
        {"name": "plain", "heads": [], "text": "9.11, of course", "success": False, "agreeing": 1.0},
        {"name": "even", "heads": [0, 2], "text": "9.8", "success": True, "agreeing": 0.5},
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / f"suite_step{STEPS[0]}_original" / "original_responses.parquet")
    read = parts(folder)["What the study did, and why it misleads"]
    assert "step1000 9.11, of course not right 9.8 right –" in read
    assert "the study, EleutherAI/pythia-160m" in read and "I would say that the answer is 9.8." in read
    assert "wrote the same text in 1 of 2 cells" in read
    (check,) = (c for c in checks(SweepRecord.read(folder)) if "trials" in c.question)
    assert check.verdict == "note"


def test_each_head_alone_is_a_line_over_the_checkpoints(tmp_path: Path) -> None:
    assert "Heads patched alone" in parts(emerging(tmp_path))


def test_without_a_known_result_the_end_is_not_judged(tmp_path: Path) -> None:
    check = final(emerging(tmp_path))
    assert (check.verdict, check.facts[:33]) == ("note", "no known result for some/suite, s")


def test_the_end_is_held_against_the_studys_figure_for_its_model(tmp_path: Path) -> None:
    for value, outcome in ((1.0, "ok"), (0.0, "fails")):
        more: list[dict[str, Any]] = [{"original_strength": OWN | {"value": value}}] * 4
        check = final(emerging(tmp_path / outcome, model=PYTHIA, protocol="original", more=more))
        assert check.verdict == outcome and "the study reports strength +1" in check.facts
    check = final(emerging(tmp_path / "corrected", model=PYTHIA))
    assert check.verdict == "note" and "not run under protocol=original" in check.facts
