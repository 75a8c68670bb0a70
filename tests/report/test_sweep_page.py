import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from headdyn.core.numbers import ABSENT
from headdyn.report.blocks import Section
from headdyn.report.page import vega
from headdyn.report.sections.effects import effect_figures, every_outcome, section
from headdyn.report.sections.probes import probe_figures
from headdyn.report.sections.training import loss_figures
from headdyn.report.sweep_page import SECTIONS, write_sweep_page
from headdyn.sweep.effects import effect_name
from headdyn.sweep.record import SweepRecord
from tests.figure_checks import clipped, overlapping, rows
from tests.report.folders import matrix, measured, run, sweep
from tests.sweep.test_effects import selectivity


class Text(HTMLParser):
    """The page's visible text, its links and whatever else it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.addresses: list[str] = []
        self.silent = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.silent += tag in ("script", "style")
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]

    def handle_endtag(self, tag: str) -> None:
        self.silent -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self.silent and data.strip():
            self.parts.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(self.parts)


def page(folder: Path) -> tuple[str, Text]:
    """The page without the script that draws, and its text."""
    html = write_sweep_page(folder).read_text(encoding="utf-8").replace(str(vega()), "")
    return html, Text(html)


def specs(html: str) -> list[dict[str, Any]]:
    """The specifications of the page's figures."""
    inside = re.findall(r'<div class="chart"></div><script type="application/json">(.*?)</script>', html, re.DOTALL)
    return [json.loads(spec) for spec in inside]


def part(read: Text, title: str, until: str) -> str:
    """The text of one section: from its last title (the first is the link to it) to the next one's."""
    return read.text.split(title)[-1].split(until)[0]


def pair(**outcomes: tuple[float, float]) -> list[dict[str, Any]]:
    common = {
        "attention": "mha",
        "position_enc": "rope",
        "seed": 0,
        "runs": {"topic": "mha_topic_rope_s0_laptopcorrected", "shuffled": "mha_shuffled_rope_s0_laptopcorrected"},
        "steps": {"topic": 200, "shuffled": 100},
        "losses_nats": {"topic": 2.61, "shuffled": 2.58},
        "loss_difference": 0.03,
    }
    return [
        {**common, "outcome": name, "topic": measured(t), "shuffled": measured(s), "difference": t - s}
        for name, (t, s) in outcomes.items()
    ]


def test_the_page_needs_nothing_beside_itself(tmp_path: Path) -> None:
    html, read = page(sweep(tmp_path, matrix(tmp_path)))
    outside = [a for a in read.addresses if not a.startswith(("#", "data:")) and not (tmp_path / a).exists()]
    assert outside == []
    assert "default-src 'none'" in html  # the browser itself would refuse to load anything
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp", html)  # Vega could, and is refused


def test_what_was_run_is_told(tmp_path: Path) -> None:
    _, read = page(sweep(tmp_path, matrix(tmp_path)))
    assert "python -m headdyn.run -m x=1,2" in read.text
    assert "8 of 8 runs complete" in read.text
    for fact in ("torch 2.13.0", "0123456789ab", "device cpu", "2026-01-01 00:00:00 UTC", "mode laptop"):
        assert fact in read.text


def test_summary_has_every_number_with_interval_null_and_limits(tmp_path: Path) -> None:
    _, read = page(sweep(tmp_path, [run(tmp_path), run(tmp_path, ordering="topic")]))
    summary = read.text.split("Effects of the factors")[0].split("Summary")[-1]
    for shown in ("2.400 [2.390, 2.410] null 4.00 floor 2.000", "80.0 [79.0, 81.0]", "60.0 [59.0, 61.0] null 50.0"):
        assert shown in summary
    assert "70.0 [69.0, 71.0] null 35.0 ceiling 95.0" in summary
    assert "10.0 [8.0, 12.0]" in summary


def test_a_missing_scalar_is_absent_with_its_reason_and_never_zero(tmp_path: Path) -> None:
    gone = {"selectivity": {"reason": "fewer than two topics occur"}, "gap_closed": None}
    _, read = page(sweep(tmp_path, [run(tmp_path, values=gone), run(tmp_path, seed=1)]))
    summary = read.text.split("Brackets: 95 %")[1].split("Held-out loss of every training")[0]
    assert "absent: fewer than two topics occur" in summary
    assert "absent: the run recorded no gap_closed" in summary
    assert not re.search(r"(?<![\w.])0(\.0+)?(?![\w.])", summary.split("position 0 %")[-1])


