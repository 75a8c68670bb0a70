from pathlib import Path
from typing import Any

from headdyn.core.run_folder import RunRecord
from headdyn.sweep.effects import factor_effects
from headdyn.sweep.groups import comparable
from tests.report.folders import run
from tests.sweep.test_effects import made, records


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
        ("attention.num_kv_heads=1", {"attention.num_kv_heads": 1}),
        ("attention.num_kv_heads=2", {"attention.num_kv_heads": 2}),
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


def test_what_a_command_swept_makes_no_group(tmp_path: Path) -> None:
    def entry(layers: int, seed: int) -> RunRecord:
        config = {"model": {"name": "mini", "num_layers": layers}, "train": {"steps": 100}}
        return made(f"{layers}{seed}", {"model.num_layers": layers, "seed": seed}, 1.0, config)

    runs = [entry(layers, seed) for layers in (1, 2) for seed in (0, 1)]
    assert len(comparable(runs, ["model.num_layers"])) == 1
    assert [group.name for group in comparable(runs)] == ["model.num_layers=1", "model.num_layers=2"]


def test_a_swept_mode_takes_its_settings_along_and_no_others() -> None:
    def entry(mode: str, steps: int, width: int) -> RunRecord:
        config = {"mode": {"name": mode}, "train": {"steps": steps}, "model": {"width": width}}
        return made(f"{mode}{steps}{width}", {"mode": mode, "seed": 0}, 1.0, config)

    runs = [entry("smoke", 100, 8), entry("laptop", 800, 8)]
    assert len(comparable(runs, ["mode"])) == 1 and len(comparable(runs)) == 2
    wider = entry("smoke", 100, 16)
    assert [group.name for group in comparable([*runs, wider], ["mode"])] == ["model.width=8", "model.width=16"]


def test_a_setting_that_follows_the_seed_makes_no_group() -> None:
    def entry(seed: int, suite: int) -> RunRecord:
        return made(f"{seed}{suite}", {"seed": seed}, 1.0, {"model": {"suite": suite}})

    assert len(comparable([entry(0, 0), entry(1, 1)])) == 1
    assert [group.name for group in comparable([entry(0, 0), entry(1, 2)])] == ["model.suite=0", "model.suite=2"]


def test_several_keys_name_groups_that_no_single_one_tells_apart() -> None:
    def entry(steps: int, rate: float | None) -> RunRecord:
        train = {"steps": steps} | ({} if rate is None else {"rate": rate})
        return made(f"{steps}{rate}", {"seed": 0}, 1.0, {"train": train})

    groups = comparable([entry(100, 0.1), entry(100, None), entry(200, 0.1), entry(200, None)])
    assert [group.name for group in groups] == [
        "train.rate=0.1, train.steps=100",
        "no train.rate, train.steps=100",
        "train.rate=0.1, train.steps=200",
        "no train.rate, train.steps=200",
    ]
