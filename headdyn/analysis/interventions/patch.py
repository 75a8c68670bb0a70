"""What a patch writes, where and when, and the settings that analyses by patching share. Nothing heavy is imported."""

from typing import Annotated, Literal

from pydantic import Field

from headdyn.analysis.metrics import BootstrapDraws
from headdyn.core.settings import settings
from headdyn.data.comparisons import Alignment

Site = Literal["z", "attn_out_slice"]
Source = Literal["prompt", "zero", "mean"]
Steps = Literal["prefill", "every_step", "every_position"]
Direction = Literal["sufficiency", "necessity"]
Dtype = Literal["float64", "float32", "bfloat16", "float16"]
Layer = Annotated[int, Field(ge=0)] | None  # None is the middle one, see `chosen_layer`


@settings
class Patch:
    """What is written, where, and when.

    `site`: "z" is each head's output before W_O, the only site that has heads. "attn_out_slice" cuts the D numbers
    behind W_O into H pieces, each of which mixes all heads.
    `source`: the pair's other "prompt", "zero", or the "mean" over the group's target prompts at each position.
    `direction`: "sufficiency" writes clean values into the corrupted prompt, "necessity" corrupted into clean.
    `alignment`: which positions stand for each other; without a source prompt all of the prompt is written.
    `steps`: "prefill" writes into the prompt; "every_step" also into every later token, with what is written at the
    prompt's first position: so does a forward hook that goes on firing while a cached model decodes. "every_position"
    writes zero or the mean at the answer's positions too, each its own: what ablating a head means.
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
    """Settings of an analysis that patches heads; `dtype` is the model's while it is patched."""

    site: Site = "z"
    source: Source = "prompt"
    alignment: Alignment = "span"
    steps: Literal["prefill", "every_step"] = "prefill"
    dtype: Dtype = "float32"
    sign_flips: Annotated[int, Field(ge=999)] = 9_999
    bootstrap_draws: BootstrapDraws = 2_000

    def patch(self, direction: Direction) -> Patch:
        """What these settings write, in one direction."""
        return Patch(
            site=self.site, source=self.source, alignment=self.alignment, steps=self.steps, direction=direction
        )


def chosen_layer(layer: int | None, num_layers: int) -> int:
    """The layer that a setting names, by default the middle one, ⌊L/2⌋: 6 of Pythia-160m's 12.

    Raises ValueError for a layer out of range.
    """
    if layer is None:
        return num_layers // 2
    if not 0 <= layer < num_layers:
        raise ValueError(f"layer={layer} is out of range; this model's are 0 to {num_layers - 1}")
    return layer
