"""DroPE: RoPE is removed from a trained decoder, which is then recalibrated (science.md §5; arXiv 2512.12167).

The control `rope_control` is recalibrated in the same way with RoPE kept, which shows the effect of more training
alone.
"""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headdyn.core.json_files import write_json
from headdyn.data.corpus import Corpus
from headdyn.data.ordering import BatchSchedule, Shuffled
from headdyn.models.checkpoints.snapshots import save_snapshot
from headdyn.models.decoder import Decoder
from headdyn.training.loop import Observer
from headdyn.training.next_token import NextToken, train
from headdyn.training.objective import Batches, Precision, evaluate
from headdyn.training.settings import RecalibrationSettings, TrainSettings

# Parameters × tokens from which on compiling saves time: 300 steps of 4,096 tokens at 0.8 M parameters. There it saves
# about a third of each step (120 ms on two cores) and takes 25 s, or 1 s if the graph is in the compiler's cache.
_COMPILE_FROM = 1e12


@dataclass(frozen=True)
class _Continued:
    """A schedule that goes on after its first `done` steps."""

    schedule: BatchSchedule
    done: int

    def indices(self, step: int) -> np.ndarray:
        return self.schedule.indices(self.done + step)


def recalibrate(
    parent: Decoder,
    corpus: Corpus,
    settings: TrainSettings,
    recalibration: RecalibrationSettings,
    *,
    keep_rotary: bool,
    seed: int,
    folder: Path,
    precision: Precision,
    device: str,
    observer: Observer | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Train a copy of `parent` for a short time, without RoPE in any layer unless `keep_rotary`.

    `settings` are those of the parent's training. All arms of a seed get the same batches, whatever the ordering of
    their parents: those that a shuffled training would take next. Each round (RecalibrationSettings) has new optimizers
    and a folder of its own. Writes the arm to snapshots/, and to recalibration.json its held-out losses by
    recalibration step (0 is right after the drop) and whether it recovered. Raises as `train` does.
    """
    arm = copy.deepcopy(parent).to(device)
    if not keep_rotary:
        arm = arm.with_config(arm.config.without_positions())
    held_out = Batches.prefix(corpus.val, settings.eval_sequences, device, mask_documents=corpus.mask_documents)

    def held_out_loss(decoder: Decoder) -> float:
        return evaluate(decoder, held_out, batch_size=settings.batch_size, precision=precision)

    parent_loss = held_out_loss(parent.to(device))
    limit = parent_loss + recalibration.recovered_within_nats
    no_topics_N = np.zeros(len(corpus.train), np.int64)  # a shuffled order does not depend on them
    shuffled = BatchSchedule(ordering=Shuffled(), dominant_N=no_topics_N, batch_size=settings.batch_size, seed=seed)
    until_recovered = recalibration.until_recovered and recalibration.steps is None
    done, losses = 0, {0: held_out_loss(arm)}
    steps = recalibration.count(settings.steps)
    while steps:
        task = NextToken(
            arm,
            corpus,
            _Continued(shuffled, settings.steps + done),
            short_settings(settings, recalibration, steps, arm, corpus),
            folder / f"round{done:06d}",
            precision,
            device,
            evaluate_at={0, *(2**power for power in range(steps.bit_length())), steps},
        )
        losses |= {done + step: loss for step, loss in train(task, observer, should_stop).items()}
        done += steps
        goes_on = until_recovered and losses[done] > limit and done < settings.steps
        steps = min(done, settings.steps - done) if goes_on else 0
    save_snapshot(folder / "snapshots", arm, done)
    record = {
        "steps": done,
        "keep_rotary": keep_rotary,
        "val_loss_nats": {str(step): loss for step, loss in losses.items()},
        "parent_loss_nats": parent_loss,
        "recovered_within_nats": recalibration.recovered_within_nats,
        "until_recovered": until_recovered,
        "recovered": losses[done] <= limit,
    }
    write_json(folder / "recalibration.json", record)


def short_settings(
    settings: TrainSettings, recalibration: RecalibrationSettings, steps: int, decoder: Decoder, corpus: Corpus
) -> TrainSettings:
    """The training settings of a recalibration round: its number of steps, its warmup and its learning rates."""
    parameters = sum(parameter.numel() for parameter in decoder.parameters())
    tokens = steps * settings.batch_size * corpus.train.tokens_NT.shape[1]
    return dataclasses.replace(
        settings,
        steps=steps,
        warmup_share=recalibration.warmup_share,
        muon_lr=recalibration.lr_scale * settings.muon_lr,
        adamw_lr=recalibration.lr_scale * settings.adamw_lr,
        snapshots=2,
        compile=settings.compile and parameters * tokens >= _COMPILE_FROM,
    )
