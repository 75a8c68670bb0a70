"""The sweep page in a real browser, opened from disk with the network off."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from headdyn.core.numbers import p_value, spelled
from headdyn.report.sweep_page import write_sweep_page
from tests.report.browser import Chromium, require_chromium
from tests.report.folders import heads, matrix, sweep

LAYERS, HEADS, LENGTH = 4, 4, 128  # as in mode=laptop
MOST_MILLISECONDS = 2_000
SHOWN = "[...document.querySelectorAll('#summary-table tbody tr')].filter((r) => r.offsetParent).map((r) => r.cells[0].textContent)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of 8 runs at the laptop mode's size, one of them with an analysed snapshot."""
    folder = tmp_path_factory.mktemp("sweep")
    selectivity_LH = np.arange(LAYERS * HEADS).reshape(LAYERS, HEADS) / 100
    entries = matrix(folder, selectivity_LH=selectivity_LH, length=LENGTH)
    heads(selectivity_LH / 2).write(folder / entries[0]["name"] / "heads_step000100.parquet")
    return write_sweep_page(sweep(folder, entries))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


@pytest.fixture
def opened(browser: Chromium, page: Path) -> Chromium:
    browser.open(page)
    return browser


def test_it_opens_in_two_seconds_and_asks_for_nothing_else(browser: Chromium, page: Path) -> None:
    browser.requests.clear()
    # The best of three, since other work on the machine only ever adds. Measured 0.5 to 0.7 s on two busy cores.
    assert min(browser.open(page) for _ in range(3)) < MOST_MILLISECONDS
    assert set(browser.requests) == {page.as_uri()}
    assert browser.errors == []


def test_the_page_is_small(page: Path) -> None:
    assert page.stat().st_size < 15e6


def test_the_patterns_of_telling_heads_are_drawn(opened: Chromium) -> None:
    count = opened.run("document.querySelectorAll('canvas[data-pattern]').length")
    drawn = opened.run("[...document.querySelectorAll('canvas[data-pattern]')].filter((c) => c.reading).length")
    assert count == drawn == 8  # the most selective head of four trainings, with RoPE and after DroPE
    colours = opened.run(
        "(() => { const c = document.querySelector('canvas[data-pattern]'); const d = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data; const s = new Set();"
        "for (let i = 0; i < d.length; i += 4) s.add(d[i] + ',' + d[i + 1] + ',' + d[i + 2]); return s.size; })()"
    )
    assert colours > 20


def test_the_filter_hides_runs_everywhere(opened: Chromium) -> None:
    assert len(opened.run(SHOWN)) == 8
    opened.click("#filter input[value='topic']")
    opened.click("#filter input[value='drope']")
    assert opened.run(SHOWN) == ["MHA shuffled RoPE", "GQA shuffled RoPE"]
    assert opened.run("document.querySelector('#shown').textContent") == "2 of 8"
    maps = "[...document.querySelectorAll('.maps')].map((m) => [...m.children].filter((f) => f.offsetParent).length)"
    assert opened.run(maps) == [2, 2, 2]
    # A training's curve stays while any of its arms is shown: those of shuffled order do.
    curves = (
        "[...document.querySelectorAll('#training ~ .charts')][0].querySelectorAll('g[data-run]:not(.hidden)').length"
    )
    assert opened.run(curves) == 2
    opened.click("#filter button[type='reset']")
    opened.until("document.querySelector('#shown').textContent === '8 of 8'")
    assert len(opened.run(SHOWN)) == 8