def test_a_failed_job_is_listed_with_its_error_and_its_traceback(tmp_path: Path) -> None:
    entries = [run(tmp_path), run(tmp_path, ordering="topic", status="failed")]
    absent = {"name": "never_started", "factors": {**entries[0]["factors"], "seed": 5}}
    html, read = page(sweep(tmp_path, [*entries, absent]))
    assert "1 of 3 runs complete · 1 seed" in read.text and "; 2 not" in read.text
    assert (
        "RuntimeError: the loss is no number <b>" in read.text and "<b> " not in html.split("<h2>Not finished")[1][:400]
    )
    assert "Traceback: line 1" in read.text
    assert "absent. it left no record" in read.text.split("never_started")[1]


def test_a_sweep_without_one_complete_run_still_has_a_page(tmp_path: Path) -> None:
    _, read = page(sweep(tmp_path, [run(tmp_path, status="failed"), run(tmp_path, seed=1, status="running")]))
    assert "0 of 2 runs complete" in read.text
    assert "it was killed, or another process is at work on it" in read.text


def test_matched_pairs_show_both_losses_and_the_difference(tmp_path: Path) -> None:
    entries = [run(tmp_path), run(tmp_path, ordering="topic")]
    _, read = page(sweep(tmp_path, entries, pair(selectivity=(0.12, 0.1), within_ratio=(0.61, 0.6))))
    matched = part(read, "Arms at matched loss", "Training")
    assert "100 / 200 2.580 2.610" in matched
    assert "10.0 [9.0, 11.0] 12.0 [11.0, 13.0] +2.00" in matched
    assert "within-topic attention" in matched and "attention entropy" not in matched  # which no pair has
    assert "topic selectivity +2.00 points" in read.text  # in words
    gqa = [
        {**each, "attention": "gqa", "runs": {"topic": "a", "shuffled": "b"}} for each in pair(selectivity=(0.1, 0.1))
    ]
    pairs = pair(selectivity=(0.12, 0.1), within_ratio=(0.61, 0.6)) + gqa
    (tmp_path / "two").mkdir()
    entries = [run(tmp_path / "two"), run(tmp_path / "two", ordering="topic")]
    _, read = page(sweep(tmp_path / "two", entries, pairs))
    assert "absent: not analysed in both" in part(read, "Arms at matched loss", "Training")


def test_the_glossary_has_every_metric_with_range_and_unit(tmp_path: Path) -> None:
    _, read = page(sweep(tmp_path, [run(tmp_path)]))
    glossary = read.text.split("Glossary")[-1]
    assert "selectivity topic selectivity within_ratio minus its label-swap null −1 … 1 points" in glossary
    assert "loss_nats held-out loss mean next-token loss 0 … nats" in glossary
    assert "The null is the label swap." in glossary and "Raises" not in glossary


def test_it_opens_with_the_answers_the_effects_and_their_table_and_folds_the_rest(tmp_path: Path) -> None:
    entries = matrix(tmp_path, seeds=(0, 1))
    html, _ = page(sweep(tmp_path, entries))
    opened, folded = html.split('<details class="section"', 1)
    assert opened.index("<h2>Answers") < opened.index("Does the order of the data matter?")
    assert (
        opened.index("matter?")
        < opened.index("<h2>Effects on")
        < opened.index('<div class="chart">')
        < opened.index("<th>effect")
    )
    assert opened.count('<div class="chart">') == 1 and folded.count('<div class="chart">') > 10
    links = re.findall(r'<a href="#([\w-]+)">', html.split("</nav>")[0])
    anchors = re.findall(r'<(?:section|details class="section") id="([\w-]+)"', html)
    assert links == anchors and len(set(anchors)) == len(anchors) >= 12


def test_what_would_be_detected_stands_beside_the_effects_not_found_and_no_other(tmp_path: Path) -> None:
    record = SweepRecord.read(sweep(tmp_path, matrix(tmp_path, seeds=(0, 1), selectivity=selectivity)))
    found = {effect_name(row): row["q"] < 0.05 for row in record.effects if row["outcome"] == "selectivity"}
    assert set(found.values()) == {True, False}
    (_, primary), (_, every, *_) = (_blocks(make(record)) for make in (section, every_outcome))
    assert {row[0]: row[4] == ABSENT for row in primary.rows} == found
    assert {row[0]: "detectable" not in str(row[2]) for row in every.rows} == found
    (order,) = [str(row[2]) for row in every.rows if row[0] == "topic order"]
    assert order.endswith("q = 0.74, 150 detectable")


def _blocks(section: Section | None) -> list[Any]:
    """The section's blocks, in one list."""
    assert section is not None
    return [each for block in section.blocks for each in (block if isinstance(block, list) else [block])]


