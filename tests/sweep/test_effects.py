import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from headdyn.core.run_folder import RunRecord
from headdyn.core.statistics import smallest_detectable, t_interval
from headdyn.sweep.effects import effect_name, factor_effects, with_q
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
    return {tuple(row["factors"]): row for row in rows if row["outcome"] == outcome and is_of_design(row)}


def is_of_design(row: dict[str, Any]) -> bool:
    return row["kind"] in ("contrast", "slope", "interaction")


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


def test_checkpoints_of_one_training_are_no_arms_of_a_design(tmp_path: Path) -> None:
    runs = records(tmp_path, matrix(tmp_path, seeds=(0, 1), selectivity=selectivity))
    assert factor_effects(runs)
    for place, record in enumerate(runs):
        record.factors["revision"] = f"step{100 * (1 + place % 2)}"
    assert factor_effects(runs) == []


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
    assert "no seed has runs of all 2 combinations of levels" in order["reason"]


def test_two_runs_of_one_cell_have_no_contrast(tmp_path: Path) -> None:
    first = records(tmp_path / "a", [run(tmp_path / "a", ordering=o) for o in ("shuffled", "topic")])
    other = {"loss_nats": measured(2.5, null=4.0, n=256)}
    again = records(tmp_path / "b", [run(tmp_path / "b", ordering="topic", length=6, values=other)])
    rows = {row["outcome"]: row for row in factor_effects([*first, *again]) if is_of_design(row)}
    assert rows["loss_nats"]["value"] is None and "same levels and seed" in rows["loss_nats"]["reason"]
    assert rows["selectivity"]["value"] == 0  # measured alike by both: one number, not two


def test_an_outcome_that_one_of_two_sweeps_measured_keeps_its_contrast(tmp_path: Path) -> None:
    first = records(tmp_path / "a", [run(tmp_path / "a", ordering=o) for o in ("shuffled", "topic")])
    less = {"selectivity": None}
    again = records(tmp_path / "b", [run(tmp_path / "b", values=less)])
    rows = {row["outcome"]: row for row in factor_effects([*again, *first]) if is_of_design(row)}
    assert rows["selectivity"]["value"] == 0 and rows["loss_nats"]["value"] == 0


def test_effect_of_order_where_positions_are_dropped(tmp_path: Path) -> None:
    rows = factor_effects(records(tmp_path, matrix(tmp_path, seeds=(0, 1), selectivity=selectivity)))
    simple = [row for row in rows if row["kind"] == "simple" and row["outcome"] == "selectivity"]
    assert len(simple) == 3 * 2 * 2  # three factors, each at both levels of the two others
    (row,) = [r for r in simple if r["factors"] == ["data_ordering"] and r["held"] == {"position_enc": "drope"}]
    assert row["value"] == pytest.approx(0.12) and row["n"] == 2
    assert effect_name(row) == "topic order in DroPE runs"
    # Their p-values are a family of their own: adding them changes no q of the design's effects.
    tested = [row for row in rows if row["kind"] == "simple" and row["p"] is not None]
    assert [row["q"] for row in tested] == [row["q"] for row in with_q(tested)]
    design = [row for row in rows if is_of_design(row)]
    assert [row["q"] for row in design] == [row["q"] for row in with_q(design)]


def test_an_arm_that_did_not_recover_enters_no_contrast_and_is_named(tmp_path: Path) -> None:
    def cells(facts: dict[str, Any], place: str) -> list[RunRecord]:
        entries = []
        for ordering, position in itertools.product(("shuffled", "topic"), ("rope", "drope")):
            value = {"selectivity": measured(0.3 if ordering == "topic" else 0.1, n=8)}
            damaged = {"recalibration": facts} if (ordering, position) == ("topic", "drope") else {}
            entries.append(run(tmp_path / place, ordering=ordering, position=position, values=value | damaged))
        return records(tmp_path / place, entries)

    facts = {"steps": 8, "val_loss_nats": {"0": 3.0, "8": 2.9}, "parent_loss_nats": 2.4, "recovered": False}
    rows = factor_effects(cells({**facts, "until_recovered": True}, "until"), outcomes=["selectivity"])
    order = effects_of(rows, "selectivity")["data_ordering",]
    assert order["value"] is None and "not recovered, and so left out: mha_topic_drope" in order["reason"]
    (simple,) = [r for r in rows if r.get("held") == {"position_enc": "rope"} and r["factors"] == ["data_ordering"]]
    assert simple["value"] == pytest.approx(0.2)
    # A recalibration for a fixed time, as in the original study, counts as it is.
    fixed = effects_of(factor_effects(cells(facts, "fixed"), outcomes=["selectivity"]), "selectivity")
    assert fixed["data_ordering",]["value"] == pytest.approx(0.2)


