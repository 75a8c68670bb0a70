"""Pictures of the whole model's effective attention beside raw attention and rollout."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from headdyn.analysis.figure_parts import head_panel, interval, layer_curve
from headdyn.analysis.tensorlens import TensorLens
from headdyn.core.figures import Figure, curves, head_map, interval_plot, lift_grid
from headdyn.core.records import HeadTable

_NAMES = {"raw": "raw attention", "rollout": "attention rollout", "tensorlens": "TensorLens"}


def instruments_figure(table: HeadTable) -> Figure:
    """Topic selectivity of the model by each instrument, with intervals and nulls."""
    whole = table.summary()
    groups = {"_no_self": "share of what is not on the query", "": "share of everything"}
    return interval_plot(
        [
            interval(label, whole[f"{name}_selectivity{suffix}"], group)
            for suffix, group in groups.items()
            for name, label in _NAMES.items()
        ],
        xlabel="topic selectivity (95 % interval over sequences)",
        zero_line=True,
        caption="How much more the whole model reads from tokens of the query's topic than from the same places "
        "under other sequences' topics, by three instruments. 0 is chance. Compare the instruments without the query "
        "itself: TensorLens and rollout hold the residual stream, raw attention does not.",
    )


def layers_figure(table: HeadTable) -> Figure:
    """Selectivity up to every layer by instrument, self key left out."""
    lines = []
    for name, label in _NAMES.items():
        reach = "of the layer" if name == "raw" else "up to the layer"
        lines.append(layer_curve(table, f"{name}_selectivity_no_self", f"{label} ({reach})"))
    return curves(
        [line for line in lines if len(line.x)],
        xlabel="layer",
        ylabel="topic selectivity, self key left out",
        title="Mean over sequences with 95 % band",
        references={"label-swap null": 0.0},
        whole_x=True,
        caption="Topic selectivity layer by layer. 0, the label-swap null, is what attention by position alone gives.",
    )


def heads_figure(table: HeadTable) -> Figure:
    """What each head writes for topic, and what the next token's logit owes to it."""
    names = ("head_written_selectivity", "head_topic_nats", "head_logit_excess_nats")
    panels = [head_panel(TensorLens.metrics, table, name, tested=name, note="null 0", centre=0) for name in names]
    return head_map(
        panels,
        caption="Which heads write more for keys of the query's topic, and what the logit of the next token owes to "
        "each head. 0 is chance: the labels, or the next tokens, of other sequences. A star marks a head that "
        "differs.",
    )


def maps_figure(maps: Mapping[str, np.ndarray], topics_T: np.ndarray) -> Figure:
    """The three maps of one sequence over causal-uniform attention, with its topic boundaries."""
    lift_QK = np.arange(1, len(topics_T) + 1)[:, None]
    return lift_grid(
        np.stack([[maps[name] * lift_QK for name in _NAMES]]),
        rows=[""],
        columns=list(_NAMES.values()),
        boundaries=(np.flatnonzero(np.diff(topics_T)) + 1).tolist(),
        caption="What every token reads from every earlier one in one sequence, over what uniform attention would "
        "read. Lines are topic boundaries: blocks along the diagonal are attention within a topic.",
    )
