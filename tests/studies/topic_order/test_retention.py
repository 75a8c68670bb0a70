"""Retention by layer and the two groups of heads, against designs and samples with known answers."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from headdyn.report.blocks import Table
from headdyn.studies.topic_order.retention import (
    best_cut,
    collapse,
    headlines,
    null_shares,
    retention,
    sections,
    two_groups,
)
from headdyn.sweep.record import SweepRecord
from tests.report.folders import run, sweep


def design(folder: Path) -> SweepRecord:
    """Order adds nothing at layer 0; at layer 1 0.02 with RoPE and 0.05 after the drop, give or take a seed."""
    entries = []
    for seed, ordering, position in itertools.product((0, 1, 2), ("shuffled", "topic"), ("rope", "drope")):
        topic, drope = ordering == "topic", position == "drope"
        layer_one = 0.1 + topic * (0.02 + drope * (0.03 + 0.001 * (seed - 1)))
        value_LH = np.array([[0.2, 0.2, 0.2, 0.2], [layer_one - 0.05, layer_one + 0.05, layer_one, layer_one]])
        entries.append(run(folder, ordering=ordering, position=position, seed=seed, selectivity_LH=value_LH))
    return SweepRecord.read(sweep(folder, entries))


def test_retention_is_the_interaction_of_order_and_drop_at_each_layer(tmp_path: Path) -> None:
    record = design(tmp_path)
    none, some = [row for row in retention(record.complete) if row["measure"] == "selectivity"]
    assert (none["layer"], none["value"]) == (0, pytest.approx(0, abs=1e-12))
    assert some["rope"]["value"] == pytest.approx(0.02) and some["drope"]["value"] == pytest.approx(0.05)
    # 0.029, 0.030 and 0.031: standard error 0.001/√3, t(2 df) = 4.30265.
    assert some["value"] == pytest.approx(0.03)
    assert (some["ci_low"], some["ci_high"]) == pytest.approx((0.03 - 0.0024841, 0.03 + 0.0024841), abs=1e-6)
    assert some["q"] < 0.05
    (section,) = sections(record)
    assert section.title == "Does the effect of the order outlast the drop of positions?" and "+3.00" in section.html
    (table,) = [block for block in section.blocks if isinstance(block, Table) and len(block.rows) == 2]
    assert table.columns[-1] == "detectable" and [row[-1] for row in table.rows] == ["0", ""]  # the second is found


def test_the_answer_names_the_layers(tmp_path: Path) -> None:
    (statement,) = headlines(design(tmp_path))
    assert statement.sentences[0] == (
        "Dropping positions changes what topic order does, by topic selectivity at layer 1, +3.00 [+2.75, +3.25] points (q < 0.05)."
    )
    assert any(text.startswith("No change detected: topic selectivity at layer 0, ") for text in statement.sentences)


def test_a_change_whose_interval_alone_excludes_0_is_said_to_be_not_found_after_correction(tmp_path: Path) -> None:
    entries = []
    for seed, ordering, position in itertools.product((0, 1, 2), ("shuffled", "topic"), ("rope", "drope")):
        both = ordering == "topic" and position == "drope"
        value_LH = np.array([[0.2, 0.2], [0.1, 0.1]]) + both * np.array(
            [[0.03 + 0.01 * (seed - 1)], [0.02 * (seed - 1)]]
        )
        entries.append(run(tmp_path, ordering=ordering, position=position, seed=seed, selectivity_LH=value_LH))
    (statement,) = headlines(SweepRecord.read(sweep(tmp_path, entries)))
    # 0.02, 0.03 and 0.04: standard error 0.0058, t = 5.196 with 2 degrees of freedom, p = 0.035, times the layers.
    first, second = statement.sentences[1:3]
    assert "at layer 0, +3.0 [+0.5, +5.5] points (not found after correction for all layers and measures; " in first
    assert "not found" not in second and second.endswith(" points would be detected).")


def test_another_factor_is_averaged_over_and_depths_are_not_mixed(tmp_path: Path) -> None:
    runs = design(tmp_path).complete
    twice = [*runs, *(SimpleNamespace(heads=job.heads, factors={**job.factors, "train.steps": 7}) for job in runs)]
    assert retention(twice)[1]["value"] == pytest.approx(0.03)  # type: ignore[arg-type]
    shallow = runs[0].heads.where(layer=0)
    mixed = [SimpleNamespace(heads=shallow, factors=runs[0].factors), *runs[1:]]
    assert [row["measure"] for row in retention(mixed)] == []  # type: ignore[arg-type]


def test_without_both_arms_there_is_no_retention(tmp_path: Path) -> None:
    entries = [run(tmp_path, ordering=ordering) for ordering in ("shuffled", "topic")]
    record = SweepRecord.read(sweep(tmp_path, entries))
    assert retention(record.complete) == [] and sections(record) == []


def test_the_best_cut_is_the_best_of_all_cuts() -> None:
    rng = np.random.default_rng(0)
    for heads in (4, 5, 8, 12):
        values = np.sort(rng.standard_normal(heads))
        shares = []
        for cut in range(2, heads - 1):
            within = sum(part.var() * len(part) for part in (values[:cut], values[cut:]))
            shares.append(1 - within / (values.var() * heads))
        assert best_cut(rng.permutation(values)) == pytest.approx(max(shares), abs=1e-12)
    assert best_cut(np.full(8, 0.3)) == 0


@pytest.mark.parametrize("heads", [4, 8, 12])
def test_two_groups_are_found_where_they_are_and_seldom_in_normal_values(heads: int) -> None:
    rng, null = np.random.default_rng(1), null_shares(heads)

    def rejected(samples: np.ndarray) -> float:
        shares = np.array([best_cut(sample) for sample in samples])
        return float(np.mean([(null >= share).mean() <= 0.05 for share in shares]))

    assert rejected(rng.standard_normal((600, heads))) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 600)
    apart = rng.standard_normal((200, heads)) + 12 * (np.arange(heads) < heads // 2)
    assert rejected(apart) > (0.5 if heads == 4 else 0.95)
    assert rejected(3 + 7 * rng.standard_normal((600, heads))) < 0.09  # neither place nor scale matters


def test_groups_that_vanish_with_positions_are_a_collapse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = design(tmp_path)
    apart, together = np.array([0.1, 0.11, 0.5, 0.51]), np.array([0.1, 0.2, 0.3, 0.42])
    monkeypatch.setattr(
        "headdyn.studies.topic_order.retention._heads_of_layer",
        lambda job: (apart if job.factors["position_enc"] == "rope" else together) + 0.001 * job.factors["seed"],
    )
    found = two_groups(record.complete)
    assert len(found) == 12 and found[0]["heads"] == 4
    change = 100 * (best_cut(together) - best_cut(apart))
    points = f"−{abs(change):.0f}"
    assert f"by {points} [{points}, {points}] points (p < 0.001, 3 seeds)" in collapse(record.complete)
