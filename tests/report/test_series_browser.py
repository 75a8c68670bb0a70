"""The page of a series in a real browser, opened from disk with the network off."""

from collections.abc import Iterator

import pytest

from headdyn.report.sweep_page import write_sweep_page
from tests.report.browser import Chromium
from tests.report.series_folders import STEPS, emerging
from tests.report.test_browser import DRAWN, EXPLORER, mouse, place, rows_of, unfold

SHOWN = "[...document.querySelectorAll('#summary tbody tr')].filter((r) => r.offsetParent).length"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    page = write_sweep_page(emerging(tmp_path_factory.mktemp("sweep")))
    with Chromium(tmp_path_factory.mktemp("profile"), width=1280, height=2000) as chromium:
        chromium.open(page)
        yield chromium


def test_it_opens_without_an_error_and_draws_everything(opened: Chromium) -> None:
    fetched = [url for url in opened.requests if not url.startswith("data:")]  # those are inside the page
    assert opened.errors == [] and len(fetched) == 1
    assert opened.run(DRAWN) >= 1  # the main picture is open
    opened.run("document.querySelectorAll('details.section').forEach((part) => (part.open = true))")
    opened.until(f"{DRAWN} === document.querySelectorAll('.chart').length")
    assert opened.errors == []


def test_the_filter_hides_a_checkpoint(opened: Chromium) -> None:
    opened.click("nav a[href='#summary']")
    assert opened.run(SHOWN) == 4
    opened.click("#filter input[value='step32000']")
    assert opened.run(SHOWN) == 3
    opened.click("#filter input[value='step32000']")


def test_a_head_opens_with_its_course_and_without_patterns(opened: Chromium) -> None:
    unfold(opened, "heads")
    mouse(opened, place(opened, run="0", layer=1, head=2), "mouseMoved", "mousePressed", "mouseReleased")
    opened.until(f"{EXPLORER}.signal('pick').head[0] === 2")
    assert opened.run("document.querySelectorAll('#heads select[name=sequence]').length") == 0
    # A mark a checkpoint, for the head that was picked.
    marks = [row for row in rows_of(opened, "symbol") if row["layer"] == 1]
    assert [row["step"] for row in marks] == list(STEPS) and {row["head"] for row in marks} == {2}
    numbers = [row["metric"] for row in rows_of(opened, "text") if row["label"] == "step1000" and row.get("text")]
    assert "effect nats" in numbers and opened.errors == []
