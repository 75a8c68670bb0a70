import itertools
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from headdyn.core.figures import (
    PALETTE,
    Curve,
    HeadMap,
    Interval,
    curves,
    head_map,
    interval_plot,
    pattern_grid,
    png_bytes,
    save_png,
    similarity_grid,
)
from headdyn.core.settings import ConfigError
from tests.figure_checks import alike, clipped, overlapping, visible_texts


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


def some_curves(**options) -> Figure:
    steps = np.array([0, 1, 2, 4, 8, 100, 800])
    lines = [
        Curve(label=name, x=steps, y=4 - np.log1p(steps) / k, low=3 - np.log1p(steps), high=5 - np.log1p(steps))
        for k, name in enumerate(("mha shuffled rope", "mha topic rope"), 3)
    ]
    references = {"random": 4.16, "mixture": 3.21, "floor": 2.43}
    return curves(lines, xlabel="step", ylabel="loss (nats per token)", title="loss", references=references, **options)


def a_pattern_grid() -> Figure:
    pattern = np.tril(np.ones((2, 3, 20, 20))) / np.arange(1, 21)[:, None]
    return pattern_grid(
        pattern, rows=["layer 0", "layer 1"], columns=["a", "b", "c"], boundaries=[(0, 8, 13), (5,)], title="one"
    )


def an_interval_plot() -> Figure:
    rows = [
        Interval(label=f"mha_shuffled_rope_{i}", value=i, low=i - 0.5, high=i + 0.2, null=0.3, group="x")
        for i in range(5)
    ]
    return interval_plot([*rows, Interval(label="failed", value=None)], xlabel="within ratio (share)", title="summary")


FIGURES = {
    "head_map": a_head_map,
    "small_head_map": lambda: a_head_map(2, 4),
    "large_head_map": lambda: a_head_map(12, 12),
    "curves": some_curves,
    "log_curves": lambda: some_curves(log_x=True),
    "pattern_grid": a_pattern_grid,
    "similarity_grid": lambda: similarity_grid(
        np.stack([np.eye(8)] * 2), columns=["QK", "OV"], reach=0.1, boundaries=(4,), title="x"
    ),
    "interval_plot": an_interval_plot,
}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_clipped_and_no_texts_collide(name):
    figure = FIGURES[name]()
    assert clipped(figure) == [] and overlapping(figure) == []


def test_the_clipping_check_sees_a_clipped_label():
    figure = a_head_map()
    figure.text(0.99, 0.5, "far outside")
    assert clipped(figure) == ["far outside"]


def test_the_check_of_overlaps_sees_crowded_tick_labels():
    figure = an_interval_plot()
    figure.axes[0].set_xticks(np.linspace(0, 1, 20), [f"{x:.4f}" for x in np.linspace(0, 1, 20)])
    assert ("0.0000", "0.0526") in overlapping(figure)


@pytest.mark.parametrize("points", [4, 40])
def test_no_two_curves_differ_in_colour_alone(points):
    x = np.arange(points)
    figure = curves([Curve(label=str(i), x=x, y=x + i) for i in range(20)], xlabel="x", ylabel="y")
    looks = [(line.get_linestyle(), line.get_marker()) for line in figure.axes[0].lines]
    assert len(set(looks)) == 20 and alike(figure) == []
    few = curves([Curve(label=str(i), x=x, y=x + i) for i in range(4)], xlabel="x", ylabel="y").axes[0].lines
    assert len({line.get_linestyle() for line in few}) == 4


def test_groups_of_an_interval_plot_differ_in_their_marks():
    rows = [Interval(label="a", value=1.0, null=0.0, group=group) for group in ("x", "y")]
    assert alike(interval_plot(rows, xlabel="x")) == []


def test_similarity_leaves_the_diagonal_out_and_reaches_as_far_as_told():
    cosine_NN = np.array([[1.0, 0.03], [0.03, 1.0]])
    figure = similarity_grid(cosine_NN[None], columns=["QK"], reach=0.06)
    image = figure.axes[0].images[0]
    assert image.get_clim() == (-0.06, 0.06)
    assert np.isnan(np.ma.filled(image.get_array(), np.nan)[np.eye(2, dtype=bool)]).all()
    told = [text.get_text() for text in visible_texts(figure)]
    assert "cosine (colours reach ±0.06)" in told and told.count("head, numbered through the layers") == 2