def test_control_arms_give_drope_a_second_contrast(tmp_path: Path) -> None:
    values = {"rope": 0.3, "rope_control": 0.25, "drope": 0.1}
    entries = [run(tmp_path, position=p, values={"selectivity": measured(v)}) for p, v in values.items()]
    rows = factor_effects(records(tmp_path, entries))
    rows = [row for row in rows if row["outcome"] == "selectivity" and row["kind"] == "contrast"]
    found = {tuple(row["levels"]["position_enc"]): row["value"] for row in rows}
    assert found == {
        ("rope", "drope"): pytest.approx(-0.2),
        ("rope_control", "drope"): pytest.approx(-0.15),
        ("rope", "rope_control"): pytest.approx(-0.05),
    }
    assert {effect_name(row) for row in rows} == {"DroPE", "DroPE against RoPE-control", "RoPE-control against RoPE"}


def test_q_values_are_over_the_rows_that_have_a_p() -> None:
    rows = with_q([{"p": 0.01}, {"p": None}, {"p": 0.04}, {"p": 0.03}])
    # Benjamini–Hochberg by hand: 0.01·3/1, then min(0.03·3/2, 0.04·3/3) for both others.
    assert [row["q"] for row in rows] == [pytest.approx(0.03), None, pytest.approx(0.04), pytest.approx(0.04)]


def test_the_smallest_detectable_effect_is_that_of_q() -> None:
    def tested(value: float, p: float) -> dict[str, Any]:  # three seeds, standard deviation √3: a standard error of 1
        return {"value": value, "ci_low": value - 4.302653, "ci_high": value + 4.302653, "n": 3, "p": p}

    found, *others = with_q([tested(9, 0.0121), tested(4.4, 0.048), tested(1, 0.42), tested(0, 1.0)])
    assert (found["q"], found["detectable"]) == (pytest.approx(0.0484), None)
    # The second test's interval excludes 0 and its q is 0.096. Beside the one of four that is found, a test is found at
    # p ≤ 0.05 · 2/4 = 0.025: |t| > 6.20535 with 2 degrees of freedom. Of its noncentral t, 80 % lie beyond that at 8.0104.
    critical = scipy.stats.t.ppf(1 - 0.025 / 2, 2)
    assert critical == pytest.approx(6.20535, abs=1e-5)
    for row in others:
        assert row["q"] >= 0.05 and row["detectable"] == pytest.approx(8.01042, abs=1e-4)
        assert abs(row["value"]) < row["detectable"]
    assert scipy.stats.nct.sf(critical, 2, 8.01042) == pytest.approx(0.8, abs=1e-5)
    # Mutants: the level of one test, and that of the first test of the family.
    assert smallest_detectable(3**0.5, 3) == pytest.approx(5.6535, abs=1e-4)
    assert smallest_detectable(3**0.5, 3, alpha=0.05 / 4) == pytest.approx(11.3, abs=0.1)
    (alone,) = with_q([tested(4, 0.058)])
    assert alone["detectable"] == pytest.approx(5.6535, abs=1e-4)
    assert [row["detectable"] for row in with_q([{"p": None, "value": 3, "n": 1}])] == [None]


# --- Any key as a factor: records made by hand, one value a run


def made(name: str, factors: dict[str, Any], value: float | None, config: dict[str, Any] | None = None) -> RunRecord:
    scalars = {} if value is None else {"outcome": {"value": value}}
    return RunRecord(Path(name), {"status": "complete", "factors": factors, "config": config or {}}, scalars)


def design(function: Any, seeds: tuple[int, ...] = (0, 1, 2), **levels: tuple[Any, ...]) -> list[RunRecord]:
    """A run for every combination of levels and every seed. A key's double underscore stands for a dot."""
    keys = [key.replace("__", ".") for key in levels]
    runs = []
    for seed in seeds:
        for cell in itertools.product(*levels.values()):
            factors = {**dict(zip(keys, cell, strict=True)), "seed": seed}
            runs.append(made(str(factors), factors, function(seed, *cell)))
    return runs


