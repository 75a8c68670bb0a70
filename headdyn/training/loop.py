"""The training loop: updates, learning rates, metrics.jsonl, and the state from which a stopped training continues.

A `Task` says what is trained: the losses of an update, and what is measured and saved on the way (the usual one is in
headdyn/training/next_token.py). Updates are numbered from 0; step s is the model after s updates, step 0 the untrained
one. Batch and learning rates of an update depend on its number alone (science.md §2, §4), so the whole state of a
training consists of its weights, its optimizers' moments and the step.
"""

import gc
import json
import logging
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from headdyn.core.run_folder import METRICS
from headdyn.core.store import StageInterruptedError
from headdyn.models.decoder import Decoder
from headdyn.training.objective import Precision, autocast, reproducible
from headdyn.training.optimizers import Optimizers
from headdyn.training.replicas import add_up, from_process_0
from headdyn.training.resume import MetricsFile, State, load_newest_state, save_state
from headdyn.training.settings import TrainSettings

log = logging.getLogger(__name__)

REPORT_SECONDS = 0.5  # how often the observer is called and, on a GPU, the device is read
_SMOOTHED = 20  # readings that a TrainingProgress averages over; on a CPU each step is read


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """How far a training is, averaged over its last steps.

    `gap_closed` = (random − loss)/(random − floor), from guessing uniformly among what may come, the corpus's
    `random_nats`, to the exact floor; None where one of the two is not known.
    """

    step: int
    steps: int
    loss_nats: float
    tokens_per_second: float
    eta_seconds: float
    gap_closed: float | None


Observer = Callable[[TrainingProgress], None]  # is called about twice a second


class TrainingInterrupted(StageInterruptedError):
    """Training stopped because it was asked to. Its state is saved, and the same call continues from there."""

    def __init__(self, step: int, folder: Path) -> None:
        super().__init__(f"training stopped after step {step} as asked; its state is in {folder}")
        self.step, self.folder = step, folder


class TrainingDiverged(RuntimeError):
    """A loss, a gradient or a weight is no longer finite."""

    def __init__(
        self, step: int, what: str, rates: Mapping[str, float], last_good: Path | None, settings_group: str
    ) -> None:
        super().__init__(
            f"training diverged at step {step}: {what} at learning rates {rates['muon_lr']:.3g} (Muon) and "
            f"{rates['adamw_lr']:.3g} (AdamW). The last good snapshot is {last_good or 'none'}. Lower "
            f"{settings_group}.muon_lr or {settings_group}.adamw_lr, or raise {settings_group}.warmup_share"
        )
        self.step, self.what, self.last_good = step, what, last_good


def learning_rate_factor(update: int, settings: TrainSettings) -> float:
    """Learning rate at an update, counted from 0, over the full rate: a linear warmup to 1, then a cosine to 0."""
    if update < settings.warmup_steps:
        return (update + 1) / settings.warmup_steps
    return 0.5 + 0.5 * math.cos(math.pi * (update - settings.warmup_steps) / (settings.steps - settings.warmup_steps))


class Task(Protocol):
    """What is trained and how: the losses of every update, and what to measure and to save on the way."""

    decoder: Decoder
    settings: TrainSettings
    folder: Path
    precision: Precision
    device: str
    settings_group: str  # the configuration group of the learning rates, for the message of TrainingDiverged
    tokens_per_step: int
    parts: int = 1  # the number of parts in which this device processes an update's batch, one after another
    milestones: Collection[int]  # the steps of `visit`; step 0 is the untrained model
    random_nats: float | None = None  # the loss of guessing uniformly among what may come, if it is known
    floor_nats: float | None = None  # the lowest possible loss, if it is known

    def recipe(self) -> Mapping[str, Any]:
        """What a saved state depends on, apart from the step. A state with another recipe is not continued."""

    def prepare(self) -> None:
        """Prepare the first update of this call, which may continue an earlier one."""
        return

    def losses(self, update: int, part: int) -> Mapping[str, Float[Tensor, ""]]:
        """The losses of a part of an update, in nats, by their names in metrics.jsonl.

        They are summed over the parts of an update. Training minimises the sum of all losses and shows the first.
        """

    def visit(self, step: int) -> Mapping[str, float]:
        """Save or measure the model after `step` updates; returns numbers for metrics.jsonl."""

    def last_saved(self) -> Path | None:
        """The newest model that `visit` saved, for the message of TrainingDiverged."""

    def finish(self, seconds: float) -> None:
        """Record that the training is complete. `seconds` is the time for updates alone."""


