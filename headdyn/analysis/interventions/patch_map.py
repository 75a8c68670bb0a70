"""Which heads carry the difference between a clean and a corrupted prompt: every head of every layer, both ways.

Activation patching head by head (science.md §10). Sufficiency writes clean values into the corrupted prompt, necessity
corrupted values into the clean one; the two disagree where heads back each other up. Letters as in patching.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from headdyn.analysis.interventions.patch import Direction, PatchSettings
from headdyn.analysis.metrics import nats, share
from headdyn.core.figures import Figure, HeadMap, head_map
from headdyn.core.records import Findings, HeadTable, Metric
from headdyn.core.settings import settings

if TYPE_CHECKING:
    from headdyn.analysis.interventions.pair_rows import Row
    from headdyn.analysis.interventions.patching import PromptPatching
    from headdyn.data.prompts import Prompts
    from headdyn.models.decoder import Decoder

# By direction: the prompts that are written into, and the prompts that the values come from.
DIRECTIONS: Mapping[Direction, tuple[str, str]] = {
    "sufficiency": ("corrupted", "clean"),
    "necessity": ("clean", "corrupted"),
}


def _metrics() -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    for prefix, what in (("", ""), ("layer_", " of all heads of the layer together")):
        for direction, (target, source) in DIRECTIONS.items():
            metrics[f"{prefix}{direction}_nats"] = nats(
                label=f"{direction}{what}",
                meaning=f"change of Δ of {target} prompts when {source} values are written{what}",
            )
            metrics[f"{prefix}{direction}_recovered"] = Metric(
                label=f"{direction}, share of the way{what}",
                meaning=f"{direction}_nats over the distance to the {source} prompts' Δ{what}",
            )
        metrics[f"{prefix}control_nats"] = nats(
            label=f"sufficiency on controls{what}", meaning=f"sufficiency_nats on control pairs{what}"
        )
    for target in ("clean", "corrupted"):
        metrics[f"{target}_nats"] = nats(
            label=f"Δ of {target} prompts", meaning=f"mean Δ of {target} prompts, bug pairs", outcome=True
        )
        metrics[f"{target}_success"] = share(
            label=f"{target} prompts",
            meaning=f"share of bug pairs answered rightly, {target} prompts",
            unit="% right",
            outcome=True,
        )
    return metrics


@settings
class PatchMap(PatchSettings):
    """Patches each head alone (head rows) and all heads of each layer together (layer rows), on the bug pairs.

    Effects are changes of the mean answer log-odds Δ, in nats; their intervals (95 %, BCa) and p-values (sign flips)
    take pairs as units, and q-values run over all head rows. Controls are pairs that the bug does not touch.
    Raises ValueError where the prompts hold no bug pairs.
    """

    rows: ClassVar[Literal["head"]] = "head"
    needs: ClassVar[frozenset[str]] = frozenset({"prompts"})
    metrics: ClassVar[Mapping[str, Metric]] = _metrics()

    def __call__(self, decoder: Decoder, corpus: Prompts, generator: np.random.Generator) -> Findings:
        """Head and layer rows of every effect, model rows of the unpatched prompts, one head map."""
        from headdyn.analysis.interventions.pair_rows import PairRows
        from headdyn.analysis.interventions.patching import bug_pairs, in_dtype

        bugs, controls = bug_pairs(corpus), corpus.where(~corpus.is_bug_P)
        model, places = in_dtype(decoder, self.dtype), decoder.config.num_heads + 1
        make = PairRows(generator=generator, bootstrap_draws=self.bootstrap_draws, sign_flips=self.sign_flips)
        grid: list[Row] = []  # layer by layer, all heads together last
        whole: list[Row] = []
        for direction, (target, _) in DIRECTIONS.items():
            patching, delta_XP = self._grid(model, bugs, direction)
            grid += make.effects(f"{direction}_nats", (delta_XP - patching.target_P).T)
            grid += make.recovered(f"{direction}_recovered", delta_XP, patching.target_P, patching.source_P)
            whole.append(make.mean(f"{target}_nats", patching.target_P))
            whole.append(make.success(f"{target}_success", patching.target_P))
        if controls.pairs:
            patching, delta_XP = self._grid(model, controls, "sufficiency")
            grid += make.effects("control_nats", (delta_XP - patching.target_P).T)
        head_rows: list[Row] = []
        for number, row in enumerate(grid):
            layer, head = divmod(number % (places * decoder.config.num_layers), places)
            if head < places - 1:
                head_rows.append(row | {"layer": layer, "head": head})
            else:
                whole.append(row | {"metric": f"layer_{row['metric']}", "layer": layer})
        heads = HeadTable.from_rows(head_rows).with_q()
        return Findings(table=HeadTable.concat([heads, HeadTable.from_rows(whole)]), figures={"heads": _figure(heads)})

    def _grid(self, model: Decoder, prompts: Prompts, direction: Direction) -> tuple[PromptPatching, np.ndarray]:
        """Δ of every head alone and, last, of all heads of the layer, layer by layer: [L · (H + 1), P]."""
        from headdyn.analysis.interventions.patching import PromptPatching

        layers, heads = range(model.config.num_layers), model.config.num_heads
        patching = PromptPatching(model, prompts, self.patch(direction), layers)
        delta = patching.deltas(dict.fromkeys(layers, np.concatenate((np.eye(heads), np.ones((1, heads))))))
        return patching, np.concatenate([delta[layer] for layer in layers])


def _figure(heads: HeadTable) -> Figure:
    panels = [
        HeadMap(
            title=f"{direction}: {source} into {target}",
            value_LH=heads.matrix(f"{direction}_nats"),
            unit="nats",
            centre=0.0,
            marked_LH=heads.matrix(f"{direction}_nats", "q") < 0.05,
        )
        for direction, (target, source) in DIRECTIONS.items()
    ]
    caption = "How far patching each head alone moves the log-odds of the right answer; 0 is a head that does nothing."
    return head_map(panels, caption=caption)