def rows_of(runs: list[RunRecord], *swept: str) -> list[dict[str, Any]]:
    return factor_effects(runs, swept=swept, outcomes=["outcome"])


def test_effects_of_a_model_with_known_coefficients() -> None:
    noise = {0: -0.1, 1: 0.3, 2: -0.2}

    # y = 5 + seed's own level + a + (0.5 + noise) c + 0.25 a b; an effect is twice its coefficient.
    def value(seed: int, ordering: str, attention: str, position: str) -> float:
        a, b, c = (
            2 * (level == high) - 1 for level, high in ((attention, "gqa"), (ordering, "topic"), (position, "drope"))
        )
        return 5 + 10 * seed + a + (0.5 + noise[seed]) * c + 0.25 * a * b

    runs = design(value, data_ordering=("shuffled", "topic"), attention=("mha", "gqa"), position_enc=("rope", "drope"))
    effects = effects_of(rows_of(runs), "outcome")
    assert len(effects) == 7
    assert effects["attention",]["value"] == pytest.approx(2)
    assert effects["data_ordering",]["value"] == pytest.approx(0)
    assert effects["position_enc",]["value"] == pytest.approx(1)
    assert effects["data_ordering", "attention"]["value"] == pytest.approx(0.5)
    assert effects["data_ordering", "attention", "position_enc"]["value"] == pytest.approx(0)

    per_seed = np.array([2 * (0.5 + noise[s]) for s in (0, 1, 2)])
    position = effects["position_enc",]
    np.testing.assert_allclose((position["ci_low"], position["ci_high"]), t_interval(per_seed))
    assert position["p"] == pytest.approx(scipy.stats.ttest_1samp(per_seed, 0).pvalue)
    assert position["n"] == 3
    # Two of the 7 effects are found, those that are alike in every seed: a further one would be at p ≤ 0.05 · 3/7.
    assert {name for name, row in effects.items() if row["q"] < 0.05} == {
        ("attention",),
        ("data_ordering", "attention"),
    }
    assert position["detectable"] == pytest.approx(smallest_detectable(per_seed.std(ddof=1), 3, alpha=0.05 * 3 / 7))
    # Mutant: an unpaired contrast would drown it in the differences between seeds.
    by_level = {
        level: [run.value("outcome") for run in runs if run.factors["position_enc"] == level]
        for level in ("rope", "drope")
    }
    assert scipy.stats.ttest_ind(by_level["rope"], by_level["drope"]).pvalue > 0.5 > position["p"]


def test_a_swept_key_with_two_levels_is_a_factor() -> None:
    before, after = np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.7, 4.3])
    runs = design(lambda seed, layers: (before, after)[layers - 1][seed], model__num_layers=(2, 1))
    (row,) = [row for row in rows_of(runs, "model.num_layers") if is_of_design(row)]
    assert row["levels"] == {"model.num_layers": [1, 2]}  # numbers from low to high, in whatever order they were swept
    assert row["value"] == pytest.approx(0.5)
    assert row["p"] == pytest.approx(scipy.stats.ttest_rel(after, before).pvalue)
    assert effect_name(row) == "layers 2 against 1"
    assert rows_of(runs) == []  # what no command swept is no factor