def run(task: Task, observer: Observer | None = None, should_stop: Callable[[], bool] | None = None) -> None:
    """Train the task's decoder in place, from the start or from the state that an earlier call saved in its folder.

    The folder gets metrics.jsonl, what the task saves and, while at work, resume/. `observer` is called every half
    second, `should_stop` is asked after every step.

    Raises TrainingInterrupted when asked to stop, TrainingDiverged where numbers stop being finite, ValueError where
    the folder holds another training's state, OSError where the disk fails (what was saved before stays).
    """
    with _quiet_collector(task.device):
        _Loop(task).run(observer, should_stop)


def train_along(task: Task) -> None:
    """On any process but 0: make the updates of the training that process 0 makes with `run`, and write nothing."""
    with _quiet_collector(task.device):
        _Loop(task).train_along()


class _Loop:
    def __init__(self, task: Task) -> None:
        self.task, self.decoder, self.settings, self.folder = task, task.decoder, task.settings, task.folder
        self.on_gpu = torch.device(task.device).type != "cpu"
        self.step = 0  # updates done
        self.seconds = 0.0  # spent on them
        self.unread: list[tuple[int, list[str], Tensor]] = []  # step, names and numbers; these are still on the device
        self.shown_losses: deque[float] = deque(maxlen=_SMOOTHED)
        self.pace: deque[tuple[int, float]] = deque(maxlen=_SMOOTHED)  # steps and seconds of the last readings
        self.optimizers = Optimizers(self.decoder, self.settings, compiled=self.settings.compile and self.on_gpu)

    def run(self, observer: Observer | None, should_stop: Callable[[], bool] | None) -> None:
        state = self.restore()
        self.task.prepare()
        self.metrics = MetricsFile(self.folder / METRICS, state.metrics["bytes"] if state else 0)
        try:
            if state is None and self.step in self.task.milestones:
                self.visit()
            self.update_all(observer, should_stop)
        finally:
            self.metrics.close()
        self.task.finish(self.seconds)
        shutil.rmtree(self.folder / "resume", ignore_errors=True)  # no longer needed, and harmless if it stays

    def train_along(self) -> None:
        """Do all updates from the state of process 0 on, until that process stops."""
        self.restore()
        self.task.prepare()
        while self.step < self.settings.steps:
            self.update()
            self.unread.clear()
            if from_process_0(lambda: False):
                return

    def update_all(self, observer: Observer | None, should_stop: Callable[[], bool] | None) -> None:
        self.clock = saved = reported = time.monotonic()
        while self.step < self.settings.steps:
            self.update()
            stop = should_stop is not None and should_stop() and self.step < self.settings.steps
            from_process_0(partial(bool, stop))
            save_now = stop or time.monotonic() - saved >= self.settings.resume_every_seconds
            report_now = time.monotonic() - reported >= REPORT_SECONDS
            last = self.step == self.settings.steps
            if last or self.step in self.task.milestones or save_now or report_now or not self.on_gpu:
                self.read()
            if report_now:
                self.metrics.flush()
                if observer is not None:
                    observer(self.progress())
                reported = time.monotonic()
            if self.step in self.task.milestones:
                self.visit()
            if save_now:
                self.save_state()
                saved = time.monotonic()
            if stop:
                raise TrainingInterrupted(self.step, self.folder)

    def update(self) -> None:
        """Do one update, without waiting for the device. If numbers are not finite, no weight changes."""
        totals: dict[str, Tensor] = {}
        with reproducible(self.task.device):
            for part in range(self.task.parts):
                with autocast(self.task.precision, self.task.device):
                    losses = self.task.losses(self.step, part)
                torch.stack([*losses.values()]).sum().backward()
                totals = {name: totals.get(name, 0) + loss.detach() for name, loss in losses.items()}
        values = torch.stack([*totals.values()])
        add_up([*(p.grad for p in self.optimizers.parameters if p.grad is not None), values])
        norm = self.optimizers.step(**self.rates(self.step), loss=values.sum())
        self.step += 1
        self.unread.append((self.step, [*totals, "grad_norm"], torch.cat([values, norm[None]])))

    def rates(self, update: int) -> dict[str, float]:
        factor = learning_rate_factor(update, self.settings)
        return {"muon_lr": factor * self.settings.muon_lr, "adamw_lr": factor * self.settings.adamw_lr}

    def read(self) -> None:
        """Write the numbers of the steps since the last reading to metrics.jsonl; waits for the device."""
        values = iter(torch.cat([numbers for _, _, numbers in self.unread]).tolist())
        for step, names, _ in self.unread:
            numbers = dict(zip(names, values, strict=False))  # names come first: zip would take one value more
            self.require_finite(step, numbers)
            self.metrics.write(step, **numbers)
            self.shown_losses.append(numbers[names[0]])
        now = time.monotonic()
        self.pace.append((len(self.unread), now - self.clock))
        self.seconds += now - self.clock
        self.clock = now
        self.unread.clear()

    def visit(self) -> None:
        """Let the task save and measure at this step; writes its numbers with the learning rates and the speed."""
        self.require_finite_weights()
        if measured := self.task.visit(self.step):
            self.require_finite(self.step, measured)
            self.metrics.write(self.step, **measured, **self.rates(min(self.step, self.settings.steps - 1)))
            if self.pace:
                self.metrics.write(self.step, tokens_per_second=self.tokens_per_second())
        self.metrics.flush()
        self.clock = time.monotonic()

    def save_state(self) -> None:
        """Save the whole state, from which a later call continues, after the metrics up to this step."""
        self.require_finite_weights()
        self.metrics.flush(to_disk=True)
        model = {name: parameter.detach() for name, parameter in self.decoder.named_parameters()}
        state = State(
            self.step, self.seconds, self.recipe(), model, self.optimizers.state_dict(), self.metrics.content()
        )
        save_state(self.folder / "resume", state)
        self.clock = time.monotonic()

    @torch.no_grad()
    def restore(self) -> State | None:
        """Load the state that an earlier call saved, and return it; None if there was none."""
        folder, metrics = self.folder / "resume", self.folder / METRICS
        state = from_process_0(lambda: load_newest_state(folder, self.recipe(), self.task.device, metrics))
        if state is None:
            return None
        for name, parameter in self.decoder.named_parameters():
            parameter.copy_(state.model[name])
        self.optimizers.load_state_dict(state.optimizers)
        self.step, self.seconds = state.step, state.seconds
        log.info("going on after step %d of %d", self.step, self.settings.steps)
        return state

    def recipe(self) -> dict[str, Any]:
        return json.loads(json.dumps(self.task.recipe()))  # as it would be read from a file: lists for tuples

    def require_finite(self, step: int, numbers: Mapping[str, float]) -> None:
        if not all(map(math.isfinite, numbers.values())):
            self.metrics.flush()
            raise self.diverged(step, ", ".join(f"{name} {value:g}" for name, value in numbers.items()))

    def require_finite_weights(self) -> None:
        finite = torch.stack([parameter.detach().isfinite().all() for parameter in self.decoder.parameters()])
        if not finite.all().item():
            raise self.diverged(self.step, f"{int((~finite).sum())} parameters hold non-finite weights")

    def diverged(self, step: int, what: str) -> TrainingDiverged:
        rates = self.rates(max(step - 1, 0))
        return TrainingDiverged(step, what, rates, self.task.last_saved(), self.task.settings_group)

    def tokens_per_second(self) -> float:
        steps, seconds = (sum(column) for column in zip(*self.pace, strict=True))
        return steps * self.task.tokens_per_step / seconds

    def progress(self) -> TrainingProgress:
        loss, speed = sum(self.shown_losses) / len(self.shown_losses), self.tokens_per_second()
        random_nats, floor_nats = self.task.random_nats, self.task.floor_nats
        gap_closed = None
        if random_nats is not None and floor_nats is not None:
            gap_closed = (random_nats - loss) / (random_nats - floor_nats)
        return TrainingProgress(
            step=self.step,
            steps=self.settings.steps,
            loss_nats=loss,
            tokens_per_second=speed,
            eta_seconds=(self.settings.steps - self.step) * self.task.tokens_per_step / speed,
            gap_closed=gap_closed,
        )


@contextmanager
def _quiet_collector(device: str) -> Iterator[None]:
    """Switch Python's garbage collector off, which would stall a GPU's queue; updates leave no reference cycles."""
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
