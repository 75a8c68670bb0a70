"""Misread weights are explained with their nulls; the study's silhouettes stand beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headdyn.studies.weight_clusters import sections
from headdyn.studies.weight_clusters.page import silhouettes
from headdyn.sweep.record import SweepRecord, single_job
from tests.report.series_folders import emerging, run, scalars
from tests.report.test_sweep_page import Text

MEASURED: dict[str, Any] = {
    "original_query_silhouette": {"value": 0.625, "null": 0.5, "n": 4},
    "original_query_smallest_cluster": {"value": 1.0, "n": 4},
    "qk_silhouette": {"value": 0.0, "null": 0.125},
}


def parts(folder: Path) -> dict[str, str]:
    return {s.title: Text(f"<body>{s.html}</body>").text for s in sections(SweepRecord.read(folder))}


def test_misread_weights_are_explained_with_their_null(tmp_path: Path) -> None:
    name = run(tmp_path, 143_000, scalars(1.0, 0.25, 4.0, **MEASURED), protocol="original")["name"]
    here = silhouettes(single_job(tmp_path / name))
    assert "query 0.625 (random pieces 0.500)" in here
    assert "QK circuits 0.000 (null 0.125)" in here and "holds 1 pieces" in here


def test_the_studys_silhouettes_stand_beside_those_of_its_model(tmp_path: Path) -> None:
    title = "Silhouettes of two weight clusters"
    more = [MEASURED] * 4
    read = parts(emerging(tmp_path / "own", model="EleutherAI/pythia-160m", protocol="original", more=more))[title]
    assert "step 143 000 0.606 0.467 0.687 0.625" in read and "Source: Pythia Clustering Dynamics" in read
    other = parts(emerging(tmp_path / "other", protocol="original", more=more))[title]
    assert "not of some/suite" in other and "0.606" not in other


def test_nothing_is_said_of_weights_that_were_not_read(tmp_path: Path) -> None:
    assert parts(emerging(tmp_path)) == {}
