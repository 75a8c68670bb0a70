from pathlib import Path

import pytest

from headdyn.report.seed_table import seed_table
from headdyn.sweep.record import SweepRecord
from tests.report.folders import measured, run, sweep

RUN1 = {"protocol": "seed", "mode": "run1"}
SETTINGS = {
    "train": {"steps": 10000, "batch_size": 64},
    "data": {"seed": 0, "vocab_size": 4096, "sequence_length": 512, "train_sequences": 100000},
    "model": {"num_layers": 8, "d_model": 512},
}


def record(folder: Path, *entries: dict) -> SweepRecord:  # type: ignore[type-arg]
    return SweepRecord.read(sweep(folder, entries))


def test_the_studys_figures_stand_beside_ours_only_as_they_were_made(tmp_path: Path) -> None:
    ours = {"loss_nats": measured(7.97, 0.01), "within_ratio": measured(0.601, 0.002)}
    table = seed_table(record(tmp_path, run(tmp_path, **RUN1, settings=SETTINGS, values=ours)))
    assert table is not None and table.reason == table.warning == ""
    label, cells, runs = table.rows[0]
    # The study's summary: mha_shuffled_rope 7.9702, 59.3 %, 3.66, 93.0 %.
    assert (label, runs) == ("MHA shuffled RoPE", [0])
    assert [theirs for theirs, _ in cells] == ["7.9702", "59.3", "3.66", "93.0"]
    assert [mine for _, mine in cells[:2]] == ["7.970 [7.960, 7.980]", "60.10 [59.90, 60.30]"]
    assert table.rows[7][1][0] == ("8.0843", "absent: not run")
    assert "Run 1" in table.source


def test_several_seeds_give_a_mean_with_an_interval_over_them(tmp_path: Path) -> None:
    entries = [
        run(tmp_path, **RUN1, seed=s, settings=SETTINGS, values={"loss_nats": measured(7.9 + 0.2 * s)}) for s in (0, 1)
    ]
    table = seed_table(record(tmp_path, *entries))
    assert table is not None
    # Mean 8.0, standard error 0.1, times 12.7062.
    assert table.rows[0][1][0][1] == "8.0 [6.7, 9.3] (2 seeds)"


def test_other_settings_than_the_studys_are_named(tmp_path: Path) -> None:
    shorter = {**SETTINGS, "train": {"steps": 200, "batch_size": 64}}
    table = seed_table(record(tmp_path, run(tmp_path, **RUN1, settings=shorter)))
    assert table is not None and "train.steps=200 where the study had 10000" in table.warning


@pytest.mark.parametrize(("protocol", "mode"), [("seed", "sanity"), ("seed", "smoke")])
def test_other_modes_say_why_there_is_no_table(tmp_path: Path, protocol: str, mode: str) -> None:
    table = seed_table(record(tmp_path, run(tmp_path, protocol=protocol, mode=mode)))
    assert table is not None and not table.rows and f"mode={mode}" in table.reason


def test_the_corrected_protocol_is_never_held_against_it(tmp_path: Path) -> None:
    assert seed_table(record(tmp_path, run(tmp_path, mode="run1"))) is None
