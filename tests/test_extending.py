"""Adding things is cheap: a package outside headdyn adds one of each, and everything shows up without touching headdyn.

The package is the one that docs/extend.md prints, in a temporary folder, as a user's would lie in the folder that the
command is called from: two analyses and their YAML, an ordering, a corpus, a section and an answer for the report. One
sweep uses all of them.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headdyn.core.records import HeadTable
from tests import forked
from tests.commands import TINY, environment, only, run
from tests.printed import printed_files

PACKAGE = printed_files(Path(__file__).parents[1] / "docs" / "extend.md")
THEIRS = ("--config-dir", "mylab_conf", "data=counting", "analysis=[loss,growth,same_token]", "study=mylab")
VARIED = ("data_ordering=shuffled,reversed", "model.num_layers=1,2", "seed=0,1")


def write_package(root: Path) -> None:
    for name, text in PACKAGE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("extending")
    write_package(root)
    return root


@pytest.fixture(scope="module")
def sweep(place: Path) -> tuple[Path, str]:
    """The sweep's folder and what the terminal showed."""
    done = run(place, "-m", *THEIRS, *VARIED, *TINY, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return only(place / "out" / "multirun"), done.stdout


def effects(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "effects.json").read_text(encoding="utf-8"))


def test_headdyn_does_not_know_the_package() -> None:
    root = Path(__file__).parents[1]
    texts = [file.read_text(encoding="utf-8") for part in ("headdyn", "conf") for file in (root / part).rglob("*.*ml")]
    texts += [file.read_text(encoding="utf-8") for file in (root / "headdyn").rglob("*.py")]
    assert len(texts) > 100
    assert not any(word in text for text in texts for word in ("mylab", "stream_growth", "CountingUp"))