def test_that_one_seed_gives_no_interval_is_said_once(tmp_path: Path) -> None:
    html, _ = page(sweep(tmp_path, matrix(tmp_path)))
    assert html.count("One seed, so no interval can be given") == 1
    assert "One seed" in html.split('<dl class="answers">')[0]
    assert "Topic less shuffled, averaged over the other factors: topic selectivity" in html


def test_every_section_of_the_tuple_has_a_module_of_its_own_folder() -> None:
    names = {make.__module__ for make in SECTIONS}
    assert all(name.startswith("headdyn.report.sections.") for name in names) and len(names) >= 13


def test_figures_hold_the_records_numbers_and_can_hide_runs(tmp_path: Path) -> None:
    entries = [run(tmp_path, ordering=ordering, seed=seed) for ordering in ("shuffled", "topic") for seed in (0, 1)]
    record = SweepRecord.read(sweep(tmp_path, entries))
    (figure,) = loss_figures(record).values()
    curve = [row for row in rows(figure, "series") if row["series"] == "shuffled s0"]
    assert [(row["x"], row["y"]) for row in curve] == record.jobs[0].metrics["val_loss_nats"]
    assert {row["runs"] for row in curve} == {"0"} and {row["look0"] for row in curve} == {"shuffled"}
    assert {row["text"] for row in rows(figure, "level")} == {"random 4", "mixture 3", "floor 2"}
    effects = {row["outcome"]: row for row in record.effects}
    shown = {name: rows(figure, "label")[0] for name, figure in effect_figures(record, list(effects)).items()}
    for outcome, row in effects.items():
        metric = record.metric(outcome)
        drawn = shown[metric.label]
        assert [drawn[name] for name in ("value", "low", "high")] == pytest.approx(
            [metric.scale * row[name] for name in ("value", "ci_low", "ci_high")]
        )
    accuracy = probe_figures(record)["Probe accuracy, RoPE"]
    point = rows(accuracy, "series")[0]
    assert [point[name] for name in ("y", "low", "high")] == pytest.approx([34.0, 32.0, 36.0])
    for name, figure in {
        **loss_figures(record),
        **probe_figures(record),
        **effect_figures(record, list(effects)),
    }.items():
        assert clipped(figure) == overlapping(figure) == [], name


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_figure_of_effects_speaks_of_intervals_where_it_has_some(seeds: int, tmp_path: Path) -> None:
    entries = [run(tmp_path, ordering=name, seed=seed) for name in ("shuffled", "topic") for seed in range(seeds)]
    html, _ = page(sweep(tmp_path, entries))
    assert ("Bars: 95 % interval over 2 seeds." in html) == (seeds == 2)
    assert ("Values of 1 seed: no intervals." in html) == (seeds == 1)


def test_the_filter_knows_every_runs_levels(tmp_path: Path) -> None:
    html, _ = page(sweep(tmp_path, [run(tmp_path), run(tmp_path, position="drope")]))
    levels = json.loads(re.search(r'id="runs">(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]
    assert levels == {"0": {"positions": "RoPE"}, "1": {"positions": "DroPE"}}
    assert re.findall(r'data-factor="(\w+)" value="(\w+)"', html) == [("positions", "RoPE"), ("positions", "DroPE")]
    assert html.count('<tr data-run="0">') >= 2 and 'data-run="0 1"' in html  # a training's row has both arms


def test_groups_of_other_settings_stand_side_by_side(tmp_path: Path) -> None:
    entries = [
        run(tmp_path, ordering=o, mode=mode, settings={"train": {"steps": steps}})
        for mode, steps in (("smoke", 120), ("laptop", 800))
        for o in ("shuffled", "topic")
    ]
    folder = sweep(tmp_path, entries, swept=["data_ordering"])  # as merged of two commands
    assert list(SweepRecord.read(folder).groups) == ["smoke", "laptop"]
    html, read = page(folder)
    assert "smoke: mode=smoke, train.steps=120" in read.text
    assert '"Held-out loss (laptop)"' in json.dumps(specs(html))


def test_a_lone_run_needs_no_filter_and_no_effects(tmp_path: Path) -> None:
    html, read = page(sweep(tmp_path, [run(tmp_path)]))
    assert 'id="filter"' not in html and "Effects" not in read.text.split("Glossary")[0]


def test_what_no_run_recorded_has_no_column(tmp_path: Path) -> None:
    gone = dict.fromkeys(("gap_closed", "probe_accuracy_middle"))
    _, read = page(sweep(tmp_path, [run(tmp_path, values=gone)]))
    summary = read.text.split("Brackets: 95 %")[1].split("Held-out loss of every training")[0]
    assert "topic selectivity" in summary
    assert "gap closed" not in summary and "probe accuracy" not in summary and "absent" not in summary
