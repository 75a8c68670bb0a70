from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from headdyn.core.run_folder import read_metrics
from headdyn.core.store import StageInterruptedError
from headdyn.models.checkpoints.snapshots import read_snapshot, snapshot_steps
from headdyn.training import loop, next_token, resume
from headdyn.training.loop import TrainingDiverged, TrainingInterrupted, TrainingProgress, learning_rate_factor
from headdyn.training.objective import Batches, evaluate
from headdyn.training.optimizers import Optimizers
from headdyn.training.settings import TrainSettings
from tests.training.tiny import CONFIG, SETTINGS, SNAPSHOTS, Drawn, corpus, decoder, trained, weights


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class StopAfter:
    """A should_stop that says yes when it has been asked so often."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


# -- the rates --------------------------------------------------------------------------------------------------------


def test_learning_rate_by_hand() -> None:
    settings = dataclasses.replace(SETTINGS, steps=12, warmup_share=4 / 12)
    factors = [learning_rate_factor(update, settings) for update in range(12)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0 and factors[8] == pytest.approx(0.5)  # the cosine's start and middle
    assert factors[11] == pytest.approx((1 + math.cos(math.pi * 7 / 8)) / 2)
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[4:]))
    without = dataclasses.replace(SETTINGS, steps=12, warmup_share=0.0)
    assert learning_rate_factor(0, without) == 1.0


def test_a_warmup_that_fills_the_training_never_divides_by_zero() -> None:
    settings = dataclasses.replace(SETTINGS, steps=4, warmup_share=1.0)
    assert [learning_rate_factor(update, settings) for update in range(4)] == [0.25, 0.5, 0.75, 1.0]


# -- one training -----------------------------------------------------------------------------------------------------


def test_the_loop_is_these_lines(tmp_path: Path) -> None:
    """The whole loop written out again with the package's parts, to the bit."""
    result = trained(tmp_path)
    plain, schedule, data = decoder(), Drawn(), corpus().train.tokens_NT
    optimizer = Optimizers(plain, SETTINGS)
    losses, norms = [], []
    for update in range(SETTINGS.steps):
        tokens_BT = torch.from_numpy(data[schedule.indices(update)].astype(np.int64))
        loss = F.cross_entropy(plain(tokens_BT)[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten())
        loss.backward()
        rate = learning_rate_factor(update, SETTINGS)
        norms.append(optimizer.step(muon_lr=rate * 0.02, adamw_lr=rate * 3e-3, loss=loss.detach()).item())
        losses.append(loss.item())
    assert same_bits(weights(result.decoder), weights(plain))
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics["train_loss_nats"] == list(enumerate(losses, start=1))
    assert metrics["grad_norm"] == list(enumerate(norms, start=1))


def test_what_a_training_leaves(tmp_path: Path) -> None:
    result = trained(tmp_path)
    assert tuple(snapshot_steps(tmp_path / "snapshots")) == tuple(result.snapshots) == SNAPSHOTS
    assert tuple(result.val_loss_nats) == (0, 1, 3, 10, 20, 30)
    assert result.val_loss_nats[result.steps] < 2.1 < 2.7 < result.val_loss_nats[0]  # ln 16 is 2.77
    assert result.compiled is False and result.seconds > 0 and result.tokens_per_second > 0
    held_out = Batches.prefix(corpus().val, 20, "cpu", mask_documents=False)
    for step, path in result.snapshots.items():
        snapshot, at = read_snapshot(path)
        assert at == step and snapshot.config == CONFIG
        loss = evaluate(snapshot, held_out, batch_size=8, precision="fp32")
        assert loss == pytest.approx(result.val_loss_nats[step], rel=1e-6)
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics["val_loss_nats"] == list(result.val_loss_nats.items())
    assert dict(metrics["muon_lr"])[10] == pytest.approx(0.02 * learning_rate_factor(10, SETTINGS))
    assert dict(metrics["adamw_lr"])[0] == pytest.approx(3e-3 / 5)
    assert [step for step, _ in metrics["tokens_per_second"]] == [1, 3, 10, 20, 30]
    assert not (tmp_path / "resume").exists()


def test_a_finished_training_is_only_read(tmp_path: Path) -> None:
    first = trained(tmp_path)
    changed = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = trained(tmp_path, should_stop=lambda: pytest.fail("it trained again"))
    assert same_bits(weights(first.decoder), weights(again.decoder))
    assert (again.val_loss_nats, again.seconds) == (first.val_loss_nats, first.seconds)
    assert changed == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


def test_the_observer_sees_where_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    seen: list[TrainingProgress] = []
    trained(tmp_path, observer=seen.append)
    assert [progress.step for progress in seen] == list(range(1, 31))
    losses = [value for _, value in read_metrics(tmp_path / "metrics.jsonl")["train_loss_nats"]]
    last = seen[-1]
    assert last.loss_nats == pytest.approx(np.mean(losses[-20:]))
    assert last.gap_closed == pytest.approx((math.log(16) - last.loss_nats) / (math.log(16) - 0.75))
    assert last.eta_seconds == 0 and seen[9].eta_seconds > 0 and seen[9].tokens_per_second > 0
    # Where not every token may come, guessing loses less than ln V: the gap begins at the corpus's own line.
    few = corpus(reference_nats={"random": 2.1, "floor": 0.75})
    trained(tmp_path / "few", corpus=few, observer=seen.append)
    assert seen[-1].gap_closed == pytest.approx((2.1 - seen[-1].loss_nats) / (2.1 - 0.75))
    trained(tmp_path / "blind", corpus=corpus(reference_nats={}), observer=seen.append)
    assert seen[-1].gap_closed is None


def test_reports_are_half_a_second_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.arange(0, 1e4, 0.04))
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)))
    seen: list[TrainingProgress] = []
    trained(tmp_path, observer=seen.append)
    assert 0 < len(seen) < 30 / 4


