from pathlib import Path
from typing import Any

import pytest

from headdyn.core.run_folder import RunRecord
from headdyn.sweep.effects import effect_name, factor_effects, simple_effect, with_q
from headdyn.sweep.groups import comparable
from headdyn.sweep.matched_loss import pooled
from tests.report.folders import matrix, measured, run


def selectivity(*, attention: str, ordering: str, position: str, seed: int) -> float:
    """Topic order adds 0.04 under RoPE and 0.12 after DroPE, GQA 0.02; seeds differ by ±0.01 in what order adds."""
    topic, drope = ordering == "topic", position == "drope"
    return (
        0.10
        + 0.04 * topic
        + 0.02 * (attention == "gqa")
        - 0.06 * drope
        + 0.08 * (topic and drope)
        + (0.01 - 0.02 * seed) * topic
    )


def records(folder: Path, entries: list[dict[str, Any]]) -> list[RunRecord]:
    return [RunRecord.read(folder / entry["name"]) for entry in entries]


def effects_of(rows: list[dict[str, Any]], outcome: str) -> dict[tuple[str, ...], dict[str, Any]]:
    return {tuple(row["factors"]): row for row in rows if row["outcome"] == outcome}


def test_effects_equal_contrasts_worked_by_hand(tmp_path: Path) -> None:
    runs = records(tmp_path, matrix(tmp_path, seeds=(0, 1), selectivity=selectivity))
    found = effects_of(factor_effects(runs), "selectivity")
    # Topic order: 0.04 and 0.12 over the two kinds of positions, so 0.08; ±0.01 by seed: 0.09 and 0.07.
    order = found["data_ordering",]
    assert order["value"] == pytest.approx(0.08)
    # Student over 2 seeds: standard deviation 0.01·√2, standard error 0.01, t(1 df, 97.5 %) = 12.7062.
    assert (order["ci_low"], order["ci_high"]) == pytest.approx((0.08 - 0.127062, 0.08 + 0.127062), abs=1e-6)
    assert order["n"] == 2
    assert found["attention",]["value"] == pytest.approx(0.02)
    assert found["position_enc",]["value"] == pytest.approx(-0.06 + 0.04)
    # Half the difference of order's effects: (0.12 − 0.04) / 2.
    assert found["data_ordering", "position_enc"]["value"] == pytest.approx(0.04)
    assert found["data_ordering", "attention", "position_enc"]["value"] == pytest.approx(0, abs=1e-12)


def test_one_seed_has_values_and_no_intervals(tmp_path: Path) -> None:
    rows = factor_effects(records(tmp_path, matrix(tmp_path, selectivity=selectivity)))
    assert effects_of(rows, "selectivity")["data_ordering",]["value"] == pytest.approx(0.09)
    assert all(row["ci_low"] is None and row["p"] is None and row["q"] is None for row in rows)


def test_swapped_levels_would_be_noticed(tmp_path: Path) -> None:
    entries = matrix(tmp_path, selectivity=lambda **cell: 1 - selectivity(**cell))
    found = effects_of(factor_effects(records(tmp_path, entries)), "selectivity")
    assert found["data_ordering",]["value"] == pytest.approx(-0.09)


def test_a_seed_that_lacks_a_cell_is_left_out(tmp_path: Path) -> None:
    entries = matrix(tmp_path, seeds=(0, 1), selectivity=selectivity)
    runs = records(tmp_path, entries[:-1])  # seed 1 lacks gqa topic drope
    order = effects_of(factor_effects(runs), "selectivity")["data_ordering",]
    assert (order["n"], order["value"]) == (1, pytest.approx(0.09))


def test_an_outcome_no_seed_has_whole_is_absent_with_its_reason(tmp_path: Path) -> None:
    entries = [run(tmp_path, ordering="shuffled"), run(tmp_path, ordering="topic", values={"selectivity": None})]
    order = effects_of(factor_effects(records(tmp_path, entries)), "selectivity")["data_ordering",]
    assert order["value"] is None
    assert "no seed has all 2 cells" in order["reason"]


def test_other_settings_make_another_group(tmp_path: Path) -> None:
    entries = [
        run(tmp_path / mode, ordering=ordering, mode=mode, settings={"train": {"steps": steps}})
        for mode, steps in (("smoke", 120), ("laptop", 800))
        for ordering in ("shuffled", "topic")
    ]
    runs = [RunRecord.read(tmp_path / ("smoke" if "smoke" in e["name"] else "laptop") / e["name"]) for e in entries]
    assert [(g.name, g.differs["train.steps"], len(g.runs)) for g in comparable(runs)] == [
        ("smoke", 120, 2),
        ("laptop", 800, 2),
    ]
    assert {row["group"] for row in factor_effects(runs)} == {"smoke", "laptop"}


def test_seeds_make_no_group_even_where_the_corpus_follows_them(tmp_path: Path) -> None:
    (group,) = comparable(records(tmp_path, [run(tmp_path, seed=0), run(tmp_path, seed=1)]))
    assert (group.name, group.differs) == ("", {})


