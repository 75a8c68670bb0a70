import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headdyn.report.series.charts import half_means, series_charts
from headdyn.report.series.maps import series_maps
from headdyn.report.series.record import read_series
from headdyn.sweep.record import SweepRecord
from tests.report.series_folders import emerging, verdict


def only(root: Path, told: dict[str, Any] | None = None, **settings: Any) -> Any:
    return read_series(SweepRecord.read(emerging(root, told, **settings)))[0]


def subjects(series: Any) -> dict[str, str]:
    return {title: "".join(charts) for title, _, charts in series_charts(series)}


def test_only_what_was_measured_is_drawn(tmp_path: Path) -> None:
    assert list(subjects(only(tmp_path))) == [
        "Strength over training",
        "Right answers and log-odds",
        "Around emergence",
        "Heads from checkpoint to checkpoint",
    ]


def test_the_shaded_span_is_the_emergence_interval(tmp_path: Path) -> None:
    drawn = subjects(only(tmp_path))["Strength over training"]
    x, width = map(float, re.search(r'class="span" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawn).groups())  # type: ignore[union-attr]
    marks = [float(at) for at in re.findall(r'class="mark" transform="translate\(([\d.]+),', drawn.split("</svg>")[0])]
    # Marks stand at steps 1000, 32000, 64000 and 143000, so the span runs from the second to the third.
    assert marks[1] == pytest.approx(x, abs=0.11) and marks[2] == pytest.approx(x + width, abs=0.11)


def test_without_emergence_nothing_is_shaded(tmp_path: Path) -> None:
    found = subjects(only(tmp_path, verdict(None, None)))
    assert "Around emergence" not in found
    assert 'class="span"' not in "".join(found.values())


def test_a_null_band_is_drawn_unless_it_is_all_there_is(tmp_path: Path) -> None:
    assert subjects(only(tmp_path))["Strength over training"].count('path class="band"') == 2
    path = tmp_path / "timeline.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("strength_band")
    pq.write_table(table.set_column(place, "strength_band", pa.array([1.0] * 4)), path)
    series = read_series(SweepRecord.read(tmp_path))[0]
    assert subjects(series)["Strength over training"].count('path class="band"') == 1
    text = next(text for title, text, _ in series_charts(series) if title == "Strength over training")
    assert "strength has no such band" in text


def test_log_odds_of_either_half_come_from_the_splits(tmp_path: Path) -> None:
    # Even heads have half of strength_nats and odd ones minus that, by construction of the folder.
    series = only(tmp_path)
    assert [half_means(job) for job in series.complete] == [(0, 0), (0, 0), (2, -2), (4, -4)]
    drawn = subjects(series)["Right answers and log-odds"]
    assert "even heads patched · 143 000: 4.000" in drawn and "odd heads patched · 143 000: −4.000" in drawn


def test_a_null_stands_beside_silhouettes(tmp_path: Path) -> None:
    row = {"value": 0.5, "null": 0.375, "n": 4, "unit": "head"}
    drawn = subjects(only(tmp_path, more=[{"qk_best_silhouette": row}] * 4))["Clusters of heads"]
    assert "null of QK circuits · 1 000: 0.375" in drawn and "OV circuits" not in drawn


def test_the_studys_figures_are_drawn_for_its_own_model_alone(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    own = only(tmp_path / "own", model="EleutherAI/pythia-160m")
    assert "the study&#39;s figure · 143 000: 1.000" in subjects(own)["Strength over training"]
    assert "the study" not in subjects(only(tmp_path))["Strength over training"]


def test_maps_have_a_row_a_checkpoint(tmp_path: Path) -> None:
    layers, heads = series_maps(only(tmp_path))
    assert "Strength of Δ at every layer" in layers and layers.count("<rect") == 4 * 3
    assert heads.count("<rect") == 4 * 4
    assert "step 143 000, head 3: 0.75" in heads