@pytest.mark.parametrize("name", FIGURES)
def test_png_is_whole_and_the_same_every_time(name, tmp_path):
    first = png_bytes(FIGURES[name]())
    assert first == png_bytes(FIGURES[name]())
    save_png(FIGURES[name](), tmp_path / "new" / "figure.png")
    picture = imread(tmp_path / "new" / "figure.png")
    assert picture.std() > 0.01  # something is drawn


def test_vectors_are_written_beside_the_png_where_they_are_asked_for(tmp_path, monkeypatch):
    save_png(an_interval_plot(), tmp_path / "plain" / "figure.png")
    assert [path.name for path in (tmp_path / "plain").iterdir()] == ["figure.png"]
    for kind, start in (("pdf", b"%PDF-"), ("svg", b"<?xml")):
        monkeypatch.setenv("HEADDYN_FIGURES", kind)
        save_png(an_interval_plot(), tmp_path / kind / "figure.png")
        assert (tmp_path / kind / f"figure.{kind}").read_bytes().startswith(start)
        assert (tmp_path / kind / "figure.png").read_bytes() == (tmp_path / "plain" / "figure.png").read_bytes()
    monkeypatch.setenv("HEADDYN_FIGURES", "eps")
    with pytest.raises(ConfigError, match="HEADDYN_FIGURES=eps is unknown; it is pdf or svg"):
        save_png(an_interval_plot(), tmp_path / "figure.png")


def test_drawing_leaves_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    for make in FIGURES.values():
        make()
    assert dict(matplotlib.rcParams) == before
    code = "import sys, headdyn.core.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_head_map_writes_values_and_asterisks_and_leaves_absent_cells_empty():
    values = np.array([[0.25, np.nan], [-0.001, 0.5]])
    figure = head_map([HeadMap(title="x", unit="share", value_LH=values, marked_LH=np.array([[1, 1], [0, 0]], bool))])
    cells = [text.get_text() for text in figure.axes[0].texts]
    assert cells == ["0.25*", "0.00", "0.50"]
    small = head_map([HeadMap(title="x", unit="", value_LH=np.array([[0.0012, -0.00001]]))])
    assert [text.get_text() for text in small.axes[0].texts] == ["0.0012", "0.0000"]
    assert figure.axes[0].get_xlabel() == "head" and figure.axes[0].get_ylabel() == "layer"
    assert "* q < 0.05" in figure.axes[0].get_title() and "share" in figure.axes[0].get_title()


def test_diverging_colours_are_symmetric_about_the_null():
    figure = head_map([HeadMap(title="x", unit="", value_LH=np.array([[0.1, 0.5]]), centre=0.2)])
    low, high = figure.axes[0].images[0].get_clim()
    assert (low + high) / 2 == pytest.approx(0.2) and high == pytest.approx(0.5)


def test_curves_carry_units_references_and_step_zero():
    figure = some_curves(log_x=True)
    axes = figure.axes[0]
    assert axes.get_ylabel() == "loss (nats per token)"
    assert [line.get_label() for line in axes.lines][2:] == ["random (4.16)", "mixture (3.21)", "floor (2.43)"]
    assert axes.transData.transform((0, 3))[0] >= axes.bbox.x0 - 1e-6  # on the axis although it is logarithmic


def test_pattern_grid_draws_a_boundary_before_its_token():
    for axes, expected in zip(a_pattern_grid().axes, [[7.5, 12.5]] * 3 + [[4.5]] * 3, strict=False):
        places = sorted({segment[0][1] for segment in axes.collections[0].get_segments()})
        assert places == expected  # the segment at 0 needs no line


def test_palette_is_told_apart_without_red_and_green():
    # Machado et al. 2009, deuteranopia at severity 1, in linear RGB.
    matrix = np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    )
    colours = np.array([matplotlib.colors.to_rgb(colour) for colour in PALETTE]) ** 2.2
    seen = np.clip(colours @ matrix.T, 0, 1) ** (1 / 2.2)
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen[:6], 2)]
    assert min(distances) > 0.15
    red_green = np.clip(np.array([[1.0, 0, 0], [0, 0.5, 0]]) ** 2.2 @ matrix.T, 0, 1) ** (1 / 2.2)
    assert np.linalg.norm(red_green[0] - red_green[1]) < 0.35 < np.linalg.norm([1, 0.5])  # what it would do to those
