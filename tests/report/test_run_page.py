from pathlib import Path

import pytest

from headdyn.core.figures import Curve, curves
from headdyn.report.run_page import figures, metric_groups, write_run_page
from tests.report.folders import GLOSSARY, measured, run
from tests.report.test_sweep_page import Text


def test_the_page_has_numbers_by_analysis_and_nothing_from_outside(tmp_path: Path) -> None:
    folder = tmp_path / run(tmp_path, position="drope", values={"gone": {"reason": "too few tokens"}})["name"]
    read = Text(write_run_page(folder).read_text(encoding="utf-8"))
    assert all(address.startswith(("#", "data:")) for address in read.addresses)
    assert "within_ratio 0.600 [0.590, 0.610] null 0.500 128 sequences" in read.text
    assert "loss_nats 2.400 [2.390, 2.410] null 4.000 256 sequences" in read.text
    assert "gone absent: too few tokens" in read.text
    assert "2.400 nats before the change, 3.100 right after, 2.500 after 8 steps" in read.text
    assert "1 have q < 0.05" in read.text  # one of the four heads
    assert (folder / "figures" / "training_loss.json").exists() and (
        folder / "figures" / "training_recovery.json"
    ).exists()


def test_scalars_stand_under_the_analysis_that_measured_them() -> None:
    scalars = {
        "random_nats": 4.0,
        "ended_in_topic": None,
        "snapshot_losses_nats": {"0": 4.0},
        "selectivity": measured(0.1),
        "loss_nats": measured(2.0),
    }
    groups = {name: [row["name"] for row in rows] for name, rows in metric_groups({"glossary": GLOSSARY}, scalars)}
    assert groups == {"corpus and training": ["random_nats"], "attention": ["selectivity"], "loss": ["loss_nats"]}


def test_metrics_absent_for_one_reason_share_a_line_behind_those_with_values() -> None:
    about = {"meaning": "m", "low": 0.0, "high": 1.0, "unit": ""}
    glossary = {
        "clusters": {"about": "", "metrics": dict.fromkeys(("a", "b", "c", "d"), about)},
        "other": {"about": "", "metrics": {"e": about}},
    }
    absent = {"reason": "effects need prompts", "n": 4, "unit": "head"}
    scalars = {"a": absent, "b": measured(0.5), "c": absent, "d": {"reason": "one head"}, "e": absent}
    groups = dict(metric_groups({"glossary": glossary}, scalars))
    assert [row["name"] for row in groups["clusters"]] == ["b", "d", "2 metrics"]
    assert groups["clusters"][-1]["scalar"]["reason"] == "effects need prompts"
    assert groups["clusters"][-1]["meaning"] == "a, c"
    assert [row["name"] for row in groups["other"]] == ["e"]  # another analysis speaks for itself


def test_figures_come_in_the_order_of_the_analyses(tmp_path: Path) -> None:
    line = curves([Curve(label="a", x=[0, 1], y=[0, 1])], xlabel="x", ylabel="y")
    for name in ("circuits_heads", "attention_topics", "attention_roles", "training_loss", "head_clusters_map"):
        line.save(tmp_path / "figures" / f"{name}.json")
    found = figures(tmp_path, ["attention", "head_clusters", "circuits"])
    assert [(section, len(images)) for section, images in found] == [
        ("training", 1),
        ("attention", 2),
        ("head_clusters", 1),
        ("circuits", 1),
    ]
    assert 'alt="head_clusters: map"' in found[2][1][0]


def test_an_unfinished_run_has_no_page(tmp_path: Path) -> None:
    folder = tmp_path / run(tmp_path, status="interrupted")["name"]
    with pytest.raises(ValueError, match="is interrupted, not complete"):
        write_run_page(folder)
