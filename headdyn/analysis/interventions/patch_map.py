"""Which heads carry the difference between a clean and a corrupted prompt? Every head is patched, in both directions.

Activation patching head by head (science.md §10). Sufficiency writes clean values into the corrupted prompt, necessity
corrupted values into the clean one; the two disagree where heads back each other up. Letters as in patching.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from headdyn.analysis.interventions.patch import Direction, PatchSettings
from headdyn.analysis.metrics import nats, share
from headdyn.core.figures import Figure, HeadMap, head_map
from headdyn.core.records import Findings, HeadTable, Metric
from headdyn.core.settings import settings

if TYPE_CHECKING:
    from headdyn.analysis.estimates import Estimate
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
                f"{direction}{what}", f"change of Δ of {target} prompts when {source} values are written{what}"
            )
            metrics[f"{prefix}{direction}_recovered"] = Metric(
                label=f"{direction}, share of the way{what}",
                meaning=f"{direction}_nats over the distance to the {source} prompts' Δ{what}",
            )
        metrics[f"{prefix}control_nats"] = nats(
            f"sufficiency on controls{what}", f"sufficiency_nats on control pairs{what}"
        )
    for target in ("clean", "corrupted"):
        metrics[f"{target}_nats"] = nats(
            f"Δ of {target} prompts", f"mean Δ of {target} prompts, bug pairs", outcome=True
        )
        metrics[f"{target}_success"] = share(
            f"{target} prompts", f"share of bug pairs answered rightly, {target} prompts", unit="% right", outcome=True
        )
    return metrics


@settings
class PatchMap(PatchSettings):
    """Patches each head alone (head rows) and all heads of each layer together (layer rows), on the bug pairs.

    Effects are changes of the mean answer log-odds Δ, in nats; their intervals (95 %, BCa) and p-values (sign flips)
    take pairs as units, and q-values run over all head rows. Controls are pairs that the bug does not touch.
    Raises ValueError where the prompts hold no bug pairs.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"prompts"})
    metrics: ClassVar[Mapping[str, Metric]] = _metrics()

    def __call__(self, decoder: Decoder, corpus: Prompts, generator: np.random.Generator) -> Findings:
        """Head and layer rows of every effect, model rows of the unpatched prompts, one head map."""
        from headdyn.analysis.interventions.pair_rows import PairRows
        from headdyn.analysis.interventions.patching import PromptPatching, bug_pairs, in_dtype

        bugs, controls = bug_pairs(corpus), corpus.where(~corpus.is_bug_P)
        layers, heads = range(decoder.config.num_layers), decoder.config.num_heads
        model, cells = in_dtype(decoder, self.dtype), np.concatenate((np.eye(heads), np.ones((1, heads))))

        def patched(prompts: Prompts, direction: Direction) -> tuple[PromptPatching, np.ndarray]:
            """Δ of every head alone and, last, of all heads of the layer, layer by layer: [L · (H + 1), P]."""
            patching = PromptPatching(model, prompts, self.patch(direction), layers)
            delta = patching.deltas(dict.fromkeys(layers, cells))
            return patching, np.concatenate([delta[layer] for layer in layers])

        pair_rows = PairRows(generator=generator, bootstrap_draws=self.bootstrap_draws, sign_flips=self.sign_flips)
        place_LC = np.arange(len(layers) * len(cells)).reshape(len(layers), -1)
        head_rows: list[HeadTable] = []
        layer_rows: list[HeadTable] = []
        model_rows: list[HeadTable] = []

        def add(metric: str, change_X: Estimate, **columns: Any) -> None:
            head_rows.append(change_X[place_LC[:, :-1]].rows(metric, unit="pair", **columns))
            layer_rows.append(change_X[place_LC[:, -1]].rows(f"layer_{metric}", unit="pair", **columns))

        for direction, (target, _) in DIRECTIONS.items():
            patching, delta_XP = patched(bugs, direction)
            add(f"{direction}_nats", pair_rows.effects((delta_XP - patching.target_P).T), null=0.0)
            recovered, columns = pair_rows.recovered(delta_XP, patching.target_P, patching.source_P)
            add(f"{direction}_recovered", recovered, **columns)
            model_rows.append(pair_rows.mean(f"{target}_nats", patching.target_P))
            model_rows.append(pair_rows.success(f"{target}_success", patching.target_P))
        if controls.pairs:
            patching, delta_XP = patched(controls, "sufficiency")
            add("control_nats", pair_rows.effects((delta_XP - patching.target_P).T), null=0.0)
        heads_table = HeadTable.concat(head_rows).with_q()
        table = HeadTable.concat([heads_table, *model_rows, *layer_rows])
        return Findings(table=table, figures={"heads": _figure(heads_table)})


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
