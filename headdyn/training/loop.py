"""Training a decoder on a corpus: one loop for trainings and recalibrations, whose state survives a kill.

A training's step s is its s-th update, step 0 the model it began with. The batch and the learning rates of every
update are functions of its number alone (science.md §2, §4), so a state is weights, moments and the step.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import logging
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from headdyn.core.records import log_spaced, write_json
from headdyn.core.run_folder import read_metrics
from headdyn.core.store import StageInterruptedError
from headdyn.data.corpus import Corpus
from headdyn.models.checkpoints import load_snapshot, save_snapshot, snapshot_steps
from headdyn.models.decoder import Decoder
from headdyn.training.objective import (
    Batches,
    LossFunction,
    Precision,
    autocast,
    compiled_loss,
    evaluate,
    next_token_loss,
    reproducible,
)
from headdyn.training.optimizers import Optimizers
from headdyn.training.resume import MetricsFile, State, load_newest_state, save_state
from headdyn.training.settings import TrainSettings

log = logging.getLogger(__name__)

REPORT_SECONDS = 0.5  # how often the observer is called and, on a GPU, the device is read
_SMOOTHED = 20  # a Progress gives means over this many readings: steps on a CPU


class Schedule(Protocol):
    """Which sequences make up the batch of every step."""

    def indices(self, step: int) -> np.ndarray:
        """The sequence indices [B] of the batch at `step`, counted from 0."""
        ...


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a training stands, its last steps averaged. `gap_closed` = (ln V − loss)/(ln V − floor)."""

    step: int
    steps: int
    loss_nats: float
    tokens_per_second: float
    eta_seconds: float
    gap_closed: float | None


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """A finished training. `val_loss_nats` has the held-out loss of every evaluated step, those of snapshots included.

    `seconds` and `tokens_per_second` are of updates alone: no evaluation, no saving, no compilation.
    """

    decoder: Decoder
    steps: int
    val_loss_nats: Mapping[int, float]
    snapshots: Mapping[int, Path]
    seconds: float
    tokens_per_second: float
    compiled: bool

    @property
    def final_loss_nats(self) -> float:
        """The held-out loss of the trained model."""
        return self.val_loss_nats[self.steps]


class TrainingInterrupted(StageInterruptedError):
    """Training stopped because it was asked to. Its state is saved, and the same call goes on from there."""

    def __init__(self, step: int, folder: Path) -> None:
        super().__init__(f"training stopped after step {step} as asked; its state is in {folder}")
        self.step, self.folder = step, folder


class TrainingDiverged(RuntimeError):
    """The loss, a gradient or a weight is no finite number any more."""

    def __init__(self, step: int, what: str, muon_lr: float, adamw_lr: float, last_good: Path | None) -> None:
        super().__init__(
            f"training diverged at step {step}: {what} at learning rates {muon_lr:.3g} (Muon) and {adamw_lr:.3g} "
            f"(AdamW). The last good snapshot is {last_good or 'none'}. "
            "Lower train.muon_lr or train.adamw_lr, or raise train.warmup_share"
        )
        self.step, self.what, self.last_good = step, what, last_good


def learning_rate_factor(update: int, settings: TrainSettings) -> float:
    """The share of the full rates at an update, counted from 0: a linear warmup to 1, then a cosine to 0."""
    if update < settings.warmup_steps:
        return (update + 1) / settings.warmup_steps
    return 0.5 + 0.5 * math.cos(math.pi * (update - settings.warmup_steps) / (settings.steps - settings.warmup_steps))


