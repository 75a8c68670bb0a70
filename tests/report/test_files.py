"""A sweep's results as files to commit."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from headdyn.report.__main__ import main
from headdyn.report.files import RESULTS, write_study
from tests.report.folders import run, sweep
from tests.report.series_folders import emerging, followed

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    runs = tmp_path / "sweep"
    sweep(runs, [run(runs), run(runs, ordering="topic")])
    return runs


def test_results_hold_the_records_numbers_and_every_chart_stands_alone(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    out.mkdir()
    (out / "README.md").write_text("the question")
    written = write_study(folder, out)
    text = (out / RESULTS).read_text()
    assert "2.400 [2.390, 2.410]; null 4.00" in text  # loss_nats of tests.report.folders, its interval and null
    assert (out / "README.md").read_text() == "the question"
    charts = [path for path in written if path.suffix == ".svg"]
    assert {"held_out_loss.svg", "effects_on_topic_selectivity.svg"} <= {path.name for path in charts}
    for chart in charts:
        root = ET.parse(chart).getroot()
        assert root.tag == f"{SVG}svg"
        assert f"]({chart.name})" in text
        assert "<script" not in chart.read_text() and "http" not in chart.read_text().replace("http://www.w3.org", "")


def test_a_single_run_is_no_study(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (one,) = list(folder.glob("*shuffled*"))
    assert main([str(one), "--study", str(tmp_path / "out")]) == 2
    assert "single run" in capsys.readouterr().err


def test_analyses_of_a_series_that_judge_no_emergence_are_told_and_their_figures_drawn(tmp_path: Path) -> None:
    sweep_folder = emerging(tmp_path / "sweep")
    followed(sweep_folder)
    write_study(sweep_folder, tmp_path / "study")
    results = (tmp_path / "study" / RESULTS).read_text(encoding="utf-8")
    assert "## Circuit course\n\n2 checkpoints, step 1000 to 143000. step32000 is left out: it fell over." in results
    assert "| rank_change | −1.25 [−1.50, −1.00]; null 0 | 12 heads | last checkpoint less first: rank |" in results
    assert "| copying_change | absent: no head has a value at both ends | 12 heads |" in results
    assert "![rank](rank.svg)" in results and (tmp_path / "study" / "rank.svg").read_text(encoding="utf-8").startswith(
        "<svg"
    )