def test_the_metric_is_in_the_terminal_and_the_summary(sweep: tuple[Path, str]) -> None:
    folder, shown = sweep
    assert {"growth", "stream", "(times)"} <= set(shown.split())  # the column's head, on several lines
    with (folder / "summary.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    for row in rows:
        table = HeadTable.read(folder / row["run"] / "heads.parquet").where(metric="stream_growth").rows()
        assert len(table) == 1 and table[0]["value"] == float(row["stream_growth"]) > 0


def test_the_metric_is_tested_like_any_outcome(sweep: tuple[Path, str]) -> None:
    folder, _ = sweep
    rows = [row for row in effects(folder) if row["outcome"] == "stream_growth"]
    contrasts = {tuple(row["factors"]): row for row in rows if row["kind"] in ("contrast", "interaction")}
    both = ("data_ordering", "model.num_layers")
    assert {tuple(sorted(factors)) for factors in contrasts} == {both[:1], both[1:], both}
    with (folder / "summary.csv").open(encoding="utf-8", newline="") as file:
        values = {
            (row["data_ordering"], int(row["model.num_layers"]), int(row["seed"])): float(row["stream_growth"])
            for row in csv.DictReader(file)
        }
    layers = contrasts["model.num_layers",]
    by_seed = [
        np.mean([values[order, 2, seed] - values[order, 1, seed] for order in ("shuffled", "reversed")])
        for seed in (0, 1)
    ]
    assert layers["value"] == pytest.approx(np.mean(by_seed), rel=1e-12) and layers["n"] == 2
    assert layers["ci_low"] < layers["value"] < layers["ci_high"] and layers["q"] is not None
    assert {row["outcome"] for row in effects(folder)} >= {"stream_growth", "loss_nats"}


def test_a_metric_of_heads_has_their_rows_and_the_model_s_by_which_runs_are_compared(sweep: tuple[Path, str]) -> None:
    folder, _ = sweep
    with (folder / "summary.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        table = HeadTable.read(folder / row["run"] / "heads.parquet").where(metric="same_token")
        value_LH = table.matrix("same_token")
        assert value_LH.shape == (int(row["model.num_layers"]), 4) and (value_LH > 0).all() and (value_LH < 1).all()
        assert float(row["same_token"]) == table.summary()["same_token"]["value"] == pytest.approx(value_LH.mean())
    layers = next(e for e in effects(folder) if (e["outcome"], e["factors"]) == ("same_token", ["model.num_layers"]))
    assert layers["n"] == 2 and layers["ci_low"] < layers["value"] < layers["ci_high"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "attention on the same token" in page and "points" in page


def test_the_page_shows_metric_section_answer_and_levels(sweep: tuple[Path, str]) -> None:
    folder, _ = sweep
    page = (folder / "report.html").read_text(encoding="utf-8")
    for words in (
        "growth of the stream",
        "norm of the residual stream behind the last layer over that of the embedding",
        "Their own part",
        "How many runs are there?",
        "There are 8.",
        "reversed",
        "num_layers",
    ):
        assert words in page, words


def test_the_metric_and_the_factor_are_in_the_dashboards(place: Path, sweep: tuple[Path, str]) -> None:
    folder, _ = sweep
    command = [sys.executable, "-m", "headdyn.dashboard", str(folder), "--out", "specs"]
    done = forked.run(command, cwd=place, env=environment(place), timeout=120)
    assert done.returncode == 0, done.stderr
    specs = "".join(file.read_text(encoding="utf-8") for file in (place / "specs").glob("*.json"))
    assert "stream_growth" in specs and "model.num_layers" in specs


def test_their_ordering_and_corpus_were_used(sweep: tuple[Path, str]) -> None:
    folder, _ = sweep
    manifests = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*/manifest.json")]
    assert len(manifests) == 8
    for manifest in manifests:
        assert manifest["config"]["data"]["_target_"] == "mylab.counting.CountingUp"
        assert manifest["factors"]["data_ordering"] in ("shuffled", "reversed")
    losses = {}
    for file in folder.glob("*/summary.json"):
        manifest = json.loads((file.parent / "manifest.json").read_text(encoding="utf-8"))
        key = manifest["factors"]["data_ordering"], manifest["factors"]["model.num_layers"], manifest["factors"]["seed"]
        losses[key] = json.loads(file.read_text(encoding="utf-8"))["loss_nats"]["value"]
    assert len(losses) == len(set(losses.values())) == 8  # every condition trained differently


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("analysis.growth.sequences=0",), "analysis.growth.sequences=0 must be at least 1"),
        (("data.vocab_size=2",), "data.vocab_size=2 must be at least 3"),
        (("+data_ordering.blocks=2",), "unknown key data_ordering.blocks"),
        (("outcomes.primary=stream_width",), "stream_width"),
        (("study=nowhere_at_all",), "study=nowhere_at_all"),
    ],
)
def test_their_settings_are_checked_like_ours(place: Path, arguments: tuple[str, ...], words: str) -> None:
    done = run(place, "-m", *THEIRS, "data_ordering=reversed", *TINY, *arguments)
    assert done.returncode != 0 and words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_their_metric_may_be_the_primary_outcome(place: Path, sweep: tuple[Path, str], tmp_path: Path) -> None:
    """Of runs that are there already too: nothing runs again, and the effects are those of the outcomes now asked for."""
    folder, _ = sweep
    assert not any(row["primary"] for row in effects(folder) if row["outcome"] == "stream_growth")
    shutil.copytree(place, tmp_path / "copy")
    other = tmp_path / "copy" / folder.relative_to(place)
    before = {file: file.stat().st_mtime_ns for file in other.glob("*/heads.parquet")}
    chosen = "outcomes={primary: stream_growth, others: [loss_nats]}"
    done = run(tmp_path / "copy", "-m", *THEIRS, *VARIED, *TINY, chosen, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = effects(other)
    assert {row["outcome"] for row in rows if row["primary"]} == {"stream_growth"}
    assert {row["outcome"] for row in rows} == {"stream_growth", "loss_nats"}
    assert "growth of the stream" in " ".join(done.stdout.rpartition("─")[2].split())
    assert len(before) == 8 and before == {file: file.stat().st_mtime_ns for file in other.glob("*/heads.parquet")}
