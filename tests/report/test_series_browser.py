"""The page of a series in a real browser, opened from disk with the network off."""

import math
from collections.abc import Iterator

import pytest

from headdyn.report.sweep_page import write_sweep_page
from tests.report.browser import Chromium
from tests.report.series_folders import STEPS, emerging

SHOWN = "[...document.querySelectorAll('#summary-table tbody tr')].filter((r) => r.offsetParent).length"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    page = write_sweep_page(emerging(tmp_path_factory.mktemp("sweep")))
    with Chromium(tmp_path_factory.mktemp("profile")) as chromium:
        chromium.open(page)
        yield chromium


def test_it_opens_without_an_error(opened: Chromium) -> None:
    fetched = [url for url in opened.requests if not url.startswith("data:")]  # those are inside the page
    assert opened.errors == [] and len(fetched) == 1


def test_the_filter_hides_a_checkpoint(opened: Chromium) -> None:
    assert opened.run(SHOWN) == 4
    opened.click("#filter input[value='step32000']")
    assert opened.run(SHOWN) == 3
    opened.click("#filter input[value='step32000']")


def test_a_head_opens_with_its_course_and_without_patterns(opened: Chromium) -> None:
    opened.click("g.cell[data-head='0 1 2']")
    drawer = opened.run("document.getElementById('drawer').textContent")
    assert "Layer 1, head 2" in drawer and "Course over training" in drawer and "effect_nats" in drawer
    assert "patterns" not in drawer.lower()
    # A circle a checkpoint, for the head that was asked for.
    assert opened.run("document.querySelectorAll('#drawer svg circle').length") == 4
    # Steps 1000 to 143 000 on a log axis: 32 000 stands where log 32/log 143 of the way is.
    x = opened.run("[...document.querySelectorAll('#drawer svg circle')].map((c) => Number(c.getAttribute('cx')))")
    shares = [(at - x[0]) / (x[-1] - x[0]) for at in x]
    assert shares == pytest.approx([math.log(step / STEPS[0]) / math.log(STEPS[-1] / STEPS[0]) for step in STEPS])
    ticks = opened.run("[...document.querySelectorAll('#drawer svg .tick.x')].map((t) => t.textContent)")
    assert ticks == ["1 000", "10 000", "100 000"]
    assert opened.errors == []
