"""A package that a run names adds to the report; one that is not there, or has nothing to add, does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headdyn.core.run_folder import MANIFEST
from headdyn.report.extension import added, packages
from headdyn.report.files import sweep_figures
from headdyn.sweep.record import SweepRecord
from tests.report.folders import run, sweep

LENS = '''
"""A user's package."""
from markupsafe import Markup
from headdyn.core.figures import Curve, curves
from headdyn.report.blocks import Section
from headdyn.sweep.words import Statement

def sections(sweep):
    seen = curves([Curve(label="lens", x=[0, 1], y=[1, 2])], xlabel="x", ylabel="y", title="What the lens saw")
    text = Markup("<p>%d runs</p>") % len(sweep.jobs)
    return [Section("lens", "The lens", [text, seen], "It saw something.")]

def headlines(sweep):
    return [Statement("What does the lens see?", ["Something."])]
'''


def configured(folder: Path, *configs: dict[str, Any]) -> SweepRecord:
    entries = [run(folder, seed=seed) for seed in range(len(configs))]
    for entry, config in zip(entries, configs, strict=True):
        path = folder / entry["name"] / MANIFEST
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps(manifest | {"config": {**manifest.get("config", {}), **config}}))
    return SweepRecord.read(sweep(folder, entries))


@pytest.fixture
def lens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "lens_package").mkdir()
    (tmp_path / "lens_package" / "__init__.py").write_text(LENS)
    monkeypatch.syspath_prepend(tmp_path)
    return "lens_package"


@pytest.mark.parametrize(
    "config",
    [
        {"study": "lens_package"},
        {"analysis": {"lens": {"_target_": "lens_package.lens.Lens", "depth": 3}}},
        {"study": None, "model": {"_target_": "lens_package.models.Model"}},
    ],
    ids=["study", "analysis", "model"],
)
def test_a_package_that_a_run_names_adds_its_parts_once(lens: str, tmp_path: Path, config: dict[str, Any]) -> None:
    record = configured(tmp_path, config, config)
    (section,), (statement,) = added("sections", record), added("headlines", record)
    assert (section.anchor, section.parts[0], section.folded) == ("lens", "<p>2 runs</p>", True)
    assert section.html.startswith("<p>2 runs</p>\n<figure>") and "what_the_lens_saw" in sweep_figures(record)
    assert statement.sentences == ["Something."] and added("checks", record) == []


def test_a_package_that_is_not_here_adds_nothing(tmp_path: Path) -> None:
    record = configured(
        tmp_path, {"study": "no_such_package.here"}, {"analysis": {"a": {"_target_": "json.JSONDecoder"}}}
    )
    assert packages(record) == [] and added("sections", record) == []


def test_a_package_that_is_here_and_broken_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_package.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        packages(configured(tmp_path, {"study": "broken_package"}))


def test_headdyns_own_analyses_have_nothing_to_add(tmp_path: Path) -> None:
    record = configured(tmp_path, {"analysis": {"loss": {"_target_": "headdyn.analysis.loss.Loss"}}})
    assert added("sections", record) == added("headlines", record) == added("checks", record) == []
