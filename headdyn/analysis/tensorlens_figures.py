"""Pictures of the whole model's effective attention beside raw attention and rollout."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from headdyn.core.figures import Curve, HeadMap, Interval, curves, head_map, interval_plot, lift_grid
from headdyn.core.records import HeadTable

_NAMES = {"raw": "raw attention", "rollout": "attention rollout", "tensorlens": "TensorLens"}


def instruments_figure(table: HeadTable) -> Figure:
    """Topic selectivity of the model by each instrument, with intervals and nulls."""
    rows = []
    for suffix, group in (("_no_self", "share of what is not on the query"), ("", "share of everything")):
        for name, label in _NAMES.items():
            scalar = table.summary()[f"{name}_selectivity{suffix}"]
            rows.append(
                Interval(
                    label=label,
                    value=scalar.get("value"),
                    low=scalar.get("ci_low"),
                    high=scalar.get("ci_high"),
                    null=scalar.get("null"),
                    group=group,
                )
            )
    return interval_plot(rows, xlabel="topic selectivity (95 % interval over sequences)", zero_line=True)


def layers_figure(table: HeadTable) -> Figure:
    """Selectivity up to every layer by instrument, self key left out."""
    lines = []
    for name, label in _NAMES.items():
        metric = f"{name}_selectivity_no_self"
        value_L, low_L, high_L = (table.layer_series(metric, part) for part in ("value", "ci_low", "ci_high"))
        there = np.flatnonzero(np.isfinite(value_L))
        if len(there):
            title = f"{label} ({'of the layer' if name == 'raw' else 'up to the layer'})"
            lines.append(Curve(label=title, x=there, y=value_L[there], low=low_L[there], high=high_L[there]))
    return curves(
        lines,
        xlabel="layer",
        ylabel="topic selectivity, self key left out",
        title="Mean over sequences with 95 % band",
        references={"label-swap null": 0.0},
        whole_x=True,
    )


def heads_figure(table: HeadTable) -> Figure:
    """What each head writes for topic, and what the next token's logit owes to it."""
    panels = (
        ("head_written_selectivity", "topic selectivity of writes", "share"),
        ("head_topic_nats", "logit from the query's topic", "nats"),
        ("head_logit_excess_nats", "logit carried, beyond other tokens'", "nats"),
    )
    return head_map(
        [
            HeadMap(
                title=title,
                unit=unit,
                note="null 0",
                centre=0,
                value_LH=table.matrix(metric),
                marked_LH=table.matrix(metric, "q") < 0.05,
            )
            for metric, title, unit in panels
        ]
    )


def maps_figure(maps: Mapping[str, np.ndarray], topics_T: np.ndarray) -> Figure:
    """The three maps of one sequence over causal-uniform attention, with its topic boundaries."""
    lift_QK = np.arange(1, len(topics_T) + 1)[:, None]
    return lift_grid(
        np.stack([[maps[name] * lift_QK for name in _NAMES]]),
        rows=[""],
        columns=list(_NAMES.values()),
        boundaries=(np.flatnonzero(np.diff(topics_T.astype(int))) + 1).tolist(),
    )
