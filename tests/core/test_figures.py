import itertools
import json
import math
import subprocess
import sys

import altair
import numpy as np
import pytest

from headdyn.core.figures import (
    FORMATS,
    PALETTE,
    PUOR,
    Curve,
    Figure,
    HeadMap,
    Interval,
    curves,
    head_map,
    interval_plot,
    rendered,
)
from headdyn.core.special_charts import NullRanges, Scatter, label_strips, null_ranges, scatter_panels, text_tables
from tests.core.test_pictures import PICTURES
from tests.figure_checks import alike, charts, clipped, overlapping, rows, texts


def a_head_map(layers: int = 4, heads: int = 4) -> Figure:
    values = np.random.default_rng(0).normal(0, 0.1, (layers, heads))
    values[0, 0] = np.nan
    marked = np.abs(values) > 0.1
    selectivity = HeadMap(
        title="selectivity", unit="share of mass", note="null 0", centre=0, value_LH=values, marked_LH=marked
    )
    within = HeadMap(
        title="within ratio", unit="share", note="label-swap null 0.43", limits=(0, 1), value_LH=values + 0.5
    )
    return head_map([selectivity, within, within])


STEPS = np.array([0, 1, 2, 4, 8, 100, 800])


def some_curves(**options) -> Figure:
    lines = [
        Curve(label=name, x=STEPS, y=4 - np.log1p(STEPS) / k, low=3 - np.log1p(STEPS), high=5 - np.log1p(STEPS))
        for k, name in enumerate(("mha shuffled rope", "mha topic rope"), 3)
    ]
    references = {"random": 4.16, "mixture": 3.21, "bigram": 3.2, "floor": 2.43}
    return curves(lines, xlabel="step", ylabel="loss (nats per token)", title="loss", references=references, **options)


INTERVALS = [
    Interval(label=f"mha_shuffled_rope_{i}", value=i, low=i - 0.5, high=i + 0.2, null=0.3, group="x") for i in range(5)
]


def an_interval_plot() -> Figure:
    return interval_plot(
        [*INTERVALS, Interval(label="failed", value=None)], xlabel="within ratio (share)", title="summary"
    )


def some_null_ranges() -> Figure:
    panel = NullRanges(
        title="k-means, k = 2",
        labels=["0", "1", "2"],
        value_X=np.array([0.1, np.nan, 0.4]),
        null_X3=np.array([[0.1, 0.15, 0.2]] * 3),
        low_X=np.array([0.05, np.nan, 0.3]),
        high_X=np.array([0.15, np.nan, 0.5]),
        marked_X=np.array([False, True, True]),
        ylabel="silhouette",
        xlabel="layer",
    )
    return null_ranges([panel] * 4, columns=2, title="Do the heads of a layer form clusters? Below 0.25 they do not")


def some_strips() -> Figure:
    strips = [("even / odd", np.arange(8) % 2), ("k-means: k = 8", np.array([0, 1, -1, 6, 7, 2, 3, 4]))]
    return label_strips([strips, strips[:1]], title="Clusters of the heads of layer 3 (hollow: in none)")


def a_scatter() -> Figure:
    points = np.random.default_rng(0).normal(size=(8, 2))
    panel = Scatter(
        title="QK: principal components", points_H2=points, labels_H=np.arange(8) % 3 - 1, xlabel="1 (40 %)"
    )
    return scatter_panels([panel] * 3, columns=3, title="Heads")


def a_text_table() -> Figure:
    cells = [["head", "share", "tokens"], ["0.1", "20 %", "a b ␣c " * 40], ["3.2", "7 %", "Δ"]]
    return text_tables({"QK: random heads reach 3 sd": cells, "OV": cells[:2]}, widths=(40, 70, 200))


FIGURES = {
    "head_map": a_head_map,
    "small_head_map": lambda: a_head_map(2, 4),
    "large_head_map": lambda: a_head_map(12, 12),
    "huge_head_map": lambda: a_head_map(24, 16),
    "curves": some_curves,
    "log_curves": lambda: some_curves(log_x=True, span=(4, 100)),
    "interval_plot": an_interval_plot,
    "null_ranges": some_null_ranges,
    "label_strips": some_strips,
    "scatter_panels": a_scatter,
    "text_tables": a_text_table,
    **PICTURES,
}


# -- every figure -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_the_specification_is_valid_and_the_same_every_time(name):
    figure = FIGURES[name]()
    figure.chart.to_dict(validate=True)
    assert json.dumps(figure.spec(), allow_nan=False) == json.dumps(FIGURES[name]().spec())


