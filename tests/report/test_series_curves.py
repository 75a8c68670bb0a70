"""Curves over steps: what is drawn is what was measured, with its null, its band and where it emerged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headdyn.core.figures import Figure
from headdyn.report.sections.series import curve, other_curves
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_record import read_series
from tests.figure_checks import clipped, overlapping, rows, texts
from tests.report.series_folders import STEPS, emerging, judgement_at, verdict


def only(root: Path, told: dict[str, Any] | None = None, **settings: Any) -> Any:
    return read_series(SweepRecord.read(emerging(root, told, **settings)))[0]


def primary_curve(series: Any) -> Figure | None:
    return curve(series, [series.primary])


def lines(figure: Figure | None) -> dict[str, list[tuple[float, float]]]:
    """(x, y) of every line, by label."""
    assert figure is not None
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows(figure, "series"):
        found.setdefault(row["series"], []).append((row["x"], row["y"]))
    return found


def words(figure: Figure | None) -> list[str]:
    assert figure is not None
    assert not clipped(figure) and not overlapping(figure)
    return [text.text for text in texts(figure)]


def spans(figure: Figure | None) -> list[tuple[float, float]]:
    assert figure is not None
    return [(row["from"], row["to"]) for row in rows(figure, "from")]


def test_only_what_was_measured_is_drawn_each_unit_of_an_analysis_together(tmp_path: Path) -> None:
    series = only(tmp_path)
    assert series.primary == "strength_nats"
    assert list(other_curves(series)) == ["Strength", "Specialization: % right", "Strength of Δ on controls"]
    right = lines(other_curves(series)["Specialization: % right"])
    assert right["odd heads patched"] == [(1_000, 25), (32_000, 25), (64_000, 25), (143_000, 0)]
    assert list(right) == ["nothing patched", "even heads patched", "odd heads patched", "all heads patched"]


def test_the_primary_curve_has_its_band_and_the_emergence_interval(tmp_path: Path) -> None:
    figure = primary_curve(only(tmp_path))
    assert lines(figure)["strength of Δ"] == [(1_000, 0), (32_000, 0), (64_000, 4), (143_000, 8)]
    assert figure is not None
    band = [row for row in rows(figure, "low") if row["series"].startswith("95 % of all splits")]
    assert [(row["x"], row["low"], row["high"]) for row in band] == [(step, -2, 2) for step in STEPS]
    assert spans(figure) == [(32_000, 64_000)] and "Shaded" in figure.caption


def test_without_emergence_nothing_is_shaded(tmp_path: Path) -> None:
    series = only(tmp_path, verdict(None, None))
    assert spans(primary_curve(series)) == []
    assert all(spans(figure) == [] for figure in other_curves(series).values())


def test_a_null_band_is_drawn_unless_it_is_all_there_is(tmp_path: Path) -> None:
    assert any("95 %" in label for label in lines(curve(only(tmp_path), ["strength"])))
    path = tmp_path / "timeline.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("strength_band")
    pq.write_table(table.set_column(place, "strength_band", pa.array([1.0] * 4)), path)
    figure = curve(read_series(SweepRecord.read(tmp_path))[0], ["strength"])
    assert figure is not None and not any("95 %" in label for label in lines(figure))
    assert "chance has no band here" in figure.caption


def test_a_threshold_is_drawn_where_a_measure_has_one_of_its_own(tmp_path: Path) -> None:
    series = only(tmp_path)
    assert any(text.startswith("threshold") and "0.5" in text for text in words(curve(series, ["strength"])))
    assert not any("threshold" in text for text in words(primary_curve(series)))


def test_a_null_stands_beside_silhouettes(tmp_path: Path) -> None:
    row = {"value": 0.5, "null": 0.375, "n": 4, "unit": "head"}
    drawn = lines(other_curves(only(tmp_path, more=[{"qk_best_silhouette": row}] * 4))["Silhouette, QK circuits"])
    assert drawn["chance"] == [(step, 0.375) for step in STEPS] and next(iter(drawn)) == "silhouette, QK circuits"


def test_a_metric_that_no_analysis_names_has_a_curve_where_it_is_dated(tmp_path: Path) -> None:
    measures = {"depth_of_thought": judgement_at(32_000, 1_000)}
    more = [{"depth_of_thought": {"value": float(k), "null": 0.0}} for k in range(4)]
    series = only(tmp_path, verdict(measures=measures), more=more)
    assert series.primary == "depth_of_thought" and spans(primary_curve(series)) == [(1_000, 32_000)]
    assert [y for _, y in lines(primary_curve(series))["depth of thought"]] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["selectivity", "no_such_metric"])
def test_what_no_checkpoint_has_is_not_drawn(tmp_path: Path, name: str) -> None:
    assert curve(only(tmp_path), [name]) is None
