import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from headdyn.report.terminal import print_run, print_summary
from headdyn.sweep.record import SweepRecord
from tests.report.folders import matrix, run, sweep


def printed(folder: Path, width: int, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    console = Console(file=file, width=width)
    print_summary(console, SweepRecord.read(folder), folder / "report.html")
    return raw.getvalue().decode(encoding)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    gone = {"probe_accuracy_middle": {"reason": "one topic only"}}
    entries = [
        *matrix(root, seeds=(0, 1)),
        run(root, position="nope", values=gone),
        run(root, position="nope", seed=1, status="failed"),
    ]
    return sweep(root, entries)


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_table_fits_and_holds_every_number(folder: Path, width: int) -> None:
    text = printed(folder, width)
    table = text.split("One seed" if "One seed" in text else "Topic less")[0].split("No effect")[0].splitlines()
    assert max(len(line) for line in table) <= width
    assert "…" not in text  # nothing is cut off
    for number in ("10.0", "60.0", "70.0", "2.400", "80.0"):
        assert number in text
    assert ("2.000" in text) == (width > 80)  # what has no room is left out, and said to be
    assert ("3 more in" in text) == (width == 80)
    assert "absent" in text
    assert ("±0.010" in text) == (width < 112)
    assert ("[2.390, 2.410]" in "\n".join(table)) == (width >= 112)
    assert ("2.400 [2.390, 2.410]" in "\n".join(table)) == (width >= 176)
    assert "\x1b" not in text  # no colours where it is piped


def test_after_the_table_stand_the_primary_outcomes_answers_and_the_page(folder: Path) -> None:
    lines = printed(folder, 400).splitlines()
    after = lines[next(i for i, line in enumerate(lines) if line.startswith("[95 % interval]")) + 1 :]
    assert [line.split(" (p")[0] for line in after[:3]] == [
        f"No effect of 0 points or more on topic selectivity detected: {contrast} is 0.000 [0.000, 0.000] points"
        for contrast in ("topic less shuffled", "GQA less MHA", "DroPE less RoPE")
    ]
    assert after[0].endswith("), averaged over the other factors, 2 seeds.")
    assert after[3].startswith("mha_shuffled_nope_s1") and after[4].startswith("report: ") and len(after) == 5


def test_a_null_is_called_what_it_is(folder: Path) -> None:
    """`vs` beside a number read as a comparison with the next column."""
    table = printed(folder, 120).split("report: ")[0]
    assert "null 4.00" in table and "; null: what chance gives; " in table and not re.search(r"\bvs\b", table)


def test_what_is_absent_for_every_run_has_no_column(tmp_path: Path) -> None:
    gone = {"loss_nats": {"reason": "no corpus"}}
    text = printed(sweep(tmp_path, [run(tmp_path, values=gone), run(tmp_path, seed=1, values=gone)]), 400)
    assert "gap closed" in text and "held-out loss" not in text and "1 more in summary.csv" in text


def test_a_single_runs_table_has_no_names_and_tells_of_its_own_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    entry = run(tmp_path)
    print_run(tmp_path / entry["name"])
    text = capsys.readouterr().out
    assert "more in summary.json" in " ".join(text.split()) and "summary.csv" not in text
    table = text.partition("report: ")[0]
    assert entry["name"][:12] not in table and "10.0" in table and "…" not in table
    assert max(map(len, table.splitlines())) <= 40


def test_a_failed_job_is_named_with_its_error(folder: Path) -> None:
    assert "failed. RuntimeError: the loss is no number <b>" in printed(folder, 200)


def test_an_old_encoding_gets_plain_signs(folder: Path) -> None:
    text = printed(folder, 80, encoding="ascii")
    assert "+-0.010" in text and "?" not in text


def test_markup_in_an_error_is_shown_as_it_is(tmp_path: Path) -> None:
    assert "[/nowhere]" not in printed(sweep(tmp_path, [run(tmp_path)]), 120)
