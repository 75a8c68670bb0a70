"""The pages in a real browser, opened from disk with the network off."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from headdyn.core.figures import Curve, curves
from headdyn.report.run_page import write_run_page
from headdyn.report.sweep_page import write_sweep_page
from tests.report.browser import Chromium, require_chromium
from tests.report.folders import heads, matrix, sweep

LAYERS, HEADS, LENGTH = 4, 4, 128  # as in mode=laptop
MOST_MILLISECONDS = 4_000
SHOWN = "[...document.querySelectorAll('#summary tbody tr')].filter((r) => r.offsetParent).map((r) => r.cells[0].textContent)"
DRAWN = "[...document.querySelectorAll('.chart')].filter((c) => c.view && c.querySelector('canvas, svg')).length"
EXPLORER = "document.querySelector('#heads .chart').view"


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
    with Chromium(tmp_path_factory.mktemp("profile"), width=1280, height=2000) as chromium:
        yield chromium


@pytest.fixture
def opened(browser: Chromium, page: Path) -> Chromium:
    browser.open(page)
    return browser


def unfold(opened: Chromium, anchor: str) -> None:
    """Follow the link to a section and wait until its figures are drawn."""
    opened.click(f"nav a[href='#{anchor}']")
    charts = f"[...document.querySelectorAll('#{anchor} .chart')]"
    opened.until(f"{charts}.every((c) => c.view)")


def place(opened: Chromium, **datum: Any) -> list[float]:
    """Where the drawn item of these data is in the window; the heads' figure is scrolled into view."""
    return opened.run(
        f"""(() => {{
          const asked = {json.dumps(datum)}, chart = document.querySelector('#heads .chart');
          chart.scrollIntoView();
          const canvas = chart.querySelector('canvas').getBoundingClientRect(), origin = chart.view.origin();
          const matches = (item) => item.datum && item.mark.marktype === 'rect' &&
            Object.entries(asked).every(([name, value]) => item.datum[name] === value);
          const search = (mark, x, y) => {{
            for (const item of mark.items ?? []) {{
              if (matches(item)) return [(item.bounds.x1 + item.bounds.x2) / 2 + x, (item.bounds.y1 + item.bounds.y2) / 2 + y];
              for (const inner of item.items ?? []) {{
                const found = search(inner, x + (item.x ?? 0), y + (item.y ?? 0));
                if (found) return found;
              }}
            }}
          }};
          const [x, y] = search(chart.view.scenegraph().root, 0, 0);
          const padding = chart.view.padding();
          return [canvas.x + padding.left + origin[0] + x, canvas.y + padding.top + origin[1] + y];
        }})()"""
    )


def mouse(opened: Chromium, at: list[float], *kinds: str) -> None:
    for kind in kinds:
        button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        opened.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], **button)


def tip(opened: Chromium, **datum: Any) -> dict[str, str]:
    """What stands beside the mouse where it points at the drawn item of these data."""
    x, y = place(opened, **datum)
    mouse(opened, [x - 1, y], "mouseMoved")
    mouse(opened, [x, y], "mouseMoved")
    opened.until("document.querySelector('#vg-tooltip-element.visible') !== null")
    cells = "[...document.querySelectorAll('#vg-tooltip-element td')].map((c) => c.textContent)"
    texts = opened.run(cells)
    return dict(zip(texts[::2], texts[1::2], strict=True))


def rows_of(opened: Chromium, mark: str) -> list[dict[str, Any]]:
    """The data of the drawn texts or lines of the heads' figure, in order."""
    return opened.run(
        f"""(() => {{
          const found = [];
          const search = (mark) => (mark.items ?? []).forEach((item) => {{
            if (mark.marktype === {json.dumps(mark)} && item.datum?.metric && item.text !== '')
              found.push(Object.fromEntries(Object.entries(item.datum).filter(([, v]) => typeof v !== 'object' || v === null)));
            (item.items ?? []).forEach(search);
          }});
          search({EXPLORER}.scenegraph().root);
          return found;
        }})()"""
    )


def test_it_opens_quickly_and_asks_for_nothing_else(browser: Chromium, page: Path) -> None:
    browser.requests.clear()
    # The best of three, since other work on the machine only ever adds. Measured 0.7 to 1.2 s on two busy cores.
    assert min(browser.open(page) for _ in range(3)) < MOST_MILLISECONDS
    assert {url for url in browser.requests if not url.startswith("data:")} == {page.as_uri()}
    assert browser.errors == []


