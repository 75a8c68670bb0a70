"""The study of detectors: rows that come one by one and are not done twice, and its summary by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headdyn.analysis.interventions.specialization import Specialization
from headdyn.analysis.interventions.splits import balanced_splits, split_table
from headdyn.analysis.series.points import SeriesPoint, SplitSummary
from headdyn.core.records import HeadTable
from headdyn.core.store import Store
from headdyn.studies.organisms import detection
from headdyn.studies.organisms.__main__ import main
from headdyn.studies.organisms.detection import Row, default_settings, markdown, study, summarise
from headdyn.studies.organisms.settings import Organism

QUICK = Specialization(sign_flips=999, bootstrap_draws=100, groups_per_size=1, fractions=(0.0, 1.0))
KINDS = ("planted", "null")


def small(kind: str, suite: int) -> Organism:
    return Organism(
        name=f"organism_{kind}",
        organism=kind,
        suite=suite,
        steps=150,
        num_heads=4,
        d_model=16,
        batch_size=2,
        kept="original_11",
    )


def run(out: Path, cache: Path, suites: int = 1, **changes: Any) -> list[Row]:
    options = {"kinds": KINDS, "suites": suites, "store": Store(cache), "settings": small, "analysis": QUICK, **changes}
    return study(out, **options)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("study")
    run(folder / "out", folder / "cache")
    return folder / "out", folder / "cache"


def test_a_row_says_what_is_true_and_what_was_found(record: tuple[Path, Path]) -> None:
    planted, null = (json.loads((record[0] / "suites" / f"{kind}_000.json").read_text()) for kind in KINDS)
    assert (planted["heads"], null["heads"], planted["layer"]) == ([0, 2], [], 1)
    assert planted["true_onset"] == 38 * 143000 / 150 and null["true_onset"] is None
    assert null["half_rank"] is None and 1 <= planted["half_rank"] <= 6 and len(planted["strongest_half"]) == 2
    for row in (planted, null):
        assert set(row["manifest"]) == {"started", "versions", "python", "git"}
        assert row["excluded"] == {} and 1 / 6 <= row["p_two_sided"] <= 1 and not row["found"]
        assert row["train_seconds"] > 0 and row["analysis_cpu_seconds"] > 0
        assert not row["found_by_trajectory"], "six splits cannot give p < 0.05"


def test_what_is_on_record_is_not_done_again(record: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in (record[0] / "suites").iterdir()}
    done: list[tuple[str, int]] = []
    examine = detection.examine

    def counted(organism: Organism, *rest: Any) -> Row:
        done.append((organism.organism, organism.suite))
        return examine(organism, *rest)

    monkeypatch.setattr(detection, "examine", counted)
    rows = run(*record, suites=2, kinds=("planted",))
    assert done == [("planted", 1)] and [(row["kind"], row["suite"]) for row in rows] == [
        ("null", 0),
        ("planted", 0),
        ("planted", 1),
    ]
    assert all((record[0] / "suites" / name).read_bytes() == content for name, content in before.items())
    written = json.loads((record[0] / "study.json").read_text())
    assert written["suites"] == rows and written["summary"] == summarise(rows)
    with (record[0] / "study.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["kind"] for line in lines] == ["null", "planted", "planted"]
    assert json.loads(lines[1]["heads"]) == [0, 2]
    assert (record[0] / "table.md").read_text() == markdown(summarise(rows))


def test_a_record_of_other_settings_is_not_added_to(record: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match=r"null_000.json was done with other settings; choose another --out"):
        run(*record, kinds=("null",), analysis=Specialization())


def test_by_default_the_suites_of_the_options() -> None:
    assert default_settings("scattered", 3) == Organism(name="organism_scattered", organism="scattered", suite=3)


def test_a_number_of_suites_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--suites", "0"])
    assert "--suites=0 must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--kinds", "grown"])
    assert "invalid choice: 'grown'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--first", "-1"])
    assert "--first=-1 must be at least 0" in capsys.readouterr().err


# -- onset and summary by hand ----------------------------------------------------------------------------------------


def points(success_K: list[float], heads: tuple[int, ...]) -> list[SeriesPoint]:
    """Ten pairs of which a share is repaired by these heads of four, the other half repairing none."""
    splits = balanced_splits(4, np.random.default_rng(0))
    made = []
    for step, success in zip((1000, 32000, 64000, 143000), success_K, strict=True):
        delta_SP = np.full((len(splits), 10), -1.0)
        right = [i for i in range(len(splits)) if splits.heads(i) == heads]
        delta_SP[right, : round(10 * success)] = 1.0
        values = {"all_success": 0.25 + 0.75 * success, "plain_success": 0.25 * (1 - success)}
        table = HeadTable.from_rows([{"metric": name, "value": value} for name, value in values.items()])
        summary = SplitSummary.of(split_table(splits, {1: delta_SP}, [str(pair) for pair in range(10)]))
        made.append(SeriesPoint(revision=f"step{step}", step=step, table=table, splits=summary))
    return made


@pytest.mark.parametrize(
    ("success_K", "found"),
    [
        ([0.0, 0.0, 0.9, 1.0], (32000, 64000, 0)),
        ([0.0, 0.0, 0.5, 1.0], (64000, 143000, 1)),  # half is not above the threshold
        ([0.0, 0.6, 1.0, 1.0], (1000, 32000, -1)),
        ([0.8, 1.0, 1.0, 1.0], (None, 1000, -2)),
        ([0.0, 0.0, 0.0, 0.0], (None, None, None)),
    ],
)
@pytest.mark.parametrize("heads", [(0, 2), (1, 2), (0, 1, 2, 3)])
def test_onsets_against_the_truth(heads: tuple[int, ...], success_K: list[float], found: tuple[Any, ...]) -> None:
    row = detection._onset(points(success_K, heads), {"heads": heads, "onset": {"step": 35750.0}})
    assert (row["onset_after"], row["onset_at"], row["onset_off_by"]) == found
    wrong_half = {"heads": (0, 3), "onset": {"step": 35750.0}}  # the mutant: heads that carry nothing
    assert detection._onset(points(success_K, (1, 2)), wrong_half)["onset_off_by"] is None


def test_onsets_are_found_without_knowing_the_heads() -> None:
    true = {"onset": {"step": 35750.0}}
    for heads in ((0, 2), (1, 2), (0, 1, 2, 3)):  # a half of its own, or all together
        row = detection._detected_onset(points([0.0, 0.0, 0.9, 1.0], heads), true)
        assert (row["detected_onset_after"], row["detected_onset_at"], row["detected_onset_off_by"]) == (
            32000,
            64000,
            0,
        )
    nothing = detection._detected_onset(points([0.0] * 4, (0, 2)), {"onset": None})
    assert set(nothing.values()) == {None}
    invented = detection._detected_onset(points([0.0, 0.0, 0.9, 1.0], (0, 2)), {"onset": None})
    assert (invented["detected_onset_at"], invented["detected_onset_off_by"]) == (64000, None)


def test_odd_heads_that_do_more_are_no_find_of_even_ones() -> None:
    rows = [row("null", found=True, strength_nats=sign) for sign in (-0.1, 0.1, -0.2)]
    summary = {line["question"]: line for line in summarise(rows) if line["kind"] == "null"}
    assert summary["even/odd found, last checkpoint"]["yes"] == 1  # mutant: two-sided, 3
    assert not any("heads not known" in question for question in summary), "rows of before were not asked"
    assert "heads not known" not in markdown(summarise(rows))


def row(kind: str, **said: Any) -> Row:
    quiet = {
        "learnt": True,
        "strength_nats": 1.0,
        "found": False,
        "found_by_trajectory": False,
        "half_rank": None,
        "all_flips": False,
    }
    return {"kind": kind, **quiet, "onset_off_by": None, "even_success": 0.5, "odd_success": 0.0, **said}


def test_the_summary_counts_suites() -> None:
    rows = [row("planted", found=True, half_rank=1, onset_off_by=0) for _ in range(5)]
    rows += [row("null", found=found, even_success=0.5 + found / 10) for found in (True, False, False)]
    summary = {(line["kind"], line["question"]): line for line in summarise(rows)}
    five = summary["planted", "even/odd found, last checkpoint"]
    assert (five["yes"], five["suites"], five["ci_high"]) == (5, 5, 1.0)
    assert five["ci_low"] == pytest.approx(0.025 ** (1 / 5))  # all of n: the bound solves p^n = 2.5 %
    one = summary["null", "even/odd found, last checkpoint"]
    assert (one["yes"], one["suites"]) == (1, 3) and one["ci_low"] == pytest.approx(1 - 0.975 ** (1 / 3))
    assert ("null", "onset in its interval") not in summary and ("scattered", "task learnt") not in summary
    assert summary["null", "strength > 0.5, the original studies' rule"]["yes"] == 1  # 0.6 is above, 0.5 is not
    (table,) = detection.figure(summarise(rows)).tables.values()
    drawn = {(row["label"], row["group"]): (row["value"], row["high"]) for row in table}
    assert drawn["even/odd found, last checkpoint", "planted"] == (100, 100) and len(drawn) == 6
    assert drawn["even/odd found, last checkpoint", "null"] == pytest.approx((100 / 3, 100 * one["ci_high"]))
    lines = markdown(summarise(rows)).splitlines()
    assert lines[0] == "|  | planted | scattered | diffuse | null | not planted in the even heads |"
    assert "| even/odd found, last checkpoint | 5/5 (0.48–1.00) | – | – | 1/3 (0.01–0.91) | 1/3 (0.01–0.91) |" in lines
