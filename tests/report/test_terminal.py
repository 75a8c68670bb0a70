import io
from pathlib import Path

import pytest
from rich.console import Console

from headdyn.report.terminal import print_summary
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
    table = text.split("Did the models learn?")[0].splitlines()
    assert max(len(line) for line in table) <= width
    assert "…" not in text  # nothing is cut off
    for number in ("2.400", "80.0", "60.0", "10.0", "2.000", "70.0"):
        assert number in text
    assert "absent" in text
    assert ("±0.010" in text) == (width < 112)
    assert ("[2.390, 2.410]" in "\n".join(table)) == (width >= 112)
    assert ("2.400 [2.390, 2.410]" in "\n".join(table)) == (width >= 176)
    assert "\x1b" not in text  # no colours where it is piped


def test_a_failed_job_is_named_with_its_error(folder: Path) -> None:
    assert "failed. RuntimeError: the loss is no number <b>" in printed(folder, 200)


def test_an_old_encoding_gets_plain_signs(folder: Path) -> None:
    text = printed(folder, 80, encoding="ascii")
    assert "+-0.010" in text and "?" not in text.split("Did the models")[0]


def test_markup_in_an_error_is_shown_as_it_is(tmp_path: Path) -> None:
    assert "[/nowhere]" not in printed(sweep(tmp_path, [run(tmp_path)]), 120)
