"""Blocks of pages: what stands in a table is the same number in HTML and in Markdown, and text is never taken as HTML."""

import json
import re
from pathlib import Path

import pytest
from markupsafe import Markup

from headdyn.core.figures import Curve, curves
from headdyn.core.records import Metric
from headdyn.report.blocks import Cell, Heading, Section, Table, cell, html

SHARE = Metric(meaning="", label="selectivity", unit="points", scale=100, digits=2)
SCALAR = {"value": 0.412, "ci_low": 0.405, "ci_high": 0.419, "null": 0.25}


def test_a_scalar_is_written_with_as_many_digits_as_its_interval_supports() -> None:
    # Half the interval is 0.7 points, of which one digit is kept; as recorded it is 0.007.
    parts = cell(SCALAR, SHARE)
    assert (parts.value, parts.interval, parts.half_width, parts.null) == ("41.2", "[40.5, 41.9]", "±0.7", "null 25.0")
    parts = cell(SCALAR)
    assert (parts.value, parts.interval, parts.half_width, parts.null) == (
        "0.412",
        "[0.405, 0.419]",
        "±0.007",
        "null 0.250",
    )


def test_a_number_without_an_interval_has_its_metrics_digits_and_an_integer_its_thousands_apart() -> None:
    assert cell({"value": 0.0312, "null": 0.01}, SHARE) == Cell("3.12", null="null 1.00")
    assert cell({"value": 25_600}).value == "25 600" and cell({"value": "topic 0"}).value == "topic 0"
    assert cell({"value": 0.5, "null": 0}, SHARE).null == "" and cell({"value": 0.5, "null": 0}).null == "null 0"


def test_what_is_absent_has_its_reason_and_no_number() -> None:
    absent = cell({"value": None, "reason": "one topic only"}, SHARE)
    assert absent == Cell(reason="one topic only") and str(absent) == "absent: one topic only"
    assert html(Table(columns=["x"], rows=[[absent]])).striptags() == "x absent: one topic only"


def test_a_table_says_the_same_in_html_and_in_markdown() -> None:
    table = Table(
        columns=["run", "loss\nnats"], rows=[["a|b", cell(SCALAR)], ["c", Cell("2", note="floor 1")]], runs=[3, ""]
    )
    words = re.sub("<[^>]+>", " ", table.html()).split()
    assert " ".join(words) == "run loss nats a|b 0.412 [0.405, 0.419] null 0.250 c 2 floor 1"
    assert re.findall(r"<tr( data-run=\"3\")?>", table.html()) == ["", ' data-run="3"', ""]  # the head, and two rows
    assert table.markdown().splitlines() == [
        "| run | loss (nats) |",
        "| --- | --- |",
        r"| a\|b | 0.412 [0.405, 0.419]; null 0.250 |",
        "| c | 2; floor 1 |",
    ]


@pytest.mark.parametrize("block", ["<b>x</b>", Heading("<b>x</b>"), Table(columns=["<b>x</b>"], rows=[["<b>x</b>"]])])
def test_text_is_escaped_and_markup_is_not(block: object) -> None:
    assert "<b>x</b>" not in html(block) and "&lt;b&gt;x&lt;/b&gt;" in html(block)
    assert html(Markup("<b>x</b>")) == "<b>x</b>"


def test_a_figure_is_the_same_drawn_stored_or_as_its_specification(tmp_path: Path) -> None:
    figure = curves([Curve(label="</script>", x=[0, 1], y=[1, 2])], xlabel="x", ylabel="y", caption="A line.")
    figure.save(tmp_path / "figure.json")
    markup = html(figure)
    assert markup == html(tmp_path / "figure.json") == html(figure.spec())
    assert markup.count("</script>") == 1 and "<figcaption>A line.</figcaption>" in markup
    spec = json.loads(re.findall(r"json\">(.*?)</script>", markup)[0])
    assert spec["datasets"] == figure.spec()["datasets"] and "config" not in spec  # which the page has once
    assert html([figure, figure]) == f'<div class="charts">{markup}\n{markup}</div>\n'


def test_a_section_leaves_out_what_is_none_and_its_markdown_has_texts_and_tables() -> None:
    figure = curves([Curve(label="a", x=[0], y=[1])], xlabel="x", ylabel="y")
    section = Section(
        "a", "A", [Heading(""), None, "Why.", Heading("One"), Table(columns=["x"], rows=[["1"]]), figure, []]
    )
    assert section.markdown() == "Why.\n\n## One\n\n| x |\n| --- |\n| 1 |\n"
    assert section.html.count("<h3>") == 1 and section.html.count("<figure>") == 1
    assert Section("a", "A", Markup("<p>x</p>")).html == "<p>x</p>"