def test_the_page_is_small(page: Path) -> None:
    assert page.stat().st_size < 15e6


def test_a_figure_is_drawn_when_its_fold_opens_and_all_are_in_the_end(opened: Chromium) -> None:
    open_ones = "document.querySelectorAll('section .chart').length"
    assert opened.run(DRAWN) == opened.run(open_ones) == 1  # the effects on the primary outcome
    unfold(opened, "training")
    assert opened.run(DRAWN) == 2
    opened.run("document.querySelectorAll('details.section').forEach((part) => (part.open = true))")
    opened.until(f"{DRAWN} === document.querySelectorAll('.chart').length")
    assert opened.run(DRAWN) >= 15 and opened.errors == []
    marks = "[...document.querySelectorAll('.chart-wrapper > svg')].every((s) => s.querySelectorAll('path, image, text').length > 10)"
    assert opened.run(marks)


def test_the_check_of_drawing_sees_a_figure_that_cannot_be_drawn(browser: Chromium, tmp_path: Path, page: Path) -> None:
    broken = tmp_path / "broken.html"
    html = page.read_text(encoding="utf-8")
    broken.write_text(html.replace('"mark": {"type": "rule"', '"mark": {"type": "no_such_mark"', 1), encoding="utf-8")
    browser.errors.clear()
    browser.open(broken)
    assert browser.run(DRAWN) == 0 and browser.errors
    browser.errors.clear()


def test_the_filter_hides_runs_in_tables_and_figures(opened: Chromium) -> None:
    unfold(opened, "training")
    unfold(opened, "heads")
    opened.click("nav a[href='#summary']")
    assert len(opened.run(SHOWN)) == 8
    opened.click("#filter input[value='topic']")
    opened.click("#filter input[value='DroPE']")
    opened.until("document.querySelector('#shown').textContent === '2 of 8'")
    assert opened.run(SHOWN) == ["MHA shuffled RoPE", "GQA shuffled RoPE"]
    # A training's curve stays while any of its arms is shown: those of shuffled order do.
    lines = "document.querySelectorAll('#training .chart .mark-line.role-mark path').length"
    opened.until(f"{lines} === 2")
    assert {row["label"] for row in rows_of(opened, "rect")} == {"MHA shuffled RoPE", "GQA shuffled RoPE"}
    opened.click("#filter button[type='reset']")
    opened.until("document.querySelector('#shown').textContent === '8 of 8'")
    opened.until(f"{lines} === 4")
    assert len(opened.run(SHOWN)) == 8


def test_a_click_on_a_head_shows_its_numbers_in_every_arm_its_course_and_its_patterns(opened: Chromium) -> None:
    unfold(opened, "heads")
    mouse(opened, place(opened, run="0", layer=2, head=1), "mouseMoved", "mousePressed", "mouseReleased")
    opened.until(f"{EXPLORER}.signal('pick').layer[0] === 2 && {EXPLORER}.signal('pick').head[0] === 1")
    numbers = [row for row in rows_of(opened, "text") if "[" in str(row.get("text")) or row["metric"].startswith("att")]
    # Selectivity is (2 · 4 + 1)/100; after DroPE the same head of the same training stands beside it.
    selective = {row["label"]: row["text"] for row in numbers if row["metric"] == "topic selectivity (points)"}
    assert selective == dict.fromkeys(("MHA shuffled RoPE", "MHA shuffled DroPE"), "9 [8, 10]  q 0.001")
    (entropy, _) = [row for row in numbers if row["metric"] == "attention entropy (nats)" and row["text"] == "1.91"]
    assert entropy["null"] == 3.0 and entropy["low"] is None
    # Half as selective at step 100 as at 200.
    own = [row for row in rows_of(opened, "symbol") if row["head"] == 1]
    assert [(row["step"], row["value"], row["low"], row["high"]) for row in own] == [
        (100, 4.5, 3.5, 5.5),
        (200, 9, 8, 10),
    ]
    assert tip(opened, run="0", layer=2, head=1)["value"] == "9"
    weights = opened.run(f"{EXPLORER}.data('patterns').length")
    assert weights == 8 * LAYERS * HEADS * 2  # runs, heads, sequences


