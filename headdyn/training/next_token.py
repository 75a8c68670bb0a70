"""Training on a corpus: a decoder learns to predict the next token, with held-out losses and snapshots in between."""

import dataclasses
import hashlib
import math
import signal
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from headdyn.core.json_files import write_json
from headdyn.core.records import log_spaced
from headdyn.core.run_folder import METRICS, read_metrics
from headdyn.core.stopping import SIGNALS
from headdyn.data.corpus import Corpus
from headdyn.models.checkpoints.snapshots import read_snapshot, save_snapshot, snapshot_steps
from headdyn.models.decoder import Decoder
from headdyn.training.clamp import clamped_loss
from headdyn.training.loop import Observer, Task, run, train_along
from headdyn.training.objective import Batches, LossFunction, Precision, compiled_loss, evaluate, next_token_loss
from headdyn.training.replicas import from_process_0, join, leave
from headdyn.training.settings import TrainSettings, process, processes


class Schedule(Protocol):
    """Says which sequences make up the batch of each update."""

    def indices(self, step: int) -> np.ndarray:
        """The sequence indices [B] of the batch of update `step`, counted from 0."""


@dataclass
class NextToken(Task):
    """Trains `decoder` in place, on the batches that `schedule` makes of the corpus.

    Writes snapshots/ and metrics.jsonl to the folder, resume/ during training and result.json at its end. The held-out
    loss, on the first `eval_sequences` of the validation split, is measured at step 0, every `eval_every_steps`, at
    every snapshot, at the steps `evaluate_at` and at the end.
    """

    decoder: Decoder
    corpus: Corpus
    schedule: Schedule
    settings: TrainSettings
    folder: Path
    precision: Precision
    device: str
    evaluate_at: Collection[int] = ()

    settings_group = "train"

    def __post_init__(self) -> None:
        self.decoder.to(self.device)
        masked, settings = self.corpus.mask_documents, self.settings
        self.batches = Batches(self.corpus.train, self.device, mask_documents=masked)
        self.held_out = Batches.prefix(self.corpus.val, settings.eval_sequences, self.device, mask_documents=masked)
        self.tokens_per_step, self.parts = settings.batch_size * self.batches.shape[1], settings.accumulate
        self.random_nats, self.floor_nats = self.corpus.random_nats, self.corpus.reference_nats.get("floor")
        self.snapshot_steps = set(log_spaced(settings.steps, settings.snapshots))
        evaluated = {*range(0, settings.steps, settings.eval_every_steps), *self.evaluate_at}
        self.milestones = self.snapshot_steps | evaluated
        clamped = settings.clamp.pattern != "none"
        self.clamped_loss: LossFunction | None = clamped_loss(settings.clamp) if clamped else None
        self.free_loss: LossFunction = next_token_loss

    def recipe(self) -> Mapping[str, Any]:
        ends = np.stack([self.schedule.indices(0), self.schedule.indices(self.settings.steps - 1)])
        settings = dataclasses.asdict(self.settings)
        for name in ("resume_every_seconds", "compile", "accumulate"):
            del settings[name]
        return {
            **{f"train.{name}": value for name, value in settings.items()},
            **{f"model.{name}": value for name, value in dataclasses.asdict(self.decoder.config).items()},
            "precision": self.precision,
            "corpus shape": self.batches.shape,
            "first and last batch": hashlib.sha256(ends.astype(np.int64).tobytes()).hexdigest()[:16],
        }

    def prepare(self) -> None:
        if self.settings.compile and self.clamped_loss is None:
            self.free_loss = compiled_loss(self.decoder, self.batches, self.share(0, 0)[0], self.precision)

    def loss_function(self, step: int) -> LossFunction:
        """The loss of the model after `step` updates: with heads held once the clamp has begun."""
        has_begun = step >= self.settings.clamp.from_step
        return self.clamped_loss if self.clamped_loss is not None and has_begun else self.free_loss

    def losses(self, update: int, part: int) -> Mapping[str, Tensor]:
        part_B, share_of_targets = self.share(update, part)
        return {"train_loss_nats": share_of_targets * self.loss_function(update)(self.decoder, *self.batches(part_B))}

    def share(self, update: int, part: int) -> tuple[np.ndarray, float]:
        """The sequences [B] of a part of this process's share of the batch, and their share of the batch's targets.

        The whole batch does not depend on the number of processes.
        """
        batch_B = self.schedule.indices(update)
        first = (process() * self.parts + part) * self.settings.part_size
        part_B = batch_B[first : first + self.settings.part_size]
        return part_B, self.batches.num_targets(part_B) / self.batches.num_targets(batch_B)

    def visit(self, step: int) -> Mapping[str, float]:
        loss = evaluate(
            self.decoder,
            self.held_out,
            batch_size=self.settings.part_size,
            precision=self.precision,
            loss_function=self.loss_function(step),
        )
        if step in self.snapshot_steps and math.isfinite(loss):
            save_snapshot(self.folder / "snapshots", self.decoder, step)
        return {"val_loss_nats": loss}

    def last_saved(self) -> Path | None:
        snapshots = snapshot_steps(self.folder / "snapshots")
        return snapshots[max(snapshots)] if snapshots else None

    def finish(self, seconds: float) -> None:
        """Write result.json: seconds and speed of the updates alone, without evaluation, saving and compilation."""
        facts = {
            "seconds": seconds,
            "tokens_per_second": self.settings.steps * self.tokens_per_step / seconds,
            "compiled": self.free_loss is not next_token_loss,
        }
        write_json(self.folder / "result.json", facts)


def train(
    task: NextToken, observer: Observer | None = None, should_stop: Callable[[], bool] | None = None
) -> dict[int, float]:
    """Train, or continue what an earlier call began in the same folder; a finished training is only read.

    Returns the held-out loss in nats at every evaluated step, among them all snapshots. `observer`, `should_stop` and
    errors as in `headdyn.training.loop.run`.
    """
    if not (task.folder / "result.json").exists():
        if processes() > 1:
            join()
            from_process_0(lambda: {field.name: getattr(task, field.name) for field in dataclasses.fields(task)})
        run(task, observer, should_stop)
    last, _ = read_snapshot(snapshot_steps(task.folder / "snapshots")[task.settings.steps])
    task.decoder.load_state_dict(last.state_dict())
    return dict(read_metrics(task.folder / METRICS)["val_loss_nats"])


def help_process_0() -> None:
    """What every process but 0 does during a run: take part in each training until process 0 ends the last."""
    join()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # process 0 tells when to stop
    while True:
        try:
            fields: dict[str, Any] | None = from_process_0(dict)
        except RuntimeError:
            return  # process 0 has ended and reported why
        if fields is None:
            leave()
            return
        train_along(NextToken(**fields))
