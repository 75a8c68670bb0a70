"""The settings of conf/model/organism_*, and the truth about such a suite by construction. Does not import torch."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from headdyn.core.randomness import generator
from headdyn.core.settings import settings
from headdyn.models.config import DecoderConfig
from headdyn.models.revisions import FINAL_STEP, parse, require_pythia, step_of

SCHEMA = 1  # raised when a suite's meaning changes
Kind = Literal["planted", "scattered", "diffuse", "null"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Position = Literal["block", "last", "answer"]
Streams = Literal["kind", "suite"]
# Settings added later, with the values that earlier suites had.
_LATER = {"streams": "suite", "strength": 1.0, "redundancy": 1, "position": "block"}

Share = Annotated[float, Field(ge=0, lt=1)]


@settings
class Organism:
    """A small GPT-NeoX checkpoint suite with a known answer, trained here (science.md §16).

    Revision s is the model after round(s · steps / 143000) training steps. Of revisions with the same training step
    only the first is saved, since the integrity check would exclude two names for the same weights.
    """

    name: str
    organism: Kind
    suite: Annotated[int, Field(ge=0)] = 0  # the random seed of initial weights, batches and the scattered half
    revision: str = f"step{FINAL_STEP}"
    revisions: str | None = None  # a list to sweep, e.g. original_11, or step1000,step2000
    dtype: Literal["float32", "float16", "bfloat16", "float64"] = "float32"
    kept: str = "original_11,original_8,pythia_log"  # the revisions to save
    num_layers: Annotated[int, Field(ge=1)] = 3
    num_heads: Annotated[int, Field(ge=2)] = 12
    d_model: Annotated[int, Field(ge=2)] = 96
    layer: int | None = None  # where to plant; None is the middle layer, ⌊L/2⌋, as analyses choose
    rotary_fraction: Share = 0.5
    init_std: Annotated[float, Field(gt=0)] = 0.02
    steps: Annotated[int, Field(ge=2)] = 400
    batch_size: Annotated[int, Field(ge=2)] = 32  # number pairs, each read in both formats; half of them are bug pairs
    muon_lr: Annotated[float, Field(gt=0)] = 0.02
    adamw_lr: Annotated[float, Field(gt=0)] = 3e-3
    warmup_share: Share = 0.05
    onset: Share = 0.25  # the share of training after which the choice is planted
    strength: Annotated[float, Field(ge=0, le=1)] = 1.0  # the weight of the losses that plant; at 0 nothing is planted
    redundancy: Annotated[int, Field(ge=1)] = 1  # groups of the planted heads; each of them carries the choice alone
    # Where the choice is planted: in the tokens that both wordings have in common, in the prompt's last token, or in
    # the answer's tokens before the first at which the two answers differ.
    position: Position = "block"
    # Whether initial weights and batches are drawn for each kind of a suite, or once for all of its kinds.
    streams: Streams = "kind"

    stage: ClassVar[str] = "organism"

    def __post_init__(self) -> None:
        if self.num_heads % 2:
            raise ValueError(f"model.num_heads={self.num_heads} has no even and odd half; set an even number")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"model.d_model={self.d_model} is not a multiple of model.num_heads={self.num_heads}; "
                f"set model.d_model={self.num_heads * max(2, round(self.d_model / self.num_heads))}"
            )
        if not 0 <= self.planted_layer < self.num_layers:
            last = self.num_layers - 1
            raise ValueError(f"model.layer={self.layer} is out of range; this suite's layers are 0 to {last}")
        if self.planted_layer == self.num_layers - 1:
            raise ValueError(
                f"model.layer={self.planted_layer} is the last of model.num_layers={self.num_layers}: no later layer "
                "could read the planted choice; set model.num_layers=3 or more"
            )
        if self.batch_size % 2:
            raise ValueError(f"model.batch_size={self.batch_size} must be even: half of the pairs are bug pairs")
        carrying = len(self.planted_heads)
        if self.redundancy > max(1, carrying):
            raise ValueError(
                f"model.redundancy={self.redundancy} groups cannot be cut from the {carrying} heads that carry the "
                f"choice; set it to {max(1, carrying)} or less"
            )
        self.decoder_config(vocab_size=2)
        self.require_saved(self.revision)
        if self.revisions is not None:
            self.series(self.revisions)

    def build(self, folder: Path, **options: Any) -> None:
        """Train the suite; options as of headdyn.studies.organisms.training.build_suite."""
        from headdyn.studies.organisms.training import build_suite

        build_suite(self, folder, **options)

    def recipe(self) -> dict[str, Any]:
        """All settings that the weights depend on, by which the store names a suite."""
        ignored = ("name", "revision", "revisions", "dtype")
        settings = {k: v for k, v in dataclasses.asdict(self).items() if k not in ignored}
        settings["streams"] = "suite" if self.stream == "organism" else "kind"
        # Later settings are left out where they change nothing, so that earlier suites keep their names in the store.
        return {"schema": SCHEMA, **{k: v for k, v in settings.items() if k not in _LATER or v != _LATER[k]}}

    @property
    def stream(self) -> str:
        """The first part of the names of the suite's random streams: one for each kind, unless kinds share them."""
        shared = self.streams == "suite" or self.organism == "planted"
        return "organism" if shared else f"organism/{self.organism}"

    def decoder_config(self, vocab_size: int) -> DecoderConfig:
        """A GPT-NeoX like Pythia: parallel residual, LayerNorm, biases, part of each head rotated, untied."""
        return DecoderConfig(
            vocab_size=vocab_size,
            num_layers=self.num_layers,
            d_model=self.d_model,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=self.d_model // self.num_heads,
            d_ff=4 * self.d_model,
            norm="layer",
            norm_eps=1e-5,
            parallel_residual=True,
            rotary_fraction=self.rotary_fraction,
            rotary_theta=1e4,
            qk_norm=False,
            mlp="gelu",
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
            tied_embeddings=False,
        )

    # -- what is planted ----------------------------------------------------------------------------------------------

    @property
    def planted_heads(self) -> tuple[int, ...]:
        """The heads that carry the choice: the even ones, a half drawn from the suite's seed, all, or none."""
        heads = range(self.num_heads if self.strength else 0)
        if self.organism == "planted":
            return tuple(heads[::2])
        if self.organism == "scattered" and heads:
            draws = generator(self.suite, "organism/half")
            return tuple(sorted(draws.choice(self.num_heads, self.num_heads // 2, replace=False).tolist()))
        return tuple(heads) if self.organism == "diffuse" else ()

    @property
    def planted_groups(self) -> tuple[tuple[int, ...], ...]:
        """The groups of heads, `redundancy` in number, each of which carries the choice alone."""
        heads = self.planted_heads
        return tuple(heads[first :: self.redundancy] for first in range(self.redundancy)) if heads else ()

    @property
    def planted_layer(self) -> int:
        return self.num_layers // 2 if self.layer is None else self.layer

    @property
    def onset_step(self) -> int:
        """The training step from which on the choice is planted."""
        return round(self.onset * self.steps)

    def truth(self) -> dict[str, Any]:
        """The truth about the suite by construction, which `organism.json` beside its revisions holds.

        `onset` is None where nothing is planted. Planting begins after `after_revision`, so `by_revision` is the first
        saved revision that planting has changed; from when on a detector sees it is another question.
        """
        before = [revision for revision, step in self.saved.items() if step <= self.onset_step]
        after = [revision for revision, step in self.saved.items() if step > self.onset_step]
        onset = {
            "training_step": self.onset_step,
            "step": self.onset_step * FINAL_STEP / self.steps,
            "after_revision": before[-1] if before else None,
            "by_revision": after[0] if after else None,
        }
        heads = self.planted_heads
        return {
            "organism": self.organism,
            "suite": self.suite,
            "layer": self.planted_layer if heads else None,
            "heads": list(heads),
            **({"groups": [list(group) for group in self.planted_groups]} if self.redundancy > 1 else {}),
            "onset": onset if heads else None,
            "revisions": dict(self.saved),
            "settings": self.recipe(),
        }

    # -- the saved revisions ------------------------------------------------------------------------------------------

    @property
    def saved(self) -> Mapping[str, int]:
        """The revisions that this suite saves, in the order of training, with the training step of each."""
        first: dict[int, str] = {}
        for revision in parse(self.kept):
            first.setdefault(self.training_step(revision), revision)
        return {revision: step for step, revision in first.items()}

    def training_step(self, revision: str) -> int:
        """The number of training steps of a revision."""
        step = step_of(require_pythia(revision))
        assert step is not None
        return round(step * self.steps / FINAL_STEP)

    def require_saved(self, revision: str) -> str:
        """The revision, if this suite saves it; else raises ValueError with a revision that it saves."""
        step, saved = self.training_step(revision), self.saved
        if revision in saved:
            return revision
        twin = next((other for other, other_step in saved.items() if other_step == step), None)
        if twin is not None:
            raise ValueError(
                f"model.revision={revision} is the model after {step} of {self.steps} training steps, as {twin} is; "
                f"ask for {twin}"
            )
        raise ValueError(
            f"model.revision={revision} is not saved; model.kept={self.kept} gives {', '.join(saved)}. "
            f"Add it: model.kept={self.kept},{revision}"
        )

    def series(self, text: str) -> tuple[str, ...]:
        """The saved revisions that a text names: those of a named list that are saved, and single revisions.

        Raises ValueError for a single revision that is not saved.
        """
        items = [item.strip() for item in text.split(",")]
        wanted = parse(text)
        for revision in set(wanted) & set(items):
            self.require_saved(revision)
        return tuple(revision for revision in wanted if revision in self.saved)
