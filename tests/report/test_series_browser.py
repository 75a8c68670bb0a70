"""The page of a series in a real browser, opened from disk with the network off."""

from collections.abc import Iterator

import pytest

from headdyn.report.sweep_page import write_sweep_page
from tests.report.browser import Chromium
from tests.report.series_folders import emerging

SHOWN = "[...document.querySelectorAll('#summary-table tbody tr')].filter((r) => r.offsetParent).length"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    page = write_sweep_page(emerging(tmp_path_factory.mktemp("sweep")))
    with Chromium(tmp_path_factory.mktemp("profile")) as chromium:
        chromium.open(page)
        yield chromium


def test_it_opens_without_an_error(opened: Chromium) -> None:
    assert opened.errors == [] and len(opened.requests) == 1


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
    assert opened.errors == []