# -- continuing -------------------------------------------------------------------------------------------------------


def test_a_stop_finishes_the_step_and_continues_to_the_same_bits(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    with pytest.raises(TrainingInterrupted, match="after step 13") as stop:
        trained(tmp_path / "parts", should_stop=StopAfter(13))
    assert isinstance(stop.value, StageInterruptedError) and stop.value.step == 13
    assert (tmp_path / "parts" / "resume" / "state000013.pt").exists()
    with pytest.raises(TrainingInterrupted, match="after step 20"):
        trained(tmp_path / "parts", should_stop=StopAfter(7))
    parts = trained(tmp_path / "parts", seed=99)  # whatever the decoder held before
    assert same_bits(weights(whole.decoder), weights(parts.decoder))
    assert parts.val_loss_nats == whole.val_loss_nats
    for name in ("train_loss_nats", "grad_norm", "val_loss_nats", "muon_lr", "adamw_lr"):
        assert (
            read_metrics(tmp_path / "parts" / "metrics.jsonl")[name]
            == read_metrics(tmp_path / "whole" / "metrics.jsonl")[name]
        )
    for step in SNAPSHOTS:
        mine, theirs = (read_snapshot(result.snapshots[step])[0] for result in (parts, whole))
        assert same_bits(weights(mine), weights(theirs))


def test_a_stop_at_the_last_step_is_a_finished_training(tmp_path: Path) -> None:
    assert trained(tmp_path, should_stop=StopAfter(30)).steps == 30


@pytest.mark.parametrize("lost", ["muon", "adamw", "step"])
def test_a_state_that_lacks_something_does_not_continue_to_the_same_bits(
    tmp_path: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutants of the bitwise test: each loses one part of the state on the way."""
    whole = trained(tmp_path / "whole")
    with pytest.raises(TrainingInterrupted):
        trained(tmp_path / "parts", should_stop=StopAfter(13))
    honest = Optimizers.load_state_dict

    def forgetful(self: Optimizers, state: dict[str, Any]) -> None:
        fresh = Optimizers(decoder(), SETTINGS).state_dict()
        honest(self, {**state, **{name: fresh[name] for name in (lost,) if name in fresh}})

    monkeypatch.setattr(Optimizers, "load_state_dict", forgetful)
    if lost == "step":
        path = tmp_path / "parts" / "resume" / "state000013.pt"
        torch.save({**torch.load(path, weights_only=True), "step": 12}, path)
    assert not same_bits(weights(trained(tmp_path / "parts").decoder), weights(whole.decoder))


def test_a_sigterm_finishes_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))

    def terminate(progress: TrainingProgress) -> None:
        if progress.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with pytest.raises(TrainingInterrupted, match="after step 8"):
            trained(tmp_path, observer=terminate, should_stop=lambda: bool(asked))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (tmp_path / "resume" / "state000008.pt").exists()


KILLED = """
import dataclasses, sys, torch
from pathlib import Path
from tests.training.tiny import SETTINGS, trained
torch.set_num_threads(1)
settings = dataclasses.replace(SETTINGS, steps=150, resume_every_seconds=0.05)
trained(Path(sys.argv[1]), settings)
"""


def test_after_kill_9_it_continues_to_the_same_bits(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, steps=150, resume_every_seconds=0.05)
    folder = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], env=environment)
    try:
        wait_for(lambda: len(list((folder / "resume").glob("state*.pt"))) >= 2)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (folder / "result.json").exists()
    newest = max(int(path.stem[5:]) for path in (folder / "resume").glob("state*.pt"))
    with (folder / "metrics.jsonl").open("a") as file:  # what it may have written after its last state, and a torn line
        file.write(f'{{"step": {newest + 1}, "name": "train_loss_nats", "value": 99.0}}\n{{"step": {newest + 2}, "na')
    continued = trained(folder, settings)
    whole = trained(tmp_path / "whole", settings)
    assert same_bits(weights(continued.decoder), weights(whole.decoder))
    for name in ("train_loss_nats", "val_loss_nats"):
        assert read_metrics(folder / "metrics.jsonl")[name] == read_metrics(tmp_path / "whole" / "metrics.jsonl")[name]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


def two_states(folder: Path) -> tuple[Path, Path]:
    """A training stopped after step 13, with the states of steps 9 and 13."""
    for steps in (9, 4):
        with pytest.raises(TrainingInterrupted):
            trained(folder, should_stop=StopAfter(steps))
    return folder / "resume" / "state000009.pt", folder / "resume" / "state000013.pt"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, empty])
def test_a_damaged_state_gives_way_to_the_one_before(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    whole = trained(tmp_path / "whole")
    _, newest = two_states(tmp_path / "parts")
    damage(newest)
    with caplog.at_level(logging.INFO):
        parts = trained(tmp_path / "parts")
    assert "state000013.pt is damaged" in caplog.text and "going on after step 9 of 30" in caplog.text
    assert same_bits(weights(parts.decoder), weights(whole.decoder)) and parts.val_loss_nats == whole.val_loss_nats


def test_with_every_state_damaged_it_starts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = trained(tmp_path / "whole")
    for path in two_states(tmp_path / "parts"):
        truncate(path)
    parts = trained(tmp_path / "parts")
    assert caplog.text.count("is damaged") == 2
    assert same_bits(weights(parts.decoder), weights(whole.decoder)) and parts.val_loss_nats == whole.val_loss_nats


def test_only_two_states_are_kept(tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        trained(tmp_path, dataclasses.replace(SETTINGS, resume_every_seconds=0.0), should_stop=StopAfter(7))
    assert sorted(path.name for path in (tmp_path / "resume").iterdir()) == ["state000006.pt", "state000007.pt"]


def test_another_trainings_state_is_refused(tmp_path: Path) -> None:
    two_states(tmp_path)
    with pytest.raises(ValueError, match=r"'train\.muon_lr': 0\.02.*this one has .*0\.01"):
        trained(tmp_path, dataclasses.replace(SETTINGS, muon_lr=0.01))
    with pytest.raises(ValueError, match="first and last batch"):
        trained(tmp_path, schedule=Drawn(seed=5))


# -- faults -----------------------------------------------------------------------------------------------------------


def test_divergence_names_the_step_the_rates_and_the_last_good_snapshot(tmp_path: Path) -> None:
    absurd = dataclasses.replace(SETTINGS, adamw_lr=1e38, warmup_share=0.0)
    with pytest.raises(TrainingDiverged) as fault:
        trained(tmp_path, absurd)
    message = str(fault.value)
    assert f"step {fault.value.step}" in message and "0.02 (Muon)" in message and "1e+38 (AdamW)" in message
    assert "Lower train.muon_lr or train.adamw_lr" in message
    snapshots = snapshot_steps(tmp_path / "snapshots")
    assert fault.value.last_good == snapshots[max(snapshots)]
    for path in snapshots.values():
        assert all(weight.isfinite().all() for weight in weights(read_snapshot(path)[0]).values())
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert math.isfinite(json.loads(line)["value"])
    assert not (tmp_path / "result.json").exists()


def test_a_non_finite_loss_moves_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder()
    honest, calls = next_token.next_token_loss, iter(range(10**6))

    def burst(*arguments: Any) -> torch.Tensor:
        return honest(*arguments) * (math.nan if next(calls) == 5 else 1.0)

    monkeypatch.setattr(next_token, "next_token_loss", burst)
    with pytest.raises(TrainingDiverged, match="train_loss_nats nan") as fault:
        trained(tmp_path, dataclasses.replace(SETTINGS, eval_sequences=4), decoder=model)
    with pytest.raises(TrainingInterrupted):
        trained(tmp_path / "before", should_stop=StopAfter(fault.value.step - 1))
    state = torch.load(tmp_path / "before" / "resume" / f"state{fault.value.step - 1:06d}.pt", weights_only=True)
    assert same_bits(weights(model), state["model"])


def test_a_full_disk_leaves_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = torch.save

    def into_a_full_disk(content: dict[str, Any], file: Any) -> None:
        if content["step"] < 6:
            honest(content, file)
        else:
            with open("/dev/full", "wb") as full:  # noqa: PTH123
                honest(content, full)

    monkeypatch.setattr(resume.torch, "save", into_a_full_disk)
    with pytest.raises(OSError, match="No space left"):
        trained(tmp_path, dataclasses.replace(SETTINGS, resume_every_seconds=0.0))
    assert sorted(path.name for path in (tmp_path / "resume").iterdir()) == ["state000004.pt", "state000005.pt"]
    monkeypatch.undo()
    whole = trained(tmp_path / "whole")
    assert same_bits(weights(trained(tmp_path).decoder), weights(whole.decoder))


def test_more_sequences_asked_for_than_there_are_is_all_there_are(tmp_path: Path) -> None:
    settings: TrainSettings = dataclasses.replace(
        SETTINGS, steps=2, snapshots=2, warmup_share=0.0, eval_sequences=10**6
    )
    result = trained(tmp_path, settings)
    everything = Batches(corpus().val, "cpu", mask_documents=False)
    assert result.val_loss_nats[result.steps] == evaluate(result.decoder, everything, batch_size=8, precision="fp32")