def test_another_metric_colours_the_maps(opened: Chromium) -> None:
    unfold(opened, "heads")
    opened.run(f"{EXPLORER}.signal('metric', 'attention entropy (nats)').runAsync().then(() => true)")
    cells = [row for row in rows_of(opened, "rect") if row["run"] == "0"]
    assert {row["metric"] for row in cells} == {"attention entropy (nats)"} and len(cells) >= LAYERS * HEADS
    assert max(row["value"] for row in cells) == 2.0


def test_pointing_at_a_pattern_tells_tokens_topics_and_the_weight_that_was_stored(opened: Chromium, page: Path) -> None:
    unfold(opened, "heads")
    layer, head = (opened.run(f"{EXPLORER}.signal('pick').{name}[0]") for name in ("layer", "head"))
    (folder,) = page.parent.glob("mha_shuffled_rope_*")
    stored = load_file(folder / "patterns.safetensors")
    weight_QK = stored[f"pattern.{layer}"][0, head].astype(float)
    for asked in ((100, 20), (90, int(np.argmax(weight_QK[90]))), (70, int(np.argmax(weight_QK[70, :60])))):
        text = tip(opened, run="0", query=asked[0], key=asked[1])
        query, key = int(text["query"]), int(text["key"])
        assert abs(query - asked[0]) < 4 and abs(key - asked[1]) < 4  # cells are two pixels wide
        assert int(text["query_token"]) == stored["tokens"][0, query]
        assert int(text["key_token"]) == stored["tokens"][0, key]
        # Queries in the lower half are of the second topic.
        assert (text["query_topic"], text["key_topic"]) == ("trains", "trains" if key >= 64 else "rivers")
        true = weight_QK[query, key]
        # A byte's step at this weight, and the three digits that are shown.
        assert float(text["weight"]) == pytest.approx(true, abs=0.004 * true**0.5 + 1e-5, rel=0.005)


def test_a_runs_page_draws_its_stored_figures(browser: Chromium, page: Path) -> None:
    folder = next(page.parent.glob("mha_shuffled_drope_*"))
    line = curves(
        [Curve(label="a </script>", x=[1, 2], y=[3, 4])], xlabel="x", ylabel="y", caption="What chance gives."
    )
    line.save(folder / "figures" / "attention_x.json")
    run_page = write_run_page(folder)
    browser.errors.clear()
    browser.open(run_page)
    browser.run("document.querySelectorAll('details.section').forEach((part) => (part.open = true))")
    browser.until(f"{DRAWN} === document.querySelectorAll('.chart').length")
    assert browser.run(DRAWN) >= 4 and browser.errors == []
    assert "What chance gives." in browser.run("document.querySelector('#figures-attention').innerText")
    labels = browser.run("[...document.querySelectorAll('#figures-attention .chart text')].map((t) => t.textContent)")
    assert "a </script>" in labels


def test_folds_open_for_print_and_for_a_link_from_elsewhere(browser: Chromium, page: Path) -> None:
    browser.call("Page.navigate", url="about:blank")
    browser.call("Page.navigate", url=page.resolve().as_uri() + "#quality")
    browser.until("document.documentElement?.dataset.ready === 'yes'")
    assert browser.run("[...document.querySelectorAll('details.section')].filter((d) => d.open).map((d) => d.id)") == [
        "quality"
    ]
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.run("[...document.querySelectorAll('details:not(.vega-embed details)')].every((d) => d.open)")


def test_the_command_is_copied(opened: Chromium) -> None:
    opened.run("navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }")
    opened.click("button[data-copy='command']")
    opened.until("window.copied !== undefined")
    assert opened.run("window.copied") == "python -m headdyn.run -m x=1,2"


def test_the_script_draws_nothing() -> None:
    script = (Path(write_sweep_page.__code__.co_filename).parent / "templates" / "report.js").read_text(
        encoding="utf-8"
    )
    assert not re.search(r"createElement|canvas|getContext|<svg|innerHTML|setAttribute\(.d", script)
    assert len(script.splitlines()) < 80


def test_without_a_browser_it_fails_where_it_must_and_skips_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("HEADDYN_REQUIRE_CHROMIUM", "1")
    with pytest.raises(pytest.fail.Exception, match="HEADDYN_REQUIRE_CHROMIUM=1, but no chromium"):
        require_chromium()
    monkeypatch.delenv("HEADDYN_REQUIRE_CHROMIUM")
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        require_chromium()
