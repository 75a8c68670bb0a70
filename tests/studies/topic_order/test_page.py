from pathlib import Path

import pytest

from headdyn.report.sweep_page import write_sweep_page
from headdyn.studies.topic_order import sections
from headdyn.sweep.record import SweepRecord
from tests.report.folders import measured, run, sweep
from tests.report.test_sweep_page import Text

RUN1 = {"protocol": "original", "mode": "run1"}
SETTINGS = {
    "train": {"steps": 10000, "batch_size": 64},
    "data": {"seed": 0, "vocab_size": 4096, "sequence_length": 512, "train_sequences": 100000},
    "model": {"num_layers": 8, "d_model": 512},
}


def beside(folder: Path, *entries: dict) -> str:  # type: ignore[type-arg]
    """The text of the one section."""
    (section,) = sections(SweepRecord.read(sweep(folder, entries)))
    return Text(f"<body>{section.html}</body>").text


def test_the_studys_figures_stand_beside_ours_only_as_they_were_made(tmp_path: Path) -> None:
    ours = {"loss_nats": measured(7.97, 0.01), "within_ratio": measured(0.601, 0.002)}
    read = beside(tmp_path, run(tmp_path, **RUN1, settings=SETTINGS, values=ours))
    # The study's summary: mha_shuffled_rope 7.9702, 59.3 %, 3.66, 93.0 %.
    assert "MHA shuffled RoPE 7.9702 7.970 [7.960, 7.980] 59.3 60.10 [59.90, 60.30] 3.66" in read
    assert "GQA topic DroPE 8.0843 absent: not run" in read
    assert "Run 1" in read and "Not the study's settings" not in read


def test_several_seeds_give_a_mean_with_an_interval_over_them(tmp_path: Path) -> None:
    entries = [
        run(tmp_path, **RUN1, seed=s, settings=SETTINGS, values={"loss_nats": measured(7.9 + 0.2 * s)}) for s in (0, 1)
    ]
    # Mean 8.0, standard error 0.1, times 12.7062.
    assert "7.9702 8.0 [6.7, 9.3] 2 seeds" in beside(tmp_path, *entries)


def test_other_settings_than_the_studys_are_named(tmp_path: Path) -> None:
    shorter = {**SETTINGS, "train": {"steps": 200, "batch_size": 64}}
    assert "train.steps=200 where the study had 10000" in beside(tmp_path, run(tmp_path, **RUN1, settings=shorter))


@pytest.mark.parametrize(("protocol", "mode"), [("original", "sanity"), ("original", "smoke")])
def test_other_modes_say_why_there_is_no_table(tmp_path: Path, protocol: str, mode: str) -> None:
    read = beside(tmp_path, run(tmp_path, protocol=protocol, mode=mode))
    assert f"mode={mode}" in read and "7.9702" not in read


def test_the_corrected_protocol_is_never_held_against_it(tmp_path: Path) -> None:
    assert sections(SweepRecord.read(sweep(tmp_path, [run(tmp_path, mode="run1")]))) == []


def test_the_page_shows_the_table_for_run1_alone(tmp_path: Path) -> None:
    named = {"study": "headdyn.studies.topic_order"}

    def read(name: str, **factors: str) -> str:
        folder = sweep(tmp_path / name, [run(tmp_path / name, settings=named, **factors)])
        return Text(write_sweep_page(folder).read_text(encoding="utf-8")).text

    run1 = read("a", **RUN1)
    assert "7.9702" in run1 and "Attention Clustering Experiment Log" in run1
    smoke = read("b", protocol="original", mode="smoke")
    assert "7.9702" not in smoke and "mode=run1 protocol=original repeats Run 1" in smoke
    assert "The study's figures" not in read("c")