def train(
    decoder: Decoder,
    corpus: Corpus,
    schedule: Schedule,
    settings: TrainSettings,
    *,
    folder: Path,
    precision: Precision,
    device: str,
    evaluate_at: Collection[int] = (),
    observer: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainingResult:
    """Train `decoder` in place, or go on with what an earlier call left in `folder`; a finished one is only read.

    The folder gets snapshots/, metrics.jsonl and, when done, result.json; while at work also resume/. The held-out loss
    (the first `eval_sequences` of the validation split) is taken at step 0, every `eval_every_steps`, at every
    snapshot, at the steps of `evaluate_at` and at the end. `observer` is called every half second, `should_stop` is
    asked after every step.

    Raises TrainingInterrupted when asked to stop, TrainingDiverged where numbers stop being finite, ValueError where
    the folder holds another training's state, OSError where the disk refuses (what was saved before stays).
    """
    training = _Training(decoder.to(device), corpus, schedule, settings, folder, precision, device)
    training.eval_steps |= set(evaluate_at)
    if not (folder / "result.json").exists():
        with _quiet_collector(device):
            training.run(observer, should_stop)
    return training.result()


class _Training:
    """One training in progress."""

    def __init__(
        self,
        decoder: Decoder,
        corpus: Corpus,
        schedule: Schedule,
        settings: TrainSettings,
        folder: Path,
        precision: Precision,
        device: str,
    ) -> None:
        self.decoder, self.schedule, self.settings = decoder, schedule, settings
        self.folder, self.precision, self.device = folder, precision, device
        self.on_gpu = torch.device(device).type != "cpu"
        masked = corpus.mask_documents
        self.batches = Batches(corpus.train, device, mask_documents=masked)
        self.held_out = Batches.prefix(corpus.val, settings.eval_sequences, device, mask_documents=masked)
        self.floor_nats = corpus.reference_nats.get("floor")
        self.tokens_per_step = settings.batch_size * self.batches.shape[1]
        self.snapshot_steps = set(log_spaced(settings.steps, settings.snapshots))
        self.eval_steps = self.snapshot_steps | set(range(0, settings.steps, settings.eval_every_steps))
        self.step = 0  # updates done
        self.seconds = 0.0  # spent on them
        self.unread: list[tuple[int, Tensor, Tensor]] = []  # step, loss and gradient norm that are still on the device
        self.losses: deque[float] = deque(maxlen=_SMOOTHED)
        self.pace: deque[tuple[int, float]] = deque(maxlen=_SMOOTHED)  # steps and seconds of the last readings

    def run(self, observer: Callable[[Progress], None] | None, should_stop: Callable[[], bool] | None) -> None:
        """Everything from the saved state, or from the start, to result.json."""
        self.optimizers = Optimizers(self.decoder, self.settings, compiled=self.settings.compile and self.on_gpu)
        restored = self.restore()
        self.loss_function: LossFunction = next_token_loss
        if self.settings.compile:
            self.loss_function = compiled_loss(self.decoder, self.batches, self.schedule.indices(0), self.precision)
        self.metrics = MetricsFile(self.folder / "metrics.jsonl", keep_through=self.step if restored else -1)
        try:
            if not restored:
                self.record()
            self.update_all(observer, should_stop)
        finally:
            self.metrics.close()
        compiled = self.loss_function is not next_token_loss
        speed = self.settings.steps * self.tokens_per_step / self.seconds
        write_json(
            self.folder / "result.json", {"seconds": self.seconds, "tokens_per_second": speed, "compiled": compiled}
        )
        shutil.rmtree(self.folder / "resume", ignore_errors=True)  # of no more use; what stays does no harm

    def update_all(self, observer: Callable[[Progress], None] | None, should_stop: Callable[[], bool] | None) -> None:
        self.clock = saved = reported = time.monotonic()
        while self.step < self.settings.steps:
            self.update()
            evaluate_now = self.step in self.eval_steps or self.step == self.settings.steps
            stop = should_stop is not None and should_stop() and self.step < self.settings.steps
            save_now = stop or time.monotonic() - saved >= self.settings.resume_every_seconds
            report_now = time.monotonic() - reported >= REPORT_SECONDS
            if evaluate_now or save_now or report_now or not self.on_gpu:
                self.read()
            if report_now:
                self.metrics.flush()
                if observer is not None:
                    observer(self.progress())
                reported = time.monotonic()
            if evaluate_now:
                self.record()
            if save_now:
                self.save()
                saved = time.monotonic()
            if stop:
                raise TrainingInterrupted(self.step, self.folder)

    def update(self) -> None:
        """One step. Nothing waits for the device here, and non-finite numbers move no weight."""
        factor = learning_rate_factor(self.step, self.settings)
        with reproducible(self.device):
            with autocast(self.precision, self.device):
                loss = self.loss_function(self.decoder, *self.batches(self.schedule.indices(self.step)))
            loss.backward()
        rates = {"muon_lr": factor * self.settings.muon_lr, "adamw_lr": factor * self.settings.adamw_lr}
        norm = self.optimizers.step(**rates, loss=loss.detach())
        self.step += 1
        self.unread.append((self.step, loss.detach(), norm))

    def read(self) -> None:
        """Fetch the losses and norms of the steps since the last reading into metrics.jsonl."""
        steps = [step for step, _, _ in self.unread]
        values = torch.stack([torch.stack((loss, norm)) for _, loss, norm in self.unread]).tolist()
        self.unread.clear()
        for step, (loss, norm) in zip(steps, values, strict=True):
            if not math.isfinite(loss) or not math.isfinite(norm):
                self.metrics.flush()
                raise self.diverged(step, f"loss {loss:g}, gradient norm {norm:g}")
            self.metrics.write(step, train_loss_nats=loss, grad_norm=norm)
            self.losses.append(loss)
        now = time.monotonic()
        self.pace.append((len(steps), now - self.clock))
        self.seconds += now - self.clock
        self.clock = now

    def record(self) -> None:
        """Held-out loss, learning rates and speed at this step, and the snapshot if it has one."""
        self.require_finite_weights()
        loss = evaluate(
            self.decoder,
            self.held_out,
            batch_size=self.settings.batch_size,
            precision=self.precision,
            loss_function=self.loss_function,
        )
        if not math.isfinite(loss):
            raise self.diverged(self.step, f"held-out loss {loss:g}")
        factor = learning_rate_factor(min(self.step, self.settings.steps - 1), self.settings)
        self.metrics.write(
            self.step,
            val_loss_nats=loss,
            muon_lr=factor * self.settings.muon_lr,
            adamw_lr=factor * self.settings.adamw_lr,
        )
        if self.pace:
            self.metrics.write(self.step, tokens_per_second=self.tokens_per_second())
        self.metrics.flush()
        if self.step in self.snapshot_steps:
            save_snapshot(self.folder / "snapshots", self.decoder, self.step)
        self.clock = time.monotonic()

    def save(self) -> None:
        """The whole state, for a later call to go on from; the metrics up to it reach the disk before it does."""
        self.require_finite_weights()
        self.metrics.flush(to_disk=True)
        model = {name: parameter.detach() for name, parameter in self.decoder.named_parameters()}
        state = State(self.step, self.seconds, self.recipe(), model, self.optimizers.state_dict())
        save_state(self.folder / "resume", state)
        self.clock = time.monotonic()

    @torch.no_grad()
    def restore(self) -> bool:
        """Whether an earlier call left a state, which is then in place."""
        state = load_newest_state(self.folder / "resume", self.recipe(), self.device)
        if state is None:
            return False
        for name, parameter in self.decoder.named_parameters():
            parameter.copy_(state.model[name])
        self.optimizers.load_state_dict(state.optimizers)
        self.step, self.seconds = state.step, state.seconds
        log.info("going on after step %d of %d", self.step, self.settings.steps)
        return True

    def recipe(self) -> dict[str, Any]:
        """What a state depends on beside its step, so that it is not continued as something else."""
        ends = np.stack([self.schedule.indices(0), self.schedule.indices(self.settings.steps - 1)])
        ignored = ("resume_every_seconds", "compile")
        settings = {name: v for name, v in dataclasses.asdict(self.settings).items() if name not in ignored}
        return json.loads(
            json.dumps(
                {
                    **{f"train.{name}": value for name, value in settings.items()},
                    **{f"model.{name}": value for name, value in dataclasses.asdict(self.decoder.config).items()},
                    "precision": self.precision,
                    "corpus shape": self.batches.shape,
                    "first and last batch": hashlib.sha256(ends.astype(np.int64).tobytes()).hexdigest()[:16],
                }
            )
        )

    def require_finite_weights(self) -> None:
        finite = torch.stack([parameter.detach().isfinite().all() for parameter in self.decoder.parameters()])
        if not finite.all().item():
            raise self.diverged(self.step, f"{int((~finite).sum())} parameters hold non-finite weights")

    def diverged(self, step: int, what: str) -> TrainingDiverged:
        factor = learning_rate_factor(max(step - 1, 0), self.settings)
        snapshots = snapshot_steps(self.folder / "snapshots")
        last_good = snapshots[max(snapshots)] if snapshots else None
        return TrainingDiverged(step, what, factor * self.settings.muon_lr, factor * self.settings.adamw_lr, last_good)

    def tokens_per_second(self) -> float:
        return sum(steps for steps, _ in self.pace) * self.tokens_per_step / sum(seconds for _, seconds in self.pace)

    def progress(self) -> Progress:
        loss, speed = sum(self.losses) / len(self.losses), self.tokens_per_second()
        random_nats = math.log(self.decoder.config.vocab_size)
        return Progress(
            step=self.step,
            steps=self.settings.steps,
            loss_nats=loss,
            tokens_per_second=speed,
            eta_seconds=(self.settings.steps - self.step) * self.tokens_per_step / speed,
            gap_closed=None if self.floor_nats is None else (random_nats - loss) / (random_nats - self.floor_nats),
        )

    def result(self) -> TrainingResult:
        """What the folder holds; the decoder gets the weights of the last snapshot."""
        facts = json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
        snapshots = snapshot_steps(self.folder / "snapshots")
        last, _ = load_snapshot(snapshots[self.settings.steps])
        self.decoder.load_state_dict(last.state_dict())
        return TrainingResult(
            decoder=self.decoder,
            steps=self.settings.steps,
            val_loss_nats=dict(read_metrics(self.folder / "metrics.jsonl")["val_loss_nats"]),
            snapshots=snapshots,
            **facts,
        )


@contextmanager
def _quiet_collector(device: str) -> Iterator[None]:
    """Keep Python's garbage collector from stalling a GPU's queue; a step leaves no reference cycles behind."""
    if torch.device(device).type == "cpu" or not gc.isenabled():
        yield
        return
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
