from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from headdyn.data.ordering import BatchSchedule, Shuffled
from headdyn.models.checkpoints.snapshots import read_snapshot
from headdyn.models.decoder import Decoder
from headdyn.training.drope import recalibrate, short_settings
from headdyn.training.loop import TrainingInterrupted, learning_rate_factor
from headdyn.training.objective import Batches, evaluate
from headdyn.training.optimizers import Optimizers
from headdyn.training.settings import RecalibrationSettings
from tests.training.tiny import CONFIG, SETTINGS, corpus, trained, weights

RECALIBRATION = RecalibrationSettings(floor_steps=12, warmup_share=0.25, lr_scale=0.5)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return trained(tmp_path_factory.mktemp("parent"), dataclasses.replace(SETTINGS, steps=60)).decoder


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A recalibrated arm, as its folder has it."""

    decoder: Decoder
    steps: int
    val_loss_nats: Mapping[int, float]
    parent_loss_nats: float
    recovered: bool
    snapshot: Path


def recalibrated(parent: Decoder, folder: Path, **options: Any) -> Arm:
    options = {"keep_rotary": False, "seed": 0, "recalibration": RECALIBRATION, **options}
    recalibrate(parent, corpus(), SETTINGS, folder=folder, precision="fp32", device="cpu", **options)
    record = json.loads((folder / "recalibration.json").read_text())
    (snapshot,) = (folder / "snapshots").iterdir()
    return Arm(
        decoder=read_snapshot(snapshot)[0],
        val_loss_nats={int(step): loss for step, loss in record["val_loss_nats"].items()},
        snapshot=snapshot,
        **{name: record[name] for name in ("steps", "parent_loss_nats", "recovered")},
    )


def held_out_loss(decoder: Decoder) -> float:
    held_out = Batches.prefix(corpus().val, 20, "cpu", mask_documents=False)
    return evaluate(decoder, held_out, batch_size=8, precision="fp32")


# -- what the arms are ------------------------------------------------------------------------------------------------


def test_drope_drops_rotation_in_all_layers_and_the_control_keeps_it(parent: Decoder, tmp_path: Path) -> None:
    before = weights(parent)
    dropped = recalibrated(parent, tmp_path / "drope")
    control = recalibrated(parent, tmp_path / "control", keep_rotary=True)
    assert dropped.decoder.config == CONFIG.without_positions() and control.decoder.config == CONFIG
    assert dropped.decoder.rotary(8, 0) is None
    for arm in (dropped, control):
        assert all(not torch.equal(new, before[name]) for name, new in weights(arm.decoder).items())
        assert read_snapshot(arm.snapshot)[0].config == arm.decoder.config
    assert all(torch.equal(weights(parent)[name], before[name]) for name in before)  # the parent stays as it was
    assert dropped.steps == control.steps == 12


def test_a_decoder_without_positions_sees_no_order_beyond_the_mask(parent: Decoder, tmp_path: Path) -> None:
    raw = recalibrated(parent, tmp_path, recalibration=RecalibrationSettings(steps=0))
    x_BT = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    swapped_BT = x_BT[:, [2, 0, 1, 3, 4, 5, 6, 7]]
    with torch.no_grad():
        layer_one = [raw.decoder.trace(tokens, sites=("z",), layers=(0,)) for tokens in (x_BT, swapped_BT)]
        assert torch.allclose(layer_one[0]["z", 0][:, 3:], layer_one[1]["z", 0][:, 3:], atol=1e-6)
        with_rope = [parent.trace(tokens, sites=("z",), layers=(0,)) for tokens in (x_BT, swapped_BT)]
        assert not torch.allclose(with_rope[0]["z", 0][:, 3:], with_rope[1]["z", 0][:, 3:], atol=1e-2)


def test_all_arms_get_the_batches_a_shuffled_training_would_come_to_next(
    parent: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[np.ndarray]] = []
    honest = Batches.__call__

    def watched(self: Batches, indices_B: np.ndarray) -> Any:
        if self.shape[0] == 200:
            shown[-1].append(indices_B)
        return honest(self, indices_B)

    monkeypatch.setattr(Batches, "__call__", watched)
    for keep in (False, True):
        shown.append([])
        recalibrated(parent, tmp_path / str(keep), keep_rotary=keep)
    shown.append([])
    recalibrated(parent, tmp_path / "another seed", seed=1)
    schedule = BatchSchedule(ordering=Shuffled(), dominant_N=np.zeros(200, int), batch_size=8, seed=0)
    expected = [schedule.indices(SETTINGS.steps + step) for step in range(12)]
    assert np.array_equal(shown[0], expected) and np.array_equal(shown[1], expected)
    assert not np.array_equal(shown[2], expected)


def test_the_schedule_is_fresh_rewarmed_and_scaled(parent: Decoder, tmp_path: Path) -> None:
    """The recalibration written out again, to the bit: fresh optimizers, 3 of 12 steps of warmup, half the rates."""
    arm = recalibrated(parent, tmp_path)
    plain = Decoder(CONFIG.without_positions())
    plain.load_state_dict(parent.state_dict())
    short = dataclasses.replace(SETTINGS, steps=12, warmup_share=3 / 12, snapshots=2)
    optimizer, data = Optimizers(plain, short), corpus().train.tokens_NT
    schedule = BatchSchedule(ordering=Shuffled(), dominant_N=np.zeros(200, int), batch_size=8, seed=0)
    for step in range(12):
        tokens_BT = torch.from_numpy(data[schedule.indices(30 + step)].astype(np.int64))
        loss = F.cross_entropy(plain(tokens_BT)[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten())
        loss.backward()
        rate = learning_rate_factor(step, short)
        optimizer.step(muon_lr=rate * 0.01, adamw_lr=rate * 1.5e-3, loss=loss.detach())
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), arm.decoder.parameters(), strict=True))


# -- recovery ---------------------------------------------------------------------------------------------------------


def test_the_recovery_curve_doubles_and_starts_at_the_raw_drop(parent: Decoder, tmp_path: Path) -> None:
    raw = recalibrated(parent, tmp_path / "raw", recalibration=RecalibrationSettings(steps=0))
    arm = recalibrated(parent, tmp_path / "arm")
    assert tuple(raw.val_loss_nats) == (0,) and raw.steps == 0
    assert tuple(arm.val_loss_nats) == (0, 1, 2, 4, 8, 10, 12)
    assert arm.val_loss_nats[0] == raw.val_loss_nats[0] == pytest.approx(held_out_loss(raw.decoder), rel=1e-6)
    assert arm.parent_loss_nats == held_out_loss(parent)
    assert arm.val_loss_nats[12] == pytest.approx(held_out_loss(arm.decoder), rel=1e-6)
    assert arm.val_loss_nats[12] < arm.val_loss_nats[0]
    snapshot, step = read_snapshot(raw.snapshot)
    assert step == 0 and all(torch.equal(weights(parent)[name], new) for name, new in weights(snapshot).items())
    record = json.loads((tmp_path / "arm" / "recalibration.json").read_text())
    assert (record["steps"], record["keep_rotary"]) == (12, False)


def test_recovered_is_measured_against_the_parent(parent: Decoder, tmp_path: Path) -> None:
    arm = recalibrated(parent, tmp_path / "arm")
    short_of = arm.val_loss_nats[12] - arm.parent_loss_nats
    for margin, recovered in ((short_of + 1e-3, True), (short_of - 1e-3, False)):
        settings = dataclasses.replace(RECALIBRATION, recovered_within_nats=margin)
        assert recalibrated(parent, tmp_path / str(margin), recalibration=settings).recovered is recovered


def test_recovered_is_the_last_loss_and_not_the_best_on_the_way(parent: Decoder, tmp_path: Path) -> None:
    """At thirty times the learning rate the loss rises from that of the raw drop."""
    settings = dataclasses.replace(RECALIBRATION, lr_scale=30.0)
    losses = recalibrated(parent, tmp_path / "arm", recalibration=settings)
    best, last = min(losses.val_loss_nats.values()), losses.val_loss_nats[losses.steps]
    assert last > best + 0.1
    settings = dataclasses.replace(settings, recovered_within_nats=(best + last) / 2 - losses.parent_loss_nats)
    assert not recalibrated(parent, tmp_path / "again", recalibration=settings).recovered


@pytest.mark.parametrize(("margin", "rounds"), [(10.0, [6]), (-10.0, [6, 6, 12, 6])])
def test_an_arm_goes_on_in_doubling_rounds_until_it_has_recovered(
    parent: Decoder, tmp_path: Path, margin: float, rounds: list[int]
) -> None:
    """A margin that is always met ends after one round; one that never is, after as many steps as the training had."""
    settings = dataclasses.replace(
        RECALIBRATION, floor_steps=6, recovered_within_nats=margin, until_recovered=True, warmup_share=0.5
    )
    arm = recalibrated(parent, tmp_path, recalibration=settings)
    assert arm.steps == sum(rounds) and arm.recovered == (margin > 0)
    assert sorted(path.name for path in tmp_path.glob("round*")) == [
        f"round{sum(rounds[:k]):06d}" for k in range(len(rounds))
    ]
    assert arm.val_loss_nats[arm.steps] == pytest.approx(held_out_loss(arm.decoder), rel=1e-6)
    assert {sum(rounds[: k + 1]) for k in range(len(rounds))} <= set(arm.val_loss_nats)
    again = recalibrated(parent, tmp_path, recalibration=settings)  # finished rounds are read
    assert again.val_loss_nats == arm.val_loss_nats
    assert all(torch.equal(a, b) for a, b in zip(arm.decoder.parameters(), again.decoder.parameters(), strict=True))


def test_a_stopped_recalibration_continues(parent: Decoder, tmp_path: Path) -> None:
    whole = recalibrated(parent, tmp_path / "whole")
    answers = iter([False] * 4 + [True])
    with pytest.raises(TrainingInterrupted, match="after step 5"):
        recalibrated(parent, tmp_path / "parts", should_stop=lambda: next(answers))
    parts = recalibrated(parent, tmp_path / "parts")
    assert all(torch.equal(a, b) for a, b in zip(whole.decoder.parameters(), parts.decoder.parameters(), strict=True))
    assert parts.val_loss_nats == whole.val_loss_nats


def test_only_long_recalibrations_are_compiled(parent: Decoder) -> None:
    compiled = dataclasses.replace(SETTINGS, compile=True)

    def asks(settings: Any, steps: int) -> bool:
        return short_settings(settings, RecalibrationSettings(), steps, parent, corpus()).compile

    assert not asks(compiled, 100) and asks(compiled, 10**7) and not asks(SETTINGS, 10**7)