@pytest.mark.parametrize("name", FIGURES)
def test_it_is_drawn_without_a_browser_and_nothing_is_clipped_or_collides(name):
    figure = FIGURES[name]()
    svg = rendered(figure.spec(), "svg").decode()
    assert svg.startswith("<svg") and len(svg) > 2000 and "NaN" not in svg
    assert clipped(figure) == [] and overlapping(figure) == [] and alike(figure) == []


def test_the_clipping_check_sees_a_cut_label():
    rows = [Interval(label="a very long name of a row " * 4, value=1.0)]
    assert clipped(interval_plot(rows, xlabel="x"))


def test_the_check_of_overlaps_sees_crowded_names_of_rows():
    crowded = an_interval_plot().chart.properties(height=20).to_dict()
    crowded["config"] = {"axis": {"labelOverlap": False}}
    spec = json.loads(json.dumps(crowded).replace('"labelOverlap": true', '"labelOverlap": false'))
    assert ("mha_shuffled_rope_0", "mha_shuffled_rope_1") in overlapping(Figure(altair.Chart.from_dict(spec)))


def test_a_figure_is_saved_as_its_specification_and_as_pictures(tmp_path):
    figure = interval_plot(INTERVALS, xlabel="share", caption="What chance would look like: all at 0.3.")
    for kind in ("json", *FORMATS):
        figure.save(tmp_path / "new" / f"figure.{kind}")
    starts = {"json": b"{", "svg": b"<svg", "pdf": b"%PDF-", "png": b"\x89PNG"}
    assert all((tmp_path / f"new/figure.{kind}").read_bytes().startswith(start) for kind, start in starts.items())
    stored = json.loads((tmp_path / "new/figure.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(figure.spec()))
    assert stored["description"] == "What chance would look like: all at 0.3."


def test_importing_figures_is_cheap():
    code = "import sys, headdyn.core.figures; sys.exit('altair' in sys.modules or 'vl_convert' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- what each holds --------------------------------------------------------------------------------------------------


def test_head_map_writes_values_and_asterisks_and_leaves_absent_cells_empty():
    values = np.array([[0.25, np.nan], [-0.001, 0.5]])
    figure = head_map([HeadMap(title="x", unit="share", value_LH=values, marked_LH=np.array([[1, 1], [0, 0]], bool))])
    cells = [(row["layer"], row["head"], row["value"], row["text"]) for row in rows(figure, "head")]
    assert cells == [(0, 0, 0.25, "0.25*"), (1, 0, -0.001, "0.00"), (1, 1, 0.5, "0.50")]
    small = head_map([HeadMap(title="x", unit="", value_LH=np.array([[0.0012, -0.00001, -0.0052]]))])
    assert [row["text"] for row in rows(small, "head")] == ["0.0012", "0.0000", "−0.0052"]
    words = [text.text for text in texts(figure)]
    assert {"head", "layer", "x (share)", "* q < 0.05"} <= set(words)


def test_diverging_colours_are_symmetric_about_the_null():
    figure = head_map([HeadMap(title="x", unit="", value_LH=np.array([[0.1, 0.5]]), centre=0.2)])
    scale = next(charts(figure.spec()))["encoding"]["fill"]["scale"]
    assert scale["domain"][4] == pytest.approx(0.2) and scale["domain"][-1] == pytest.approx(0.5)
    assert scale["range"] == list(PUOR)


def test_curves_carry_their_numbers_bands_and_references():
    figure = some_curves(log_x=True)
    points = rows(figure, "series")
    assert [row["x"] for row in points] == [*STEPS, *STEPS]
    np.testing.assert_allclose([row["y"] for row in points[:7]], 4 - np.log1p(STEPS) / 3)
    np.testing.assert_allclose([row["low"] for row in points[:7]], 3 - np.log1p(STEPS))
    np.testing.assert_allclose([row["high"] for row in points[7:]], 5 - np.log1p(STEPS))
    assert any(unit["mark"]["type"] == "area" and "y2" in unit["encoding"] for unit in charts(figure.spec()))
    levels = rows(figure, "level")
    assert {row["text"]: row["level"] for row in levels} == {
        "floor 2.43": 2.43, "bigram 3.2": 3.2, "mixture 3.21": 3.21, "random 4.16": 4.16,
    }  # fmt: skip
    words = {text.text for text in texts(figure)}
    assert {"step", "loss (nats per token)", "mha shuffled rope", "floor 2.43", "0", "100"} <= words
    absent = curves([Curve(label="a", x=[0, 1], y=[math.nan, 2])], xlabel="x", ylabel="y")
    assert [row["y"] for row in rows(absent, "series")] == [None, 2]


def test_each_step_on_an_axis_from_0_has_a_prefix_of_its_own():
    figure = curves(
        [Curve(label="a", x=[0, 1, 10, 100, 1000], y=[1, 2, 3, 2, 1])], xlabel="step", ylabel="y", log_x=True
    )
    svg = rendered(figure.spec(), "svg").decode()
    assert all(f">{label}<" in svg for label in ("0", "1", "10", "100", "1k")) and ">0.1k<" not in svg


def test_steps_on_a_log_axis_start_where_the_checkpoints_do():
    steps = [64, 512, 143_000]
    figure = curves([Curve(label="a", x=steps, y=[1, 2, 3])], xlabel="step", ylabel="y", log_x=True, span=(0, 512))
    scale = next(unit["encoding"]["x"]["scale"] for unit in charts(figure.spec()) if "scale" in unit["encoding"]["x"])
    assert scale["type"] == "log" and 32 < scale["domain"][0] < 64
    (span,) = rows(figure, "to")
    assert (span["from"], span["to"]) == (scale["domain"][0], 512)


@pytest.mark.parametrize("points", [4, 40])
def test_no_two_curves_differ_in_colour_alone(points):
    x = np.arange(points)
    assert alike(curves([Curve(label=str(i), x=x, y=x + i) for i in range(20)], xlabel="x", ylabel="y")) == []
    few = curves([Curve(label=str(i), x=x, y=x + i) for i in range(4)], xlabel="x", ylabel="y").spec()
    dashes = next(unit["encoding"]["strokeDash"]["scale"] for unit in charts(few) if "strokeDash" in unit["encoding"])
    assert len(set(map(str, dashes["range"]))) == 4


def test_the_check_of_looks_sees_lines_that_differ_in_colour_alone():
    x = np.arange(3)
    assert alike(curves([Curve(label=str(i), x=x, y=x + i) for i in range(33)], xlabel="x", ylabel="y"))


def test_an_interval_plot_holds_values_intervals_and_nulls_and_says_what_is_absent():
    figure = an_interval_plot()
    row_labels = rows(figure, "label")
    assert [(row["value"], row["low"], row["high"], row["null"]) for row in row_labels[:5]] == [
        (row.value, row.low, row.high, row.null) for row in INTERVALS
    ]
    bars = [unit for unit in charts(figure.spec()) if unit["mark"]["type"] == "rule" and "x2" in unit["encoding"]]
    assert len(bars) == 1
    words = [text.text for text in texts(figure)]
    assert words.count("absent") == 1 and "hollow diamond: null, what chance gives" in words
    rows_of_groups = [Interval(label="a", value=1.0, null=0.0, group=group) for group in ("x", "y")]
    assert alike(interval_plot(rows_of_groups, xlabel="x")) == []


def test_null_ranges_hold_what_chance_gives_and_say_none_where_nothing_is():
    figure = some_null_ranges()
    row, absent, marked = rows(figure, "null_mean")[:3]
    assert [row[name] for name in ("value", "low", "high", "null_low", "null_mean", "null_high")] == [
        0.1, 0.05, 0.15, 0.1, 0.15, 0.2,
    ]  # fmt: skip
    assert absent["value"] is None and absent["star"] == "" and (marked["star"], marked["top"]) == ("*", 0.5)
    assert [text.text for text in texts(figure)].count("none") == 4


def test_clusters_have_their_number_and_a_head_in_none_is_hollow():
    for figure in (some_strips(), a_scatter()):
        alone = next(row for row in rows(figure, "cluster") if row["cluster"] == "none")
        assert (alone["colour"], alone["text"]) == ("white", "")
    dark = next(row for row in rows(some_strips(), "cluster") if row["cluster"] == "6")
    assert (dark["colour"], dark["ink"]) == ("#000000", "white")


def test_palette_is_told_apart_without_red_and_green():
    # Machado et al. 2009, deuteranopia at severity 1, in linear RGB.
    matrix = np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    )
    colours = (np.array([list(bytes.fromhex(colour[1:])) for colour in PALETTE]) / 255) ** 2.2
    seen = np.clip(colours @ matrix.T, 0, 1) ** (1 / 2.2)
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen[:6], 2)]
    assert min(distances) > 0.15
    red_green = np.clip(np.array([[1.0, 0, 0], [0, 0.5, 0]]) ** 2.2 @ matrix.T, 0, 1) ** (1 / 2.2)
    assert np.linalg.norm(red_green[0] - red_green[1]) < 0.35 < np.linalg.norm([1, 0.5])  # what it would do to those