@pytest.mark.parametrize(
    ("levels", "x", "against"),
    [
        ((0.01, 0.02, 0.04), (0.01, 0.02, 0.04), "level"),
        ((1, 2, 8), (0, 1, 3), "log2(level)"),
        ((0, 1, 8), (0, 1, 8), "level"),
    ],
)
def test_three_numbers_have_means_pairs_and_a_slope(levels: Any, x: Any, against: str) -> None:
    def value(seed: int, level: float, attention: str) -> float:
        return seed + 3 * x[levels.index(level)] * (1 + 0.1 * seed) + (attention == "gqa")

    rows = rows_of(design(value, train__muon_lr=levels, attention=("mha", "gqa")), "train.muon_lr", "attention")
    contrasts = {
        tuple(r["levels"]["train.muon_lr"]): r
        for r in rows
        if r["kind"] == "contrast" and "train.muon_lr" in r["levels"]
    }
    assert set(contrasts) == set(itertools.combinations(levels, 2))
    assert contrasts[levels[0], levels[2]]["value"] == pytest.approx(3.3 * (x[2] - x[0]))
    (slope,) = [row for row in rows if row["kind"] == "slope"]
    assert slope["value"] == pytest.approx(3.3) and slope["n"] == 3
    assert slope["against"] == {"train.muon_lr": against}
    by_seed = [np.polyfit(x, [value(s, level, "mha") for level in levels], 1)[0] for s in (0, 1, 2)]
    np.testing.assert_allclose((slope["ci_low"], slope["ci_high"]), t_interval(np.array(by_seed)))
    # Interactions with it are of the slope alone: attention shifts every level alike.
    (interaction,) = [row for row in rows if row["kind"] == "interaction"]
    assert interaction["against"] == {"train.muon_lr": against}
    assert interaction["value"] == pytest.approx(0, abs=1e-9)
    means = {
        row["levels"]["train.muon_lr"][0]: row
        for row in rows
        if row["kind"] == "mean" and "train.muon_lr" in row["levels"]
    }
    assert means[levels[1]]["value"] == pytest.approx(np.mean([value(s, levels[1], "mha") + 0.5 for s in (0, 1, 2)]))
    assert means[levels[1]]["p"] is None and means[levels[1]]["ci_low"] is not None


def test_three_names_have_every_pair_and_others_are_averaged_over_all() -> None:
    height = {"a": 0.0, "b": 1.0, "c": 5.0}
    runs = design(
        lambda seed, kind, layers: height[kind] + (kind == "c") * layers,
        data__kind=("b", "a", "c"),
        model__layers=(1, 2),
    )
    rows = [row for row in rows_of(runs, "data.kind", "model.layers") if is_of_design(row)]
    pairs = {tuple(row["levels"]["data.kind"]): row["value"] for row in rows if row["factors"] == ["data.kind"]}
    assert pairs == {("b", "a"): -1, ("b", "c"): 5.5, ("a", "c"): 6.5}  # in the order met
    (layers,) = [row for row in rows if row["factors"] == ["model.layers"]]
    assert layers["value"] == pytest.approx(1 / 3)  # 0, 0 and 1 over the three kinds
    assert sum(row["kind"] == "interaction" for row in rows) == 3


def test_control_arms_do_not_enter_other_factors_averages() -> None:
    topic = {"rope": 1.0, "drope": 3.0, "rope_control": 100.0}
    runs = design(
        lambda seed, position, ordering: topic[position] * (ordering == "topic"),
        position_enc=("rope", "drope", "rope_control"),
        data_ordering=("shuffled", "topic"),
    )
    (order,) = [row for row in rows_of(runs) if row["kind"] == "contrast" and row["factors"] == ["data_ordering"]]
    assert order["value"] == 2


def test_a_level_that_a_run_does_not_state_is_read_from_its_settings() -> None:
    stated = made("a", {"train.steps": 200, "seed": 0}, 1.0, {"train": {"steps": 200}})
    silent = made("b", {"seed": 0}, 4.0, {"train": {"steps": 100}})
    (row,) = [row for row in rows_of([stated, silent], "train.steps") if row["kind"] == "contrast"]
    assert row["levels"] == {"train.steps": [100, 200]} and row["value"] == -3


def test_the_family_of_q_is_the_outcomes_times_the_effects(tmp_path: Path) -> None:
    entries = matrix(tmp_path, seeds=(0, 1, 2), selectivity=selectivity)
    runs = records(tmp_path, entries)
    for run_ in runs:
        run_.manifest["config"]["outcomes"] = {"primary": "entropy_nats", "others": ["selectivity"]}
    rows = [row for row in factor_effects(runs) if is_of_design(row)]
    assert list(dict.fromkeys(row["outcome"] for row in rows)) == ["entropy_nats", "selectivity"]
    assert len(rows) == 2 * 7
    assert {row["outcome"] for row in rows if row["primary"]} == {"entropy_nats"}
    alone = [row for row in factor_effects(runs, outcomes=["selectivity"]) if is_of_design(row)]
    ours = [row for row in rows if row["outcome"] == "selectivity"]
    assert [row["p"] for row in alone] == [row["p"] for row in ours]
    assert [row["q"] for row in alone] != [row["q"] for row in ours]
