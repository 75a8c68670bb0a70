"""Which heads carry the difference between a clean and a corrupted prompt: every head of every layer, both ways.

Activation patching head by head (science.md §10). Sufficiency writes clean values into the corrupted prompt, necessity
corrupted values into the clean one; the two disagree where heads back each other up. Letters as in patching.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from headdyn.analysis.interventions.pair_rows import PairRows, Row
from headdyn.analysis.interventions.patching import Patch, PromptPatching, in_dtype
from headdyn.core.figures import Figure, HeadMap, head_map
from headdyn.core.records import Findings, HeadTable, Metric
from headdyn.data.comparisons import Prompts
from headdyn.models.decoder import Decoder

DIRECTIONS = ("sufficiency", "necessity")


@dataclass(frozen=True, kw_only=True)
class PatchMap:
    """Patches each head alone (head rows) and all heads of each layer together (layer rows), on the bug pairs.

    Effects are changes of the mean answer log-odds Δ, in nats; their intervals (95 %, BCa) and p-values (sign flips)
    take pairs as units, and q-values run over all head rows. Controls are pairs that the bug does not touch.
    Raises ValueError where the prompts hold no bug pairs.
    """

    site: str = "z"
    source: str = "prompt"
    alignment: str = "span"
    steps: str = "prefill"
    dtype: str = "float32"
    sign_flips: int = 9_999
    bootstrap_draws: int = 2_000

    rows: ClassVar[Literal["head"]] = "head"
    needs: ClassVar[frozenset[str]] = frozenset({"prompts"})
    metrics: ClassVar[Mapping[str, Metric]] = {
        "sufficiency_nats": Metric(
            meaning="change of Δ of corrupted prompts when clean values are written", unit="nats"
        ),
        "necessity_nats": Metric(meaning="change of Δ of clean prompts when corrupted values are written", unit="nats"),
        "sufficiency_recovered": Metric(meaning="sufficiency_nats over the distance to the clean prompts' Δ"),
        "necessity_recovered": Metric(meaning="necessity_nats over the distance to the corrupted prompts' Δ"),
        "control_nats": Metric(meaning="sufficiency_nats on control pairs", unit="nats"),
        "layer_sufficiency_nats": Metric(meaning="sufficiency_nats of all heads of the layer together", unit="nats"),
        "layer_necessity_nats": Metric(meaning="necessity_nats of all heads of the layer together", unit="nats"),
        "layer_sufficiency_recovered": Metric(meaning="sufficiency_recovered of all heads of the layer together"),
        "layer_necessity_recovered": Metric(meaning="necessity_recovered of all heads of the layer together"),
        "layer_control_nats": Metric(meaning="control_nats of all heads of the layer together", unit="nats"),
        "clean_nats": Metric(meaning="mean Δ of clean prompts, bug pairs", unit="nats"),
        "corrupted_nats": Metric(meaning="mean Δ of corrupted prompts, bug pairs", unit="nats"),
        "clean_success": Metric(meaning="share of bug pairs answered rightly, clean prompts", low=0, high=1),
        "corrupted_success": Metric(meaning="share of bug pairs answered rightly, corrupted prompts", low=0, high=1),
    }

    def __post_init__(self) -> None:
        words = {
            "site": ("z", "attn_out_slice"),
            "source": ("prompt", "zero", "mean"),
            "alignment": ("left", "right", "span"),
            "steps": ("prefill", "every_step"),
            "dtype": ("float64", "float32", "bfloat16", "float16"),
        }
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"analysis.patching.{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(known)}"
                )
        for name, low in {"sign_flips": 999, "bootstrap_draws": 100}.items():
            if getattr(self, name) < low:
                raise ValueError(f"analysis.patching.{name}={getattr(self, name)} must be at least {low}")

    def __call__(self, decoder: Decoder, corpus: Prompts, generator: np.random.Generator) -> Findings:
        """Head and layer rows of every effect, model rows of what the unpatched prompts give, one head map."""
        bugs, controls = corpus.where(corpus.is_bug_P), corpus.where(~corpus.is_bug_P)
        if not bugs.pairs:
            raise ValueError("the prompts hold no bug pairs, on which repair is measured; set data.bug_pairs")
        model = in_dtype(decoder, getattr(torch, self.dtype))
        make = PairRows(generator=generator, bootstrap_draws=self.bootstrap_draws, sign_flips=self.sign_flips)
        head_rows: list[Row] = []
        other_rows: list[Row] = []
        for direction in DIRECTIONS:
            patching, delta_LCP = self._grid(model, bugs, direction)
            change_LCP = delta_LCP - patching.target_P
            kinds = (
                make.effects(f"{direction}_nats", change_LCP.reshape(-1, len(bugs.pairs)).T),
                make.recovered(
                    f"{direction}_recovered",
                    delta_LCP.reshape(-1, len(bugs.pairs)),
                    patching.target_P,
                    patching.source_P,
                ),
            )
            for rows in kinds:
                _place(rows, decoder.config.num_heads, head_rows, other_rows)
            prompt = "corrupted" if direction == "sufficiency" else "clean"
            other_rows += [
                make.mean(f"{prompt}_nats", patching.target_P),
                make.success(f"{prompt}_success", patching.target_P),
            ]
        if controls.pairs:
            beside, delta_LCP = self._grid(model, controls, "sufficiency")
            change_PX = (delta_LCP - beside.target_P).reshape(-1, len(controls.pairs)).T
            _place(make.effects("control_nats", change_PX), decoder.config.num_heads, head_rows, other_rows)
        heads = HeadTable.from_rows(head_rows).with_q()
        return Findings(
            table=HeadTable.concat([heads, HeadTable.from_rows(other_rows)]), figures={"heads": _figure(heads)}
        )

    def _grid(self, model: Decoder, prompts: Prompts, direction: str) -> tuple[PromptPatching, np.ndarray]:
        """Δ of every head alone and, last, of all heads of the layer: [L, H + 1, P]."""
        words = ("site", "source", "alignment", "steps")
        settings: dict[str, Any] = {word: getattr(self, word) for word in words} | {"direction": direction}
        layers, heads = range(model.config.num_layers), model.config.num_heads
        patching = PromptPatching(model, prompts, Patch(**settings), layers)
        delta = patching.deltas(dict.fromkeys(layers, np.concatenate((np.eye(heads), np.ones((1, heads))))))
        return patching, np.stack([delta[layer] for layer in layers])


def _place(rows: list[Row], num_heads: int, head_rows: list[Row], layer_rows: list[Row]) -> None:
    """Write layer and head into rows that stand layer by layer, all heads together last."""
    for i, row in enumerate(rows):
        layer, head = divmod(i, num_heads + 1)
        if head < num_heads:
            head_rows.append({**row, "layer": layer, "head": head})
        else:
            layer_rows.append({**row, "metric": f"layer_{row['metric']}", "layer": layer})


def _figure(heads: HeadTable) -> Figure:
    panels = []
    for direction, words in (("sufficiency", "clean into corrupted"), ("necessity", "corrupted into clean")):
        q_LH = heads.matrix(f"{direction}_nats", "q")
        panels.append(
            HeadMap(
                title=f"{direction}: {words}",
                value_LH=heads.matrix(f"{direction}_nats"),
                unit="nats",
                centre=0.0,
                marked_LH=q_LH < 0.05,
            )
        )
    return head_map(panels)
