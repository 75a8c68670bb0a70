from pathlib import Path

import pytest

from headdyn.core.figures import Curve, curves
from headdyn.core.json_files import read_json, write_json
from headdyn.report.run_page import title, write_run_page
from headdyn.report.sections.runs import figures_by_analysis, scalars_by_analysis
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import single_job
from tests.report.folders import GLOSSARY, measured, run
from tests.report.test_sweep_page import Text


def job(folder: Path, glossary: object, scalars: object) -> Job:
    """A run with these scalars."""
    one = folder / run(folder)["name"]
    write_json(one / "manifest.json", {**read_json(one / "manifest.json"), "glossary": glossary})
    write_json(one / "summary.json", scalars)
    return single_job(one)


def test_the_page_has_numbers_by_analysis_and_nothing_from_outside(tmp_path: Path) -> None:
    folder = tmp_path / run(tmp_path, position="drope", values={"gone": {"reason": "too few tokens"}})["name"]
    read = Text(write_run_page(folder).read_text(encoding="utf-8"))
    assert all(address.startswith(("#", "data:")) for address in read.addresses)
    assert "within_ratio 0.600 [0.590, 0.610] null 0.500 128 sequences" in read.text
    assert "loss_nats 2.400 [2.390, 2.410] null 4.000 256 sequences" in read.text
    assert "gone absent: too few tokens" in read.text
    assert "2.400 nats before the change, 3.100 right after, 2.500 after 8 steps" in read.text
    assert "1 of 4 tests on heads have q < 0.05" in read.text  # one of the four heads
    assert (folder / "figures" / "training_loss.json").exists() and (
        folder / "figures" / "training_recovery.json"
    ).exists()


def test_scalars_stand_under_the_analysis_that_measured_them(tmp_path: Path) -> None:
    scalars = {
        "random_nats": 4.0,
        "ended_in_topic": None,
        "snapshot_losses_nats": {"0": 4.0},
        "selectivity": measured(0.1),
        "loss_nats": measured(2.0),
    }
    groups = {
        name: [row["name"] for row in rows]
        for name, rows in scalars_by_analysis(job(tmp_path, GLOSSARY, scalars)).items()
    }
    assert groups == {"corpus and training": ["random_nats"], "attention": ["selectivity"], "loss": ["loss_nats"]}


def test_metrics_absent_for_one_reason_share_a_line_behind_those_with_values(tmp_path: Path) -> None:
    about = {"meaning": "m", "low": 0.0, "high": 1.0, "unit": ""}
    glossary = {
        "clusters": {"about": "", "metrics": dict.fromkeys(("a", "b", "c", "d"), about)},
        "other": {"about": "", "metrics": {"e": about}},
    }
    absent = {"reason": "effects need prompts", "n": 4, "unit": "head"}
    scalars = {"a": absent, "b": measured(0.5), "c": absent, "d": {"reason": "one head"}, "e": absent}
    groups = scalars_by_analysis(job(tmp_path, glossary, scalars))
    assert [row["name"] for row in groups["clusters"]] == ["b", "d", "2 metrics"]
    assert groups["clusters"][-1]["scalar"]["reason"] == "effects need prompts"
    assert groups["clusters"][-1]["meaning"] == "a, c"
    assert [row["name"] for row in groups["other"]] == ["e"]  # another analysis speaks for itself


def test_figures_come_in_the_order_of_the_analyses(tmp_path: Path) -> None:
    about = {"about": "", "metrics": {}}
    one = job(tmp_path, dict.fromkeys(("attention", "head_clusters", "circuits"), about), {})
    line = curves(
        [Curve(label="a", x=[0, 1], y=[0, 1])], xlabel="x", ylabel="y", caption="What chance would look like."
    )
    for name in ("circuits_heads", "attention_topics", "attention_roles", "training_loss", "head_clusters_map"):
        line.save(one.run.folder / "figures" / f"{name}.json")
    groups = figures_by_analysis(one)
    assert [(name, [path.name for path in paths]) for name, paths in groups.items()] == [
        ("training", ["training_loss.json"]),
        ("attention", ["attention_roles.json", "attention_topics.json"]),
        ("head_clusters", ["head_clusters_map.json"]),
        ("circuits", ["circuits_heads.json"]),
    ]
    html = write_run_page(one.run.folder).read_text(encoding="utf-8")
    assert html.count("<figcaption>What chance would look like.</figcaption>") >= 4
    assert 'id="figures-head_clusters"' in html


def test_a_run_is_called_by_what_it_is_of(tmp_path: Path) -> None:
    one = tmp_path / run(tmp_path, position="drope")["name"]
    assert title(single_job(one)) == "mini qwen3: shuffled, MHA, DroPE, seed 0"
    checkpoint = {"name": "EleutherAI/pythia-160m", "revision": "step143000", "dtype": "float32", "state_hash": "0"}
    write_json(one / "manifest.json", {**read_json(one / "manifest.json"), "checkpoint": checkpoint})
    assert title(single_job(one)) == "EleutherAI/pythia-160m at step 143000"
    checkpoint |= {"revision": "main"}
    write_json(one / "manifest.json", {**read_json(one / "manifest.json"), "checkpoint": checkpoint})
    assert title(single_job(one)) == "EleutherAI/pythia-160m at main"


def test_an_unfinished_run_has_no_page(tmp_path: Path) -> None:
    folder = tmp_path / run(tmp_path, status="interrupted")["name"]
    with pytest.raises(ValueError, match="is interrupted, not complete"):
        write_run_page(folder)
