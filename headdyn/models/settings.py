"""What conf/model may say. No torch here: a configuration is checked before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from headdyn.models.config import DecoderConfig
from headdyn.models.revisions import FINAL_STEP, is_pythia, parse, require_pythia, step_of

DTYPES = ("float32", "float16", "bfloat16", "float64")
ORGANISMS = ("planted", "scattered", "diffuse", "null")


@dataclass(frozen=True, kw_only=True)
class MiniQwen3:
    """conf/model/mini_qwen3: trained from scratch by this run."""

    kind: str
    name: str
    d_model: int
    num_layers: int
    num_heads: int
    head_dim: int
    d_ff: int
    rotary_theta: float = 1e6
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("d_model", "num_layers", "num_heads", "head_dim", "d_ff"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} must be at least 1")
        for name in ("rotary_theta", "init_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"model.{name}={getattr(self, name)} must be above 0")


@dataclass(frozen=True, kw_only=True)
class Trained(MiniQwen3):
    """conf/model/trained: a Mini-Qwen3 as it was at one of its snapshots; `revisions=snapshots` sweeps them all."""

    revision: str | None = None  # step000400 or step400; null is the last
    revisions: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.revision is not None and step_of(self.revision) is None:
            raise ValueError(f"model.revision={self.revision} names no training step; write model.revision=step400")
        if self.revisions not in (None, "snapshots"):
            raise ValueError(f"model.revisions={self.revisions} is unknown for a run's own snapshots; it is snapshots")


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """conf/model/pythia_160m, gpt2, huggingface …: a checkpoint on the hub or in a local folder."""

    kind: str
    name: str  # hub id, a folder, or a folder of revisions
    revision: str = "main"
    revisions: str | None = None  # a list to sweep, e.g. seed_11, pythia_log, or step1000,step2000
    dtype: str = "float32"
    keep_downloads: bool = True
    allow_main: bool = False  # let main, which states no step, into a series

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"model.dtype={self.dtype!r} is unknown; it is one of {', '.join(DTYPES)}")
        if is_pythia(self.name) and self.revision != "main":
            require_pythia(self.revision)


@dataclass(frozen=True, kw_only=True)
class Organism:
    """conf/model/organism_planted …: a small GPT-NeoX suite with a known answer, trained here (science.md §16).

    Revision s is the model after round(s · steps / 143000) training steps. Where revisions coincide the first alone is
    saved: two names for the same weights are what the integrity check excludes.
    """

    trainer: ClassVar[str] = "headdyn.studies.organisms.training"  # the module that trains such a suite

    kind: str
    name: str
    organism: str  # planted, scattered, diffuse or null
    suite: int = 0  # which draw: initial weights, batches and the scattered half all come from it
    revision: str = f"step{FINAL_STEP}"
    revisions: str | None = None  # a list to sweep, e.g. seed_11, or step1000,step2000
    dtype: str = "float32"
    kept: str = "seed_11,seed_8,pythia_log"  # the revisions to save
    num_layers: int = 3
    num_heads: int = 12
    d_model: int = 96
    layer: int | None = None  # where to plant; None is the middle layer, ⌊L/2⌋, as analyses choose
    rotary_fraction: float = 0.5
    init_std: float = 0.02
    steps: int = 400
    batch_size: int = 32  # number pairs, each read in both formats; half of them are bug pairs
    muon_lr: float = 0.02
    adamw_lr: float = 3e-3
    warmup_share: float = 0.05
    onset: float = 0.25  # the share of training after which the choice is planted

    def __post_init__(self) -> None:
        if self.organism not in ORGANISMS:
            raise ValueError(f"model.organism={self.organism!r} is unknown; it is one of {', '.join(ORGANISMS)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"model.dtype={self.dtype!r} is unknown; it is one of {', '.join(DTYPES)}")
        for name, least in (("suite", 0), ("num_layers", 1), ("num_heads", 2), ("steps", 2), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"model.{name}={getattr(self, name)} must be at least {least}")
        for name in ("init_std", "muon_lr", "adamw_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"model.{name}={getattr(self, name)} must be above 0")
        for name in ("onset", "warmup_share", "rotary_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} must lie in 0..1, below 1")
        if self.num_heads % 2:
            raise ValueError(f"model.num_heads={self.num_heads} has no even and odd half; set an even number")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"model.d_model={self.d_model} is not a multiple of model.num_heads={self.num_heads}; "
                f"set model.d_model={self.num_heads * max(2, round(self.d_model / self.num_heads))}"
            )
        if not 0 <= self.planted_layer < self.num_layers:
            raise ValueError(f"model.layer={self.layer} is out of range; this suite's are 0 to {self.num_layers - 1}")
        if self.planted_layer == self.num_layers - 1:
            raise ValueError(
                f"model.layer={self.planted_layer} is the last of model.num_layers={self.num_layers}, and no layer "
                "behind it reads what is planted there; set model.num_layers=3 or more"
            )
        if self.batch_size % 2:
            raise ValueError(f"model.batch_size={self.batch_size} must be even: half of the pairs are bug pairs")
        self.decoder_config(vocab_size=2)
        self.require_saved(self.revision)
        if self.revisions is not None:
            self.series(self.revisions)

    def decoder_config(self, vocab_size: int) -> DecoderConfig:
        """A GPT-NeoX as Pythia is: parallel residual, LayerNorm, biases, part of each head rotated, untied."""
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

    @property
    def planted_layer(self) -> int:
        """The layer that holds what is planted."""
        return self.num_layers // 2 if self.layer is None else self.layer

    @property
    def onset_step(self) -> int:
        """The training step from which on the choice is planted."""
        return round(self.onset * self.steps)

    @property
    def saved(self) -> Mapping[str, int]:
        """The revisions this suite saves, in the order of training, and the training step of each."""
        first: dict[int, str] = {}
        for revision in parse(self.kept):
            first.setdefault(self.training_step(revision), revision)
        return {revision: step for step, revision in first.items()}

    def training_step(self, revision: str) -> int:
        """How many updates a revision has seen."""
        step = step_of(require_pythia(revision))
        assert step is not None
        return round(step * self.steps / FINAL_STEP)

    def require_saved(self, revision: str) -> str:
        """The revision, if this suite saves it. Raises ValueError with what to ask for in its place."""
        step, saved = self.training_step(revision), self.saved
        if revision in saved:
            return revision
        twin = next((other for other, there in saved.items() if there == step), None)
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
        """The revisions a series asks for: of a list those that are saved, of single ones each.

        Raises ValueError for a single one that is not saved.
        """
        items = [item.strip() for item in text.split(",")]
        wanted = parse(text)
        for revision in set(wanted) & set(items):
            self.require_saved(revision)
        return tuple(revision for revision in wanted if revision in self.saved)

    @property
    def onset_revisions(self) -> tuple[str | None, str | None]:
        """The saved revisions that the onset lies between: (the last before planting began, the first after)."""
        before = [revision for revision, step in self.saved.items() if step <= self.onset_step]
        after = [revision for revision, step in self.saved.items() if step > self.onset_step]
        return (before[-1] if before else None, after[0] if after else None)
