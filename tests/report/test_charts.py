import math
import xml.etree.ElementTree as ET

from headdyn.report.charts import Dot, Line, interval_chart, legend, line_chart, nice_scale


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(str(svg))


def test_scales_hold_the_data_and_have_round_ticks() -> None:
    scale = nice_scale([2.1, 3.47], 0, 100)
    assert scale.low < 2.1 and scale.high > 3.47
    assert scale.ticks == (2.25, 2.5, 2.75, 3.0, 3.25, 3.5)
    assert scale(scale.low) == 0 and scale(scale.high) == 100


def test_a_log_scale_shows_zero_left_of_one() -> None:
    scale = nice_scale([0, 1, 60], 0, 100, log=True)
    assert scale(0) == 0 < scale(1) < scale(60)
    assert scale.ticks[0] == 0


def test_one_value_or_none_still_makes_a_scale() -> None:
    for values in ([], [0.0], [5.0], [math.nan]):
        scale = nice_scale(values, 0, 100)
        assert scale.high > scale.low


def test_a_line_chart_has_its_axes_units_references_and_run_numbers() -> None:
    line = Line(label="a < b", x=[0, 10], y=[3.0, 2.5], low=[2.9, 2.4], high=[3.1, 2.6], runs=[4, 7])
    svg = line_chart([line], title="Loss", x_label="step", y_label="loss (nats)", references={"floor 2.000": 2.0})
    texts = [node.text for node in parsed(svg).iter() if node.text]
    assert {"Loss", "step", "loss (nats)", "floor 2.000", "a < b · 10: 2.500"} <= set(texts)
    assert 'data-run="4 7"' in svg
    assert svg.count('class="whisker"') == 2
    assert 'data-run="4 7"' in legend([line])


def test_close_references_do_not_overlap() -> None:
    svg = line_chart(
        [Line(label="a", x=[0, 1], y=[0.0, 1.0])],
        title="",
        x_label="x",
        y_label="y",
        references={"one": 0.5, "two": 0.501},
    )
    places = [float(node.attrib["y"]) for node in parsed(svg).iter() if node.text in ("one", "two")]
    assert abs(places[0] - places[1]) >= 12


def test_an_absent_effect_is_written_as_absent_with_its_reason() -> None:
    svg = interval_chart([Dot(label="GQA", value=None, reason="no seed has all 8 cells")], title="t", x_label="x")
    assert "absent" in svg and "no seed has all 8 cells" in svg
    assert 'class="mark"' not in svg


def test_a_value_without_an_interval_is_a_hollow_dot() -> None:
    hollow = interval_chart([Dot(label="GQA", value=0.1)], title="t", x_label="x")
    full = interval_chart([Dot(label="GQA", value=0.1, low=0.0, high=0.2, null=0.05)], title="t", x_label="x")
    assert 'fill="#fff"' in hollow and 'class="interval"' not in hollow
    assert 'fill="#fff"' not in full and 'class="interval"' in full and 'class="diamond"' in full


def test_step_0_alone_has_a_place_on_a_log_scale():
    scale = nice_scale([0], 58, 407, log=True)
    assert scale(0) == 58 and 0.0 in scale.ticks and 58 < scale(1) < 407