def test_a_click_on_a_head_shows_its_patterns_statistics_and_course(opened: Chromium) -> None:
    hidden = "document.querySelector('#drawer').classList.contains('hidden')"
    assert opened.run(hidden)
    opened.click("g.cell[data-head='0 2 1']")
    text = opened.run("document.querySelector('#drawer').innerText")
    assert "Layer 2, head 1" in text and "MHA shuffled RoPE" in text
    # Selectivity is (2 · 4 + 1)/100; after DroPE the same head of the same training stands beside it.
    row = "[...document.querySelectorAll('#drawer tbody tr')].find((r) => r.cells[0].textContent.startsWith('selectivity'))"
    assert opened.run(f"[...{row}.cells].map((c) => c.textContent)") == [
        "selectivity",
        "0.090 [0.080, 0.100]",
        "0",
        "q 0.001",
        "0.090",
    ]
    # Without an interval four significant digits, with the unit of the analysis.
    row = row.replace("selectivity", "entropy_nats")
    assert opened.run(f"[...{row}.cells].map((c) => c.textContent)") == [
        "entropy_nats nats",
        "1.910",
        "3.000",
        "",
        "1.910",
    ]
    row = row.replace("entropy_nats", "selectivity")
    assert opened.run(f"{row}.cells[0].title") == "within_ratio minus its label-swap null"
    opened.until("[...document.querySelectorAll('#drawer canvas')].every((c) => c.reading)")
    assert opened.run("[...document.querySelectorAll('#drawer figcaption')].map((c) => c.textContent)") == [
        "MHA shuffled RoPE",
        "MHA shuffled DroPE",
    ]
    # Half as selective at step 100 as at 200.
    assert opened.run("[...document.querySelectorAll('#drawer circle title')].map((t) => t.textContent)") == [
        "step 100: 0.045 [0.035, 0.055]",
        "step 200: 0.090 [0.080, 0.100]",
    ]
    assert opened.run("document.querySelectorAll('#drawer svg .band, #drawer svg .reference').length") == 2
    ticks = opened.run("[...document.querySelectorAll('#drawer svg .tick.y')].map((t) => t.textContent)")
    assert ticks == ["0.000", "0.025", "0.050", "0.075", "0.100"]  # the layer's largest head has 0.11
    opened.call("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    assert opened.run(hidden)


def test_every_arm_shows_the_course_of_its_training(opened: Chromium) -> None:
    opened.click("g.cell[data-head='1 2 1']")  # DroPE of the training whose snapshot the RoPE arm analysed
    text = opened.run("document.querySelector('#drawer').innerText")
    assert "MHA shuffled DroPE" in text and "Of the training that this run began with" in text
    assert opened.run("[...document.querySelectorAll('#drawer circle title')].map((t) => t.textContent)") == [
        "step 100: 0.045 [0.035, 0.055]",
        "step 200: 0.090 [0.080, 0.100]",
    ]


def test_a_head_of_a_training_without_analysed_snapshots_says_so(opened: Chromium) -> None:
    opened.click("g.cell[data-head='2 0 0']")
    assert "No snapshots of this training were analysed" in opened.run("document.querySelector('#drawer').innerText")


NUMBERS: list[dict[str, float | None]] = [
    {"value": 0.09, "ci_low": 0.08, "ci_high": 0.1},
    {"value": -0.00087, "ci_low": -0.0012, "ci_high": -0.0005},
    {"value": 12.3456, "ci_low": 11.9, "ci_high": 12.9},
    {"value": 2345.6, "ci_low": 2200.0, "ci_high": 2500.0},
    {"value": -0.00001, "ci_low": -0.1, "ci_high": 0.1},
    {"value": 0.5, "ci_low": 0.5, "ci_high": 0.5},
    {"value": 0.00087, "ci_low": None, "ci_high": None},
    {"value": 0.0, "ci_low": None, "ci_high": None},
    {"value": 7.0, "ci_low": None, "ci_high": None},
]


@pytest.mark.parametrize("scalar", NUMBERS, ids=str)
def test_the_script_writes_numbers_as_the_tables_do(opened: Chromium, scalar: dict[str, float | None]) -> None:
    columns = json.dumps({name: [[value]] for name, value in scalar.items()})
    value, interval, none, test = opened.run(f"spelled({columns}, 0, 0)")
    assert f"{value} {interval}".strip() == spelled(scalar)
    assert none == test == ""


@pytest.mark.parametrize("p", [0.0004, 0.001, 0.0321, 0.0995, 0.2, 1.0])
def test_the_script_writes_p_as_the_tables_do(opened: Chromium, p: float) -> None:
    assert opened.run(f"pValue({p})") == p_value(p)
    assert opened.run(f"spelled({{value: [[1]], p: [[{p}]]}}, 0, 0)[3]") == f"p {p_value(p)}"
    assert opened.run(f"spelled({{value: [[1]], p: [[0.5]], q: [[{p}]]}}, 0, 0)[3]") == f"q {p_value(p)}"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 0.00087, ["0.0000", "0.0002", "0.0004", "0.0006", "0.0008"]),
        (-0.3, 0.2, ["−0.2", "0.0", "0.2"]),
        (0, 9.4, ["0", "2", "4", "6", "8"]),
        (0, 10.6, ["0.0", "2.5", "5.0", "7.5", "10.0"]),
        (0, 1400, ["0", "500", "1000"]),
    ],
)
def test_ticks_are_round_and_plainly_written(opened: Chromium, low: float, high: float, expected: list[str]) -> None:
    script = f"(() => {{ const [ticks, places] = niceTicks({low}, {high}, 4); return ticks.map((t) => fixed(t, places)); }})()"
    assert opened.run(script) == expected


