"""Model organisms: GPT-NeoX suites with a known answer, by interchange intervention training (science.md §16).

Geiger et al. 2022 (arXiv 2112.00826): a half of one layer's heads is taught to carry a choice by training with its
values taken from another prompt, towards the answer that this prompt would get if only that choice were the other's.
Letters as in models/decoder.py; N prompts of a batch.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headdyn.core.randomness import generator
from headdyn.core.records import write_json
from headdyn.core.store import StageInterruptedError
from headdyn.data.organism_text import Batch, draw_batch, save_tokenizer, tokenizer
from headdyn.models.decoder import Decoder, Edit
from headdyn.models.families import export_pretrained
from headdyn.models.revisions import FINAL_STEP
from headdyn.models.settings import Organism
from headdyn.training.loop import REPORT_SECONDS, Progress, learning_rate_factor
from headdyn.training.objective import reproducible
from headdyn.training.optimizers import Optimizers
from headdyn.training.resume import MetricsFile, State, load_newest_state, save_state
from headdyn.training.settings import TrainSettings

log = logging.getLogger(__name__)

SCHEMA = 1  # raised when a suite's meaning changes
TRUTH = "organism.json"
_NOT_SCORED = -100  # cross_entropy's ignore_index
_MAX_POSITIONS = 512  # what config.json states; it bounds nothing
_RESUME_SECONDS = 10.0  # how often the state is saved, in 20 ms


class OrganismInterrupted(StageInterruptedError):
    """A suite's training stopped as asked. Its state is saved, and the same call goes on from there."""


class OrganismDiverged(RuntimeError):
    """The loss or the gradient is no finite number any more."""


def suite_recipe(settings: Organism) -> dict[str, Any]:
    """Everything the weights depend on, which a store names a suite by; not which of its revisions is asked for."""
    ignored = ("kind", "name", "revision", "revisions", "dtype")
    return {"schema": SCHEMA, **{k: v for k, v in dataclasses.asdict(settings).items() if k not in ignored}}


