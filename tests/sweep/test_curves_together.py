"""Curves that move together over the trainings of a suite: which curves are read, who takes part, what the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from headdyn.report.sweep_page import write_sweep_page
from headdyn.sweep.curves_together import curves_together, recorded_courses
from headdyn.sweep.merge import merge
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_record import read_series
from headdyn.sweep.training_seeds import repetitions
from tests.report.series_folders import judgement_at, run, scalar, scalars, series, verdict
from tests.report.test_sweep_page import Text

STEPS = (1, 10, 100, 1_000, 10_000, 100_000)
# Of every training the changes of `strength_nats`, in another order in each, and of its null.
CHANGES = ([5, 1, 2, 3, 4], [1, 5, 2, 4, 3], [2, 1, 5, 3, 4], [4, 3, 1, 5, 2])
HEADING = "Curves that move together"


def training(root: Path, seed: int, changes: list[int], *, steps: tuple[int, ...] = STEPS, failed: int = -1) -> Path:
    """A training in which `strength_nats` and the log-odds without a patch change together, up to their null."""
    root.mkdir(parents=True)
    values, level = [], 0.0
    for number, _ in enumerate(steps):
        level += changes[number - 1] if number else 0
        null = 7.0 * (number % 2)  # as a relative measure the strength is its excess over this
        own = scalars(0.25, 0.25, 0.0)
        own |= {"strength_nats": scalar(level + null, null=null), "plain_nats": scalar(2 * level)}
        values.append(None if number == failed else own)
    model = f"some/pythia-160m-seed{seed}"
    entries = [run(root, step, value, model=model) for step, value in zip(steps, values, strict=True)]
    failures = {f"step{steps[failed]}": "it fell over"} if failed >= 0 else {}
    relative = judgement_at(None, None, rule="above half of its highest value")
    own_verdict = verdict(failed=failures, measures={"strength_nats": relative})
    return series(root, entries, own_verdict, values)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four trainings with the same checkpoints, and one with others."""
    root = tmp_path_factory.mktemp("suite")
    folders = [training(root / str(seed), seed, changes) for seed, changes in enumerate(CHANGES, start=1)]
    folders.append(training(root / "5", 5, CHANGES[0], steps=(1, 10, 100, 1_000, 20_000, 100_000)))
    merge(folders, root / "merged")
    return root / "merged"


def test_the_curves_are_the_recorded_measures_less_their_null_and_the_tasks_metrics(suite: Path) -> None:
    courses = recorded_courses(read_series(SweepRecord.read(suite))[0])
    assert list(courses) == [
        "strength_nats",
        "plain_success",
        "even_success",
        "odd_success",
        "all_success",
        "plain_nats",
    ]
    assert courses["strength_nats"] == dict(zip(STEPS, (0, 5, 6, 8, 11, 15), strict=True))
    assert courses["plain_nats"] == dict(zip(STEPS, (0, 10, 12, 16, 22, 30), strict=True))


def test_trainings_with_other_checkpoints_take_no_part(suite: Path) -> None:
    sweep = SweepRecord.read(suite)
    (repetition,) = repetitions(sweep)
    together = curves_together(repetition, sweep)
    assert together.trainings == 4
    reason = "its checkpoints are not those of the other trainings (it lacks step 10000, it has step 20000)"
    assert together.left_out == {"seed 5": reason}
    (record,) = together.records  # the shares of right answers never change
    assert (record["one"], record["other"], record["n"], record["changes"]) == ("strength_nats", "plain_nats", 4, 5)
    assert record["within"] == pytest.approx(1) and record["p"] == record["q"] == pytest.approx(1 / 24)
    assert record["across"] < 0.5 and together.found == [record]


def test_a_checkpoint_that_failed_in_one_training_is_left_out_of_all(tmp_path: Path) -> None:
    steps = (*STEPS, 143_000)
    folders = [
        training(tmp_path / str(seed), seed, [*changes, 6], steps=steps, failed=6 if seed == 1 else -1)
        for seed, changes in enumerate(CHANGES[:3], start=1)
    ]
    merge(folders, tmp_path / "merged")
    sweep = SweepRecord.read(tmp_path / "merged")
    together = curves_together(repetitions(sweep)[0], sweep)
    assert not together.left_out and [record["changes"] for record in together.records] == [5]
    assert together.sentence() == (
        "In 0 of 1 pair the changes of the two curves correlate more strongly within a training than between trainings "
        "(q ≤ 0.05, 3 trainings). So few trainings cannot show it for any pair: no p can be below 0.17."
    )


def test_the_page_shows_the_pairs_and_says_how_many_are_found(suite: Path) -> None:
    page = Text(write_sweep_page(suite).read_text(encoding="utf-8")).text
    section = page.split("Does it repeat over training seeds?")[-1].split(HEADING)[1]
    assert "In 1 of 1 pair the changes of the two curves correlate more strongly within a training" in section
    assert "Without seed 5: its checkpoints are not those of the other trainings" in section
    assert "strength of Δ plain nats +1.00" in section and "0.042 0.042 4 trainings" in section


def test_trainings_with_too_few_changes_have_no_such_table(tmp_path: Path) -> None:
    folders = [training(tmp_path / str(seed), seed, CHANGES[seed], steps=STEPS[:4]) for seed in (1, 2)]
    merge(folders, tmp_path / "merged")
    page = Text(write_sweep_page(tmp_path / "merged").read_text(encoding="utf-8")).text
    assert "Does it repeat over training seeds?" in page and HEADING not in page


def test_trainings_without_common_checkpoints_are_not_compared(tmp_path: Path) -> None:
    other = tuple(step + 1 for step in STEPS)
    folders = [training(tmp_path / str(n), n, CHANGES[n], steps=steps) for n, steps in enumerate((STEPS, other))]
    merge(folders, tmp_path / "merged")
    page = Text(write_sweep_page(tmp_path / "merged").read_text(encoding="utf-8")).text
    assert "Whether curves move together is not tested: no two trainings have the same checkpoints." in page
    assert HEADING not in page