def test_heads_open_from_the_keyboard(opened: Chromium) -> None:
    opened.run("document.querySelector(\"g.cell[data-head='1 3 3']\").focus()")
    opened.call("Input.dispatchKeyEvent", type="keyDown", key="Enter")
    assert "Layer 3, head 3" in opened.run("document.querySelector('#drawer').innerText")


def test_pointing_at_a_pattern_tells_tokens_topics_and_weight(opened: Chromium) -> None:
    opened.point("canvas[data-pattern]", right=0.3, down=0.7)
    tip = opened.run("document.querySelector('#tip').textContent")
    assert "query " in tip and "token " in tip and "weight " in tip
    # Queries in the lower half are of the second topic, keys on the left of the first.
    assert "trains" in tip.splitlines()[0] and "rivers" in tip.splitlines()[1] and "other topic" in tip
    opened.point("canvas[data-pattern]", right=0.9, down=0.2)  # above the diagonal there is nothing to tell
    assert opened.run("document.querySelector('#tip').classList.contains('hidden')")


def test_the_weight_that_is_told_is_the_weight_that_was_stored(opened: Chromium, page: Path) -> None:
    run, layer, head = opened.run("document.querySelector('canvas[data-pattern]').dataset.pattern").split()
    (folder,) = page.parent.glob("mha_shuffled_rope_*")
    assert run == "0"
    stored = load_file(folder / "patterns.safetensors")[f"pattern.{layer}"][0, int(head)].astype(float)
    for right, down in ((0.3, 0.7), (0.5, 0.6), (0.16, 0.88)):
        opened.point("canvas[data-pattern]", right=right, down=down)
        tip = opened.run("document.querySelector('#tip').textContent")
        query, key, weight = (float(re.search(f"{name} ([-.e0-9]+)", tip)[1]) for name in ("query", "key", "weight"))  # type: ignore[index]
        true = stored[int(query), int(key)]
        # A byte's step at this weight, and the two digits that are shown.
        assert weight == pytest.approx(true, abs=0.004 * true**0.5 + 1e-5, rel=0.05)


def test_without_a_browser_it_fails_where_it_must_and_skips_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("HEADDYN_REQUIRE_CHROMIUM", "1")
    with pytest.raises(pytest.fail.Exception, match="HEADDYN_REQUIRE_CHROMIUM=1, but no chromium"):
        require_chromium()
    monkeypatch.delenv("HEADDYN_REQUIRE_CHROMIUM")
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        require_chromium()
