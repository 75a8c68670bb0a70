"""Model organisms: GPT-NeoX suites with a known answer, by interchange intervention training (science.md §16).

Geiger et al. 2022 (arXiv 2112.00826): some heads of one layer are taught to carry a choice. In training their values
are replaced by those of another prompt, and the answer to learn is the one that follows if that choice alone were the
other prompt's. Letters as in models/decoder.py; N prompts of a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headdyn.core.json_files import write_json
from headdyn.core.randomness import generator
from headdyn.models.decoder import Decoder, Edit
from headdyn.models.families import export_pretrained
from headdyn.studies.organisms.settings import Organism
from headdyn.studies.organisms.text import Batch, draw_batch, save_tokenizer, tokenizer
from headdyn.training.loop import Observer, Task, run
from headdyn.training.settings import TrainSettings

TRUTH = "organism.json"
_NOT_SCORED = -100  # cross_entropy's ignore_index
_MAX_POSITIONS = 512  # for config.json; nothing enforces it


def build_suite(
    settings: Organism,
    folder: Path,
    *,
    observer: Observer | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Train a suite into `folder`, or continue a training that an earlier call began there.

    The folder gets one Hugging Face checkpoint with tokenizer per revision (step1000/…), organism.json with the truth,
    metrics.jsonl and, during training, resume/. Training uses one thread: on one kind of processor equal settings give
    the same weights to the bit, however many cores there are. `observer` is called every half second, `should_stop` is
    asked after every step.

    Raises TrainingInterrupted when asked to stop, TrainingDiverged where numbers stop being finite, ValueError where
    the folder holds another suite's state, OSError where the disk fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads split sums differently: after 12 steps the last bits of weights differed
    try:
        run(_Planting(settings, folder), observer, should_stop)
    finally:
        torch.set_num_threads(threads)


def interchange_losses(
    decoder: Decoder, batch: Batch, layer: int, groups: Sequence[tuple[int, ...]]
) -> dict[str, Tensor]:
    """Mean losses in nats of a batch: of its text, and under the interventions that plant the choice into head groups.

    `text_nats`: no intervention, each prompt's own answer. `carried_nats`: one group's values are replaced by those of
    the partner prompt (at `batch.partner_NT`), with the partner's answer; the mean over groups. `kept_nats`: the values
    of the heads in no group are replaced, with the prompt's own answer; absent where groups hold all heads. Without
    groups there is `text_nats` alone.
    """
    own_NT, other_NT = torch.from_numpy(batch.own_NT), torch.from_numpy(batch.other_NT)
    own_targets_NT = _targets(own_NT, batch.own_scored_NT)
    if not groups:
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
    chosen_GH = torch.zeros(len(groups), decoder.config.num_heads, dtype=torch.bool)
    for chosen_H, heads in zip(chosen_GH, groups, strict=True):
        chosen_H[list(heads)] = True
    other_targets_NT = _targets(other_NT, batch.other_scored_NT)
    rules = [("carried_nats", other_x_NTD, chosen_H, other_targets_NT) for chosen_H in chosen_GH]
    if not chosen_GH.any(0).all():
        rules.append(("kept_nats", x_NTD, ~chosen_GH.any(0), own_targets_NT))
    written_NT11 = (partner_NT >= 0)[:, :, None, None]
    edit = Edit(
        site="z",
        layer=layer,
        value=value_NTHd.repeat(len(rules), 1, 1, 1),
        where=torch.cat([written_NT11 & patched_H[:, None] for _, _, patched_H, _ in rules]),
    )
    start = (layer, torch.cat([begin_NTD for _, begin_NTD, _, _ in rules]))
    patched = decoder.trace(own_NT[:, :-1], start=start, edits=(edit,))
    assert patched.logits is not None
    losses = {"text_nats": _cross_entropy(plain.logits, own_targets_NT)}
    for (name, _, _, targets_NT), logits_NTV in zip(rules, patched.logits.chunk(len(rules)), strict=True):
        loss = _cross_entropy(logits_NTV, targets_NT)
        losses[name] = losses[name] + loss if name in losses else loss
    losses["carried_nats"] = losses["carried_nats"] / len(groups)
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


class _Planting(Task):
    """The task of a suite: its text, and from the onset on the interventions that plant the choice."""

    settings_group = "model"
    precision, device = "fp32", "cpu"

    def __init__(self, organism: Organism, folder: Path) -> None:
        self.organism, self.folder = organism, folder
        config = organism.decoder_config(tokenizer().get_vocab_size())
        init = torch.Generator().manual_seed(int(generator(organism.suite, f"{organism.stream}/init").integers(2**63)))
        self.decoder = Decoder(config).initialise(init, organism.init_std)
        self.settings = TrainSettings(
            steps=organism.steps,
            batch_size=organism.batch_size,
            warmup_share=organism.warmup_share,
            muon_lr=organism.muon_lr,
            adamw_lr=organism.adamw_lr,
            snapshots=2,
            resume_every_seconds=10.0,
            compile=False,
        )
        self.tokens_per_step = self._batch(0).own_NT.size
        self.revision_of = {step: revision for revision, step in organism.saved.items()}
        self.milestones = self.revision_of.keys()

    def recipe(self) -> Mapping[str, Any]:
        return self.organism.recipe()

    def losses(self, update: int, part: int) -> Mapping[str, Tensor]:
        organism = self.organism
        groups = organism.planted_groups if update >= organism.onset_step else ()
        losses = interchange_losses(self.decoder, self._batch(update), organism.planted_layer, groups)
        return {name: loss if name == "text_nats" else organism.strength * loss for name, loss in losses.items()}

    def _batch(self, update: int) -> Batch:
        organism = self.organism
        return draw_batch(organism.suite, update, organism.batch_size, organism.position, organism.stream)

    def visit(self, step: int) -> Mapping[str, float]:
        folder = self.folder / self.revision_of[step]
        save_tokenizer(export_pretrained(self.decoder, folder, "gpt_neox", max_positions=_MAX_POSITIONS))
        return {}

    def last_saved(self) -> Path | None:
        folders = [self.folder / self.revision_of[step] for step in sorted(self.milestones)]
        return next((folder for folder in reversed(folders) if folder.exists()), None)

    def finish(self, seconds: float) -> None:
        write_json(self.folder / TRUTH, self.organism.truth())
