"""Every landmark's preset at toy size, from the command line to the page: predictions beside results."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headdyn.plan import make_plan
from headdyn.report.files import sweep_figures
from headdyn.report.sections.answers import all_statements
from headdyn.report.terminal import headlines
from headdyn.run import main
from headdyn.studies.landmarks.courses import courses
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_record import read_series
from tests.commands import environment
from tests.figure_checks import clipped
from tests.test_series_pipeline import words_of

QUICK = (
    *("mode=smoke", "tracking=none", "threads=1", "train.steps=4", "train.snapshots=2", "train.eval_sequences=32"),
    *("train.eval_every_steps=2", "data.train_sequences=64", "data.val_sequences=32", "data.sequence_length=48"),
    *("model.d_model=16", "model.head_dim=8", "model.d_ff=16"),
)
PRESETS = {
    "statistical_induction": ("analysis.in_context_predictors.bootstrap_draws=100",),
    "induction_bump": ("analysis.induction_scores.bootstrap_draws=100",),
    "markov_phases": ("analysis.mixture_predictors.bootstrap_draws=100", "data.num_chains=2,5"),
    "clamping": ("analysis.induction_scores.bootstrap_draws=100",),
}
FACTOR = {
    **{"statistical_induction": "data.rows", "induction_bump": "model.num_layers"},
    **{"markov_phases": "data.num_chains", "clamping": "train.clamp.pattern"},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("HEADDYN_OUT", "HEADDYN_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, environment(tmp_path)[name])
    monkeypatch.setattr(sys, "argv", ["headdyn"])
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_puts_the_predictions_beside_what_its_trainings_show(preset: str, place: Path) -> None:
    assert main(("-m", f"experiment={preset}", *QUICK, *PRESETS[preset])) == 0
    (made,) = (place / "out" / "multirun").glob("*")
    words, record = words_of(made / "report.html"), SweepRecord.read(made)
    predictions = __import__(f"headdyn.studies.landmarks.{preset}.predictions", fromlist=["LANDMARK"])
    assert words.count("Prediction beside result") == 2 and predictions.LANDMARK.paper in words
    for prediction in predictions.LANDMARK.predictions:
        assert prediction.statement in words and prediction.criterion in words
    said, asked = headlines(record), [statement.question for statement in all_statements(record)]
    for number, prediction in enumerate(predictions.LANDMARK.predictions):
        assert said[number].startswith(f"Predicted: {prediction.statement}. ")
        assert asked[number] == f"Predicted: {prediction.statement}"
    titles = [series.title for series in read_series(record)]
    assert len(set(titles)) == len(titles) == (0 if preset == "clamping" else 2)
    assert all(title and any(line.startswith(f"{title}: ") for line in said) for title in titles)
    revisions = {None} if preset == "clamping" else {"step0", "step4"}
    assert {job.factors.get("revision") for job in record.complete} == revisions and not record.failed
    assert FACTOR[preset] in record.swept
    figures = predictions.figures(courses(record)).values()
    files = [each.spec() for each in sweep_figures(record).values()]
    assert figures and all(figure.spec() in files for figure in figures)
    assert not [text for figure in figures for text in clipped(figure)]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_composes_with_and_without_its_smoke_mode(preset: str) -> None:
    few = ("-m", f"experiment={preset}", "train.snapshots=2")
    whole, smoke = (make_plan((*few, *mode)).jobs for mode in ((), ("mode=smoke",)))
    assert whole[0].mode.name == "landmark" and smoke[0].mode.name == "smoke"
    assert whole[0].train.steps * whole[0].train.batch_size <= whole[0].data.train_sequences  # no sequence comes twice
    assert {job.model.num_layers for job in whole} <= {1, 2}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_says_how_long_it_took_on_record(preset: str) -> None:
    root = Path(__file__).parents[3]
    took = json.loads((root / "experiments/landmarks/minutes.json").read_text())[preset]["minutes"]
    text = (root / f"conf/experiment/{preset}.yaml").read_text()
    assert f"# About {took:.0f} minutes on two cores.\n" in text
