"""The settings of conf/model. Imports no torch: a configuration is checked before anything heavy is imported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from headdyn.core.settings import Count, Positive, settings
from headdyn.models.revisions import is_pythia, parse, require_pythia, step_of

Dtype = Literal["float32", "float16", "bfloat16", "float64"]


@settings
class MiniQwen3:
    """conf/model/mini_qwen3: a model that the run trains from scratch."""

    kind: str
    name: str
    d_model: Count
    num_layers: Count
    num_heads: Count
    head_dim: Count
    d_ff: Count
    rotary_theta: Positive = 1e6
    init_std: Positive = 0.02


@settings
class Trained(MiniQwen3):
    """conf/model/trained: a Mini-Qwen3 at a snapshot of its training; `revisions=snapshots` (or series) means all."""

    revision: str | None = None  # step000400 or step400; null is the last
    revisions: Literal["snapshots", "series"] | None = None

    def __post_init__(self) -> None:
        if self.revision is not None and step_of(self.revision) is None:
            raise ValueError(f"model.revision={self.revision} names no training step; write model.revision=step400")


@settings
class Pretrained:
    """conf/model/pythia_160m, gpt2, huggingface …: a checkpoint on the hub or in a local folder."""

    kind: str
    name: str  # hub id, a folder, or a folder of revisions
    revision: str = "main"
    revisions: str | None = None  # a list to sweep: series, original_11, pythia_log, or step1000,step2000
    dtype: Dtype = "float32"
    keep_downloads: bool = True
    allow_main: bool = False  # let main, which states no step, into a series

    def __post_init__(self) -> None:
        if is_pythia(self.name) and self.revision != "main":
            require_pythia(self.revision)

    def series(self, text: str) -> tuple[str, ...]:
        """The revisions that `model.revisions=text` asks for, in the order of training. Raises ValueError."""
        folder = Path(self.name).expanduser()
        pythia = is_pythia(self.name)
        return parse(text, pythia=pythia, main=self.allow_main, folder=folder if folder.is_dir() else None)


class BuiltSuite(Protocol):
    """A series of checkpoints that headdyn trains by a class of its own, which conf/model names as `_target_`.

    It is trained at most once for its recipe, into a folder with a Hugging Face checkpoint and a tokenizer for every
    revision (step1000/…), from which runs load their revision.
    """

    stage: ClassVar[str]  # the name of this training in the store and in the record of a run

    name: str
    revision: str
    revisions: str | None
    dtype: str

    def recipe(self) -> dict[str, Any]:
        """Everything on which the weights depend."""

    def build(
        self, folder: Path, *, observer: Callable[[Any], None] | None, should_stop: Callable[[], bool] | None
    ) -> None:
        """Train the series into `folder`, or continue an interrupted call; arguments as in training/loop.py."""

    def series(self, text: str) -> tuple[str, ...]:
        """The revisions that `model.revisions=text` asks for. Raises ValueError for one that the series lacks."""

    def truth(self) -> dict[str, Any]:
        """What is known of the series by construction, for the run's record (`manifest["truth"]`)."""
