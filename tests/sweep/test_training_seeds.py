"""Trainings of one suite, told apart by their seed: what repeats, and that nothing else is taken for a training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from scipy import stats

from headdyn.core.json_files import read_json, write_json
from headdyn.models.revisions import suite_of
from headdyn.report.sweep_page import write_sweep_page
from headdyn.sweep.merge import merge
from headdyn.sweep.record import VERDICT, SweepRecord
from headdyn.sweep.training_seeds import emerged, emergence_steps, repetitions, statements
from tests.report.series_folders import emerging, judgement_at, verdict
from tests.report.test_sweep_page import Text

DATES = {1: (32_000, 64_000), 2: (1_000, 32_000), 3: (32_000, 64_000), 4: (None, None)}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four trainings of one suite, of which three have even/odd structure, and a training of another suite."""
    root = tmp_path_factory.mktemp("seeds")
    folders = [
        emerging(root / str(seed), verdict(at, after), model=f"some/pythia-160m-seed{seed}")
        for seed, (after, at) in DATES.items()
    ]
    folders.append(emerging(root / "other", verdict(), model="some/pythia-70m-seed1"))
    merge(folders, root / "merged")
    return root / "merged"


def test_the_unit_is_a_training_of_one_suite(seeds: Path) -> None:
    (one,) = repetitions(SweepRecord.read(seeds))
    assert one.suite == "pythia-160m" and list(one.entries) == ["1", "2", "3", "4"]
    test = stats.binomtest(3, 4).proportion_ci(0.95, "exact")
    assert one.split_found() == f"3 of 4 trainings ({100 * test.low:.0f} to {100 * test.high:.0f} %)"
    (statement,) = statements(SweepRecord.read(seeds))
    assert statement.question == "Does it repeat over training seeds? (pythia-160m)"
    assert statement.sentences[0] == "The split of the heads is beyond chance in 3 of 4 trainings (19 to 99 %)."


def test_the_step_of_emergence_counts_the_spread_and_the_distance_between_checkpoints(seeds: Path) -> None:
    (one,) = repetitions(SweepRecord.read(seeds))
    judgements = one.measures()["strength"]
    assert emerged(judgements).startswith("3 of 4 trainings")
    ends = []
    for side, dates in ((0, [32_000, 1_000, 32_000]), (1, [64_000, 32_000, 64_000])):
        logs = [math.log(step + 1) for step in dates]
        interval = stats.t.interval(0.95, 2, stats.tmean(logs), stats.sem(logs))
        ends.append(math.exp(interval[side]) - 1)
    assert emergence_steps(judgements) == pytest.approx(ends)
    # Trainings that agree are still not dated better than their checkpoints lie.
    assert emergence_steps([judgement_at(64_000, 32_000)] * 3) == pytest.approx((32_000, 64_000))
    assert emergence_steps([judgement_at(64_000, 32_000), judgement_at(1_000, None)]) == (
        None,
        pytest.approx(ends_of(64_000, 1_000)),
    )
    assert emergence_steps([judgement_at(64_000, 32_000), judgement_at(None, None)]) is None


def ends_of(*steps: int) -> float:
    logs = [math.log(step + 1) for step in steps]
    return math.exp(stats.t.interval(0.95, 1, stats.tmean(logs), stats.sem(logs))[1]) - 1


def test_the_page_has_a_section_of_its_own(seeds: Path) -> None:
    page = Text(write_sweep_page(seeds).read_text(encoding="utf-8")).text
    section = page.split("Does it repeat over training seeds?")[-1]
    assert "pythia-160m: emergence" in section and "seed 1 seed 2 seed 3 seed 4" in section
    assert "3 of 4 trainings (19 to 99 %)" in section


def test_seeds_of_the_analysis_are_no_trainings(tmp_path: Path) -> None:
    """A public checkpoint analysed with two random seeds is one training; of a model trained here they are two."""
    folder = emerging(tmp_path, model="some/pythia-160m-seed1")
    entries = read_json(folder / VERDICT)
    other = {**entries[0], "series": 1, "factors": {**entries[0]["factors"], "seed": 1}}
    write_json(folder / VERDICT, [*entries, other])
    assert not repetitions(SweepRecord.read(folder))
    for path in folder.glob("*/manifest.json"):
        manifest = read_json(path)
        manifest["config"]["model"]["kind"] = "trained"
        write_json(path, manifest)
    (one,) = repetitions(SweepRecord.read(folder))
    assert list(one.entries) == ["0", "1"]


@pytest.mark.parametrize(
    ("name", "suite"),
    [
        ("EleutherAI/pythia-160m-seed3", ("pythia-160m", "3")),
        ("EleutherAI/pythia-70m-seed1", ("pythia-70m", "1")),
        ("EleutherAI/pythia-160m", ("pythia-160m", "")),
        ("stanford-crfm/battlestar-gpt2-small-x49", ("gpt2-small", "49")),
        ("/models/mine_seed-12/", ("mine", "12")),
        ("seedling-2", ("seedling-2", "")),
    ],
)
def test_the_seed_that_a_name_states(name: str, suite: tuple[str, str]) -> None:
    assert suite_of(name) == suite
