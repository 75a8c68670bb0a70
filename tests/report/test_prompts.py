import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headdyn.report.run_page import write_run_page
from headdyn.report.sections import prompts
from headdyn.sweep.record import SweepRecord, single_job
from tests.figure_checks import rows, texts
from tests.report.series_folders import run, scalars
from tests.report.test_sweep_page import Text

ORDER = {
    "answers_changed": 0.0,
    "texts_changed": 0.0,
    "answers_changed_from_first_dtype": 0.125,
    "repetition": 0.5,
}


def folder(root: Path, **settings: Any) -> Path:
    values = settings.pop("values", scalars(1.0, 0.25, 4.0))
    return root / run(root, 143_000, values, **settings)["name"]


def orders(path: Path, change: float, control: float) -> None:
    rows = [
        {"dtype": "float64", "order": "swap", "logit_change": change, **ORDER},
        {"dtype": "float64", "order": "mismatched", "logit_change": control, **ORDER},
    ]
    pq.write_table(pa.Table.from_pylist(rows), path / "orders.parquet")


def alone(path: Path) -> SweepRecord:
    return SweepRecord.of(single_job(path))


def in_words(path: Path) -> list[str]:
    return [sentence for statement in prompts.statements(single_job(path)) for sentence in statement.sentences]


def test_a_run_says_what_was_found(tmp_path: Path) -> None:
    first, second, *rest = in_words(folder(tmp_path))
    assert "Strength +0.75 [+0.62, +0.88] (strong)" in first
    assert "does not stand out among the 6 balanced splits" in first and "p = 0.33, rank 1" in first
    assert "Right answers of 32 bug pairs: nothing patched 25 [12, 38] %, even heads patched 100 [88, 112] %" in second
    assert rest == ["On 16 control pairs, which the bug does not touch, strength of Δ is +0.50 [+0.38, +0.62] nats."]


def test_reordering_heads_is_an_identity_or_said_not_to_be(tmp_path: Path) -> None:
    path = folder(tmp_path)
    orders(path, 1e-15, 2.0)
    (said,) = [text for text in in_words(path) if "Reordering" in text]
    assert "is an identity in float64" in said and "the control, it is 2" in said
    orders(path, 1e-3, 2.0)
    (said,) = [text for text in in_words(path) if "Reordering" in text]
    assert "is NOT an identity in float64" in said
    section = prompts.orders(alone(path))
    assert section is not None and prompts.groups(alone(path)) is None
    assert "<td>float64</td><td>mismatched (control: must differ)</td><td>2</td>" in section.html


def scanned(root: Path, p: float, adds: dict[str, float], **settings: Any) -> Path:
    """A run whose scan has this p, and whose best group, heads 0 and 3, adds so many nats."""
    found = {"scan_maximum": {"value": 4.0, "p": p, "n": 9, "unit": "pair"}}
    found["best_group_nats"] = {**adds, "n": 9, "unit": "pair"}
    config = {"model": {"kind": "pretrained", "name": "some/suite"}, "protocol": {"name": "corrected"}}
    manifest = {"config": {**config, "analysis": {"group_scan": settings}}} if settings else None
    path = folder(root, values=scalars(1.0, 0.25, 4.0, **found), manifest=manifest)
    groups = [{"heads": [0], "size": 1, "standardised": 1.0}, {"heads": [0, 3], "size": 2, "standardised": 4.0}]
    pq.write_table(pa.Table.from_pylist(groups), path / "group_scan.parquet")
    return path


def test_the_group_that_stands_out_is_named_or_said_to_be_chance(tmp_path: Path) -> None:
    for p, word, verdict in ((0.001, "more than", "A group"), (0.4, "not reliably more than", "No group")):
        path = scanned(tmp_path / word, p, {"value": 1.5, "ci_low": 1.0, "ci_high": 2.0})
        (said,) = [text for text in in_words(path) if "stands out most" in text]
        assert f"{verdict} of heads is found that stands out and surely adds more than 0.5 nats." in in_words(path)
        assert f"Of 2 groups of up to 2 heads, that of heads 0 and 3 stands out most: {word} chance gives" in said
        assert any("the best group adds +1.5 [+1.0, +2.0] nats" in text for text in in_words(path))


def test_a_group_that_surely_adds_too_little_is_not_found(tmp_path: Path) -> None:
    """p alone finds a group in suites without planting: experiments/group_scan has one that adds so little."""
    tiny = {"value": 0.058, "ci_low": 0.025, "ci_high": 0.102}
    said = in_words(scanned(tmp_path / "default", 0.001, tiny))
    assert "No group of heads is found that stands out and surely adds more than 0.5 nats." in said
    assert any("stands out most: more than chance gives" in text for text in said)
    asked = in_words(scanned(tmp_path / "asked", 0.001, tiny, least_nats=0.02))
    assert "A group of heads is found that stands out and surely adds more than 0.02 nats." in asked
    below = in_words(scanned(tmp_path / "below", 0.001, tiny, least_nats=0.03))  # inside the interval
    assert "No group of heads is found that stands out and surely adds more than 0.03 nats." in below


def test_a_bug_that_is_not_there_is_said(tmp_path: Path) -> None:
    values = scalars(1.0, 1.0, 0.0, any_size_threshold={"value": 0.0, "n": 32, "unit": "pair"})
    said = in_words(folder(tmp_path, values=values))
    assert any("with nothing patched: there is little here to repair" in text for text in said)


def test_the_null_counts_every_split_and_marks_even_odd(tmp_path: Path) -> None:
    section = prompts.splits(alone(folder(tmp_path)))
    assert section is not None
    (spec,) = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', section.html)]
    assert spec["title"] == "Balanced splits of layer 1" and spec["datasets"]["own"][0]["text"] == "even/odd +4.000"
    # By construction strengths are 4, 0.2, 0, 0, −0.2 and −4; bars of 41 over ±4 hold ±0.2 in two of their own.
    assert sorted(bar["splits"] for bar in spec["datasets"]["bars"]) == [1, 1, 1, 1, 2]


def test_even_odd_stands_where_its_strength_is() -> None:
    left = prompts.histogram(np.array([-1.0, 0.0, 1.0]), -1.0, "t")
    right = prompts.histogram(np.array([-1.0, 0.0, 1.0]), 1.0, "t")
    assert [row["strength"] for figure in (left, right) for row in rows(figure, "strength")] == [-1.0, 1.0]
    assert "even/odd −1.000" in [text.text for text in texts(left)]
    left.chart.to_dict(validate=True)


def test_the_page_has_what_was_measured_alone(tmp_path: Path) -> None:
    path = folder(tmp_path)
    read = Text(write_run_page(path).read_text(encoding="utf-8")).text
    assert "Even/odd among all balanced splits" in read and "Head permutation" not in read
    assert "cpu, weights in float32, 1 thread" in read and "bf16" not in read.split("configuration")[0]
    for absent in ("Attention patterns", "What the study did", "DroPE", "floor_nats"):
        assert absent not in read
    orders(path, 1e-15, 2.0)
    assert "Head permutation" in Text(write_run_page(path).read_text(encoding="utf-8")).text
