from pathlib import Path

import pytest

from tests.report.folders import run as corpus_run
from tests.report.folders import sweep
from tests.report.series_folders import emerging, verdict
from tests.report.test_terminal import printed


@pytest.mark.parametrize("width", [80, 120, 200])
def test_columns_are_those_of_prompts_and_fit(tmp_path: Path, width: int) -> None:
    text = printed(emerging(tmp_path), width)
    table = text.split("Yes: ")[0]
    assert max(len(line) for line in table.splitlines()) <= width
    assert "strength" in table and "gap" not in table and "entropy" not in table and "absent" not in table
    assert "1.00" in table and "p 0.33" in table
    assert ("0.50" in table) == (width > 80) == ("1 more in" not in " ".join(table.split()))
    assert "study" not in table  # not run under its protocol


def test_the_verdict_is_told_in_words(tmp_path: Path) -> None:
    text = " ".join(printed(emerging(tmp_path), 200).split())
    assert "Yes: even/odd specialisation emerges after step 32 000 and by step 64 000" in text
    assert "Class over bootstrap draws" not in text  # one sentence; the page has the rest


def test_what_does_not_count_is_told_with_its_reason(tmp_path: Path) -> None:
    own_verdict = verdict(None, None, excluded={"step1000": "its weights are those of step0"})
    own_verdict["counted"] = own_verdict["counted"][1:]
    text = " ".join(printed(emerging(tmp_path, own_verdict), 200).split())
    assert "Not beyond chance" in text and "3 of 4 checkpoints count" in text


def test_clusters_stand_beside_chance(tmp_path: Path) -> None:
    row = {"value": 0.5, "null": 0.375, "p": 0.25, "n": 4, "unit": "head"}
    table = printed(emerging(tmp_path, more=[{"qk_best_silhouette": row}] * 4), 200).split("Yes: ")[0]
    assert "QK circuits" in table and "null 0.375" in table and "p 0.25" in table and "OV circuits" not in table


def test_a_corpus_keeps_its_columns(tmp_path: Path) -> None:
    text = printed(sweep(tmp_path, [corpus_run(tmp_path)]), 120)
    assert "entropy" in text and "strength" not in text