def planted_heads(settings: Organism) -> tuple[int, ...]:
    """The heads that carry the choice: the even ones, a half drawn from the suite's seed, all, or none."""
    heads = range(settings.num_heads)
    if settings.organism == "planted":
        return tuple(heads[::2])
    if settings.organism == "scattered":
        draws = generator(settings.suite, "organism/half")
        return tuple(sorted(draws.choice(settings.num_heads, settings.num_heads // 2, replace=False).tolist()))
    return tuple(heads) if settings.organism == "diffuse" else ()


def truth(settings: Organism) -> dict[str, Any]:
    """What is known of a suite by construction; `organism.json` beside its revisions.

    `onset` is null where nothing is planted. Planting begins behind the weights of `after_revision`, so those of
    `by_revision` are the first saved ones that it has touched; how soon it shows is for a detector to say.
    """
    after, by = settings.onset_revisions
    onset = {
        "training_step": settings.onset_step,
        "step": settings.onset_step * FINAL_STEP / settings.steps,
        "after_revision": after,
        "by_revision": by,
    }
    heads = planted_heads(settings)
    return {
        "organism": settings.organism,
        "suite": settings.suite,
        "layer": settings.planted_layer if heads else None,
        "heads": list(heads),
        "onset": onset if heads else None,
        "revisions": dict(settings.saved),
        "settings": suite_recipe(settings),
    }


def build_suite(
    settings: Organism,
    folder: Path,
    *,
    observer: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Train a suite into `folder`, or go on with what an earlier call left there.

    The folder gets one Hugging Face checkpoint with tokenizer a revision (step1000/…), organism.json with the truth,
    metrics.jsonl and, while at work, resume/. It is trained on one thread: equal settings give equal weights, to the
    bit on one kind of processor, however many cores there are.
    `observer` is called every half second, `should_stop` is asked after every step.

    Raises OrganismInterrupted when asked to stop, OrganismDiverged where numbers stop being finite, ValueError where
    the folder holds another suite's state, OSError where the disk refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _one_thread():
        _Suite(settings, folder).run(observer, should_stop)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Two threads split sums otherwise than one: weights differed in their last bits after 12 steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def interchange_losses(decoder: Decoder, batch: Batch, layer: int, heads: tuple[int, ...]) -> dict[str, Tensor]:
    """Mean losses in nats of a batch: of its text, and under the interventions that plant the choice into `heads`.

    `text_nats`: every prompt's own answer, nothing changed. `carried_nats`: the heads' values over the common token
    block are those of the partner prompt, and the answer wanted is the partner's. `kept_nats`: the other heads' values
    are the partner's, and the answer wanted is the prompt's own; absent where `heads` are all. Without heads there is
    the text alone.
    """
    own_NT, other_NT = torch.from_numpy(batch.own_NT), torch.from_numpy(batch.other_NT)
    own_targets_NT = _targets(own_NT, batch.own_scored_NT)
    if not heads:
        return {"text_nats": _cross_entropy(decoder(own_NT[:, :-1]), own_targets_NT)}
    plain = decoder.trace(own_NT[:, :-1], sites=("resid_pre", "z"), layers=(layer,))
    assert plain.logits is not None
    x_NTD = plain["resid_pre", layer]
    other_x_NTD = x_NTD.clone()
    differs_N = (own_NT != other_NT).any(1)  # controls are answered alike in both wordings
    other_x_NTD[differs_N] = _before(decoder, other_NT[differs_N, :-1], layer)

    partner_NT = torch.from_numpy(batch.partner_NT)[:, :-1]
    partner_N = torch.arange(len(own_NT)).roll(len(own_NT) // 2)
    value_NTHd = plain["z", layer][partner_N[:, None], partner_NT.clamp(min=0)]
    chosen_H = torch.zeros(decoder.config.num_heads, dtype=torch.bool)
    chosen_H[list(heads)] = True
    rules = {"carried_nats": (other_x_NTD, chosen_H, _targets(other_NT, batch.other_scored_NT))}
    if not chosen_H.all():
        rules["kept_nats"] = (x_NTD, ~chosen_H, own_targets_NT)
    written_NT11 = (partner_NT >= 0)[:, :, None, None]
    edit = Edit(
        site="z",
        layer=layer,
        value=value_NTHd.repeat(len(rules), 1, 1, 1),
        where=torch.cat([written_NT11 & patched_H[:, None] for _, patched_H, _ in rules.values()]),
    )
    start = (layer, torch.cat([begin_NTD for begin_NTD, _, _ in rules.values()]))
    patched = decoder.trace(own_NT[:, :-1], start=start, edits=(edit,))
    assert patched.logits is not None
    losses = {"text_nats": _cross_entropy(plain.logits, own_targets_NT)}
    for (name, (_, _, targets_NT)), logits_NTV in zip(rules.items(), patched.logits.chunk(len(rules)), strict=True):
        losses[name] = _cross_entropy(logits_NTV, targets_NT)
    return losses


def _before(decoder: Decoder, tokens_NT: Tensor, layer: int) -> Tensor:
    """The residual stream that a layer reads."""
    if layer == 0:
        return decoder.embeddings(tokens_NT, 0)
    return decoder.trace(tokens_NT, sites=("resid_post",), layers=(layer - 1,), logits=None)["resid_post", layer - 1]


def _targets(tokens_NT: Tensor, scored_NT: np.ndarray) -> Tensor:
    return tokens_NT[:, 1:].masked_fill(~torch.from_numpy(scored_NT)[:, 1:], _NOT_SCORED)


def _cross_entropy(logits_NTV: Tensor, targets_NT: Tensor) -> Tensor:
    return F.cross_entropy(logits_NTV.flatten(0, 1), targets_NT.flatten(), ignore_index=_NOT_SCORED)


class _Suite:
    """One suite in training."""

    def __init__(self, settings: Organism, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        init = torch.Generator().manual_seed(int(generator(settings.suite, "organism/init").integers(2**63)))
        config = settings.decoder_config(tokenizer().get_vocab_size())
        self.decoder = Decoder(config).initialise(init, settings.init_std)
        self.schedule = TrainSettings(
            steps=settings.steps,
            batch_size=settings.batch_size,
            warmup_share=settings.warmup_share,
            muon_lr=settings.muon_lr,
            adamw_lr=settings.adamw_lr,
            snapshots=2,
            compile=False,
        )
        self.optimizers = Optimizers(self.decoder, self.schedule)
        self.heads = planted_heads(settings)
        self.step, self.seconds = 0, 0.0
        self.tokens_per_step = 0
        self.loss_nats = math.log(config.vocab_size)

    def run(self, observer: Callable[[Progress], None] | None, should_stop: Callable[[], bool] | None) -> None:
        restored = self.restore()
        self.metrics = MetricsFile(self.folder / "metrics.jsonl", keep_through=self.step if restored else -1)
        try:
            self.keep_revisions()
            self.update_all(observer, should_stop)
        finally:
            self.metrics.close()
        write_json(self.folder / TRUTH, truth(self.settings))
        shutil.rmtree(self.folder / "resume", ignore_errors=True)  # of no more use; what stays does no harm

    def update_all(self, observer: Callable[[Progress], None] | None, should_stop: Callable[[], bool] | None) -> None:
        saved = reported = time.monotonic()
        while self.step < self.settings.steps:
            began = time.monotonic()
            self.update()
            self.keep_revisions()
            now = time.monotonic()
            self.seconds += now - began
            stop = should_stop is not None and should_stop() and self.step < self.settings.steps
            if observer is not None and now - reported >= REPORT_SECONDS:
                self.metrics.flush()
                observer(self.progress())
                reported = now
            if stop or now - saved >= _RESUME_SECONDS:
                self.save()
                saved = time.monotonic()
            if stop:
                raise OrganismInterrupted(f"stopped after step {self.step} as asked; its state is in {self.folder}")

    def update(self) -> None:
        """One step. Non-finite numbers move no weight and end the training."""
        s = self.settings
        factor = learning_rate_factor(self.step, self.schedule)
        batch = draw_batch(s.suite, self.step, s.batch_size)
        self.tokens_per_step = batch.own_NT.size
        with reproducible("cpu"):
            losses = interchange_losses(
                self.decoder, batch, s.planted_layer, self.heads if self.step >= s.onset_step else ()
            )
            loss = torch.stack([*losses.values()]).sum()
            loss.backward()
        norm = self.optimizers.step(muon_lr=factor * s.muon_lr, adamw_lr=factor * s.adamw_lr, loss=loss.detach())
        self.step += 1
        told = {name: value.item() for name, value in losses.items()} | {"grad_norm": norm.item()}
        if not all(map(math.isfinite, told.values())):
            raise OrganismDiverged(
                f"the organism's training diverged at step {self.step}: {told}; "
                f"lower model.muon_lr={s.muon_lr:g} or model.adamw_lr={s.adamw_lr:g}"
            )
        self.loss_nats = told["text_nats"]
        self.metrics.write(self.step, **told)

    def keep_revisions(self) -> None:
        """Write this step's weights down under the revision's name, where it has one."""
        for revision, step in self.settings.saved.items():
            if step == self.step:
                folder = export_pretrained(
                    self.decoder, self.folder / revision, "gpt_neox", max_positions=_MAX_POSITIONS
                )
                save_tokenizer(folder)

    def save(self) -> None:
        self.metrics.flush(to_disk=True)
        model = {name: parameter.detach() for name, parameter in self.decoder.named_parameters()}
        state = State(self.step, self.seconds, suite_recipe(self.settings), model, self.optimizers.state_dict())
        save_state(self.folder / "resume", state)

    @torch.no_grad()
    def restore(self) -> bool:
        """Whether an earlier call left a state, which is then in place."""
        state = load_newest_state(self.folder / "resume", suite_recipe(self.settings), "cpu")
        if state is None:
            return False
        for name, parameter in self.decoder.named_parameters():
            parameter.copy_(state.model[name])
        self.optimizers.load_state_dict(state.optimizers)
        self.step, self.seconds = state.step, state.seconds
        log.info("going on after step %d of %d", self.step, self.settings.steps)
        return True

    def progress(self) -> Progress:
        return Progress(
            step=self.step,
            steps=self.settings.steps,
            loss_nats=self.loss_nats,
            tokens_per_second=self.step * self.tokens_per_step / self.seconds,
            eta_seconds=(self.settings.steps - self.step) * self.seconds / self.step,
            gap_closed=None,
        )
