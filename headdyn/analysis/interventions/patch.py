"""Settings of patching: which activations are replaced, by what, and at which positions. Imports nothing slow."""

from typing import Annotated, Literal

from pydantic import Field

from headdyn.analysis.metrics import BootstrapDraws
from headdyn.core.settings import settings
from headdyn.data.prompts import Alignment

Site = Literal["z", "attn_out_slice"]
Source = Literal["prompt", "zero", "mean"]
Steps = Literal["prefill", "every_step", "every_position"]
Direction = Literal["sufficiency", "necessity"]
Dtype = Literal["float64", "float32", "bfloat16", "float16"]
Layer = Annotated[int, Field(ge=0)] | None  # None: the middle layer, see `chosen_layer`


@settings
class Patch:
    """One way to patch a head.

    `site`: "z" is each head's output before W_O, the only site at which heads are separate. "attn_out_slice" cuts the D
    numbers after W_O into H slices; each slice mixes all heads.
    `source`: the values written: those of the pair's other "prompt", "zero", or the "mean" over the group's target
    prompts at each position.
    `direction`: "sufficiency" writes clean values into the corrupted prompt, "necessity" corrupted ones into the clean.
    `alignment`: which position of the source corresponds to which of the target. Without a source prompt all positions
    of the prompt are written.
    `steps`: "prefill" writes into the prompt alone. "every_step" also writes the value of the prompt's first position
    into every generated token, as a forward hook does that stays active while a model decodes with a cache.
    "every_position" writes zero or the mean of its own position into the answer's tokens too; this ablates a head.
    """

    site: Site = "z"
    source: Source = "prompt"
    alignment: Alignment = "span"
    steps: Steps = "prefill"
    direction: Direction = "sufficiency"

    def __post_init__(self) -> None:
        if self.steps == "every_position" and self.source == "prompt":
            raise ValueError("steps=every_position needs source=zero or mean: a source prompt has no answer positions")


@settings
class PatchSettings:
    """Settings that analyses by patching share; `dtype` is the model's dtype during patching."""

    site: Site = "z"
    source: Source = "prompt"
    alignment: Alignment = "span"
    steps: Literal["prefill", "every_step"] = "prefill"
    dtype: Dtype = "float32"
    sign_flips: Annotated[int, Field(ge=999)] = 9_999
    bootstrap_draws: BootstrapDraws = 2_000

    def patch(self, direction: Direction) -> Patch:
        return Patch(
            site=self.site, source=self.source, alignment=self.alignment, steps=self.steps, direction=direction
        )


def chosen_layer(layer: int | None, num_layers: int) -> int:
    """The layer that a setting names; None is the middle one, ⌊L/2⌋, for example 6 of Pythia-160m's 12 layers.

    Raises ValueError for a layer out of range.
    """
    if layer is None:
        return num_layers // 2
    if not 0 <= layer < num_layers:
        raise ValueError(f"layer={layer} is out of range; this model's layers are 0 to {num_layers - 1}")
    return layer