def test_variants_of_one_option_are_not_pooled(tmp_path: Path) -> None:
    entries = []
    for heads in (1, 2):
        settings = {"attention": {"name": "gqa", "num_kv_heads": heads}}
        entries.append(
            RunRecord.read(
                tmp_path / str(heads) / run(tmp_path / str(heads), attention="gqa", settings=settings)["name"]
            )
        )
    groups = comparable(entries)
    assert [(g.name, g.differs) for g in groups] == [
        ("A", {"attention.num_kv_heads": 1}),
        ("B", {"attention.num_kv_heads": 2}),
    ]


def test_analyses_with_other_settings_are_not_pooled_and_further_ones_change_nothing(tmp_path: Path) -> None:
    def entry(seed: int, **analysis: Any) -> dict[str, Any]:
        return run(tmp_path, seed=seed, settings={"analysis": {"loss": {"sequences": 256}, **analysis}})

    same = records(tmp_path, [entry(0, tensorlens={"branch": "up"}), entry(1)])
    assert len(comparable(same)) == 1  # which analyses ran may differ
    other = RunRecord.read(tmp_path / entry(2, tensorlens={"branch": "gate"})["name"])
    groups = comparable([*same, other])
    assert [(g.differs.get("analysis.tensorlens.branch"), [r.factors["seed"] for r in g.runs]) for g in groups] == [
        ("up", [0]),
        (None, [1]),  # of either kind it could be said that it belongs there
        ("gate", [2]),
    ]
    assert all("analysis.loss.sequences" not in g.differs for g in groups)


def test_two_runs_of_one_cell_have_no_contrast(tmp_path: Path) -> None:
    first = records(tmp_path / "a", [run(tmp_path / "a", ordering=o) for o in ("shuffled", "topic")])
    other = {"loss_nats": measured(2.5, null=4.0, n=256)}
    again = records(tmp_path / "b", [run(tmp_path / "b", ordering="topic", length=6, values=other)])
    rows = {row["outcome"]: row for row in factor_effects([*first, *again])}
    assert rows["loss_nats"]["value"] is None and "same levels and seed" in rows["loss_nats"]["reason"]
    assert rows["selectivity"]["value"] == 0  # measured alike by both: one number, not two


def test_an_outcome_that_one_of_two_sweeps_measured_keeps_its_contrast(tmp_path: Path) -> None:
    first = records(tmp_path / "a", [run(tmp_path / "a", ordering=o) for o in ("shuffled", "topic")])
    less = {"selectivity": None}
    again = records(tmp_path / "b", [run(tmp_path / "b", values=less)])
    rows = {row["outcome"]: row for row in factor_effects([*again, *first])}
    assert rows["selectivity"]["value"] == 0 and rows["loss_nats"]["value"] == 0


def test_effect_of_order_where_positions_are_dropped(tmp_path: Path) -> None:
    runs = records(tmp_path, matrix(tmp_path, seeds=(0, 1), selectivity=selectivity))
    row = simple_effect(runs, "data_ordering", "selectivity", position_enc="drope")
    assert row is not None and row["value"] == pytest.approx(0.12) and row["n"] == 2
    assert simple_effect(runs, "data_ordering", "selectivity", position_enc="nope") is None


def test_control_arms_give_drope_a_second_contrast(tmp_path: Path) -> None:
    values = {"rope": 0.3, "rope_control": 0.25, "drope": 0.1}
    entries = [run(tmp_path, position=p, values={"selectivity": measured(v)}) for p, v in values.items()]
    rows = [row for row in factor_effects(records(tmp_path, entries)) if row["outcome"] == "selectivity"]
    found = {tuple(row["levels"]["position_enc"]): row["value"] for row in rows}
    assert found == {
        ("rope", "drope"): pytest.approx(-0.2),
        ("rope_control", "drope"): pytest.approx(-0.15),
        ("rope", "rope_control"): pytest.approx(-0.05),
    }
    assert {effect_name(row) for row in rows} == {"DroPE", "DroPE against RoPE-control", "RoPE-control against RoPE"}


def pair(seed: int, attention: str, difference: float) -> dict[str, Any]:
    return {
        "seed": seed,
        "attention": attention,
        "position_enc": "rope",
        "outcome": "selectivity",
        "difference": difference,
    }


def test_matched_differences_are_averaged_within_a_seed_then_over_seeds() -> None:
    pairs = [pair(0, "mha", 0.1), pair(0, "gqa", 0.3), pair(1, "mha", 0.2), pair(1, "gqa", 0.6)]
    (row,) = pooled(pairs)
    # Per seed 0.2 and 0.4; their mean 0.3, standard error 0.1, times 12.7062.
    assert (row["value"], row["ci_low"], row["ci_high"], row["n"]) == pytest.approx(
        (0.3, -0.97062, 1.57062, 2), abs=1e-5
    )


def test_a_seed_without_one_of_the_pairs_does_not_count() -> None:
    (row,) = pooled([pair(0, "mha", 0.1), pair(0, "gqa", 0.3), pair(1, "mha", 0.9)])
    assert (row["value"], row["n"]) == (pytest.approx(0.2), 1)
    assert "ci_low" not in row


def test_q_values_are_over_the_rows_that_have_a_p() -> None:
    rows = with_q([{"p": 0.01}, {"p": None}, {"p": 0.04}, {"p": 0.03}])
    # Benjamini–Hochberg by hand: 0.01·3/1, then min(0.03·3/2, 0.04·3/3) for both others.
    assert [row["q"] for row in rows] == [pytest.approx(0.03), None, pytest.approx(0.04), pytest.approx(0.04)]
