"""Maps of a series: a layer's heads and the model's layers, checkpoint by checkpoint, each on one colour scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup

from headdyn.core.numbers import fixed, number, spelled
from headdyn.report.head_maps import Colours, grid_map
from headdyn.report.series.record import Series
from headdyn.sweep.jobs import Job

_LEAST_REACH_NATS = 0.02  # so that a suite without any effect does not colour its noise


def series_maps(series: Series) -> list[Markup]:
    """Strength of every layer, and the effect of every single head of the layer that was patched, over the steps."""
    found = [
        _map(series, "strength_nats", "Strength of Δ at every layer (even − odd, nats)", "layer", _by_layer),
        _map(series, "head_effect_nats", "Each head patched alone: change of Δ (nats)", "head", _by_head),
    ]
    return [drawn for drawn in found if drawn is not None]


def _by_layer(job: Job, metric: str, column: str) -> np.ndarray:
    return job.heads.where(head=None).layer_series(metric, column)


def _by_head(job: Job, metric: str, column: str) -> np.ndarray:
    """The heads of the one layer that has them; empty where several layers have."""
    value_LH = job.heads.matrix(metric, column)
    layers = [row["layer"] for row in job.heads.where(metric=metric).rows() if row["head"] is not None]
    return value_LH[layers[0]] if len(set(layers)) == 1 else np.empty(0)


def _map(
    series: Series, metric: str, title: str, what: str, read: Callable[[Job, str, str], np.ndarray]
) -> Markup | None:
    there: list[tuple[Job, str]] = []
    for row in series.counted:
        job = series.jobs.get(row["revision"])
        if job is not None and any((r["layer"] is not None) for r in job.heads.where(metric=metric).rows()):
            there.append((job, number(row["step"])))
    columns: dict[str, Sequence[np.ndarray]] = {
        name: [read(job, metric, name) for job, _ in there] for name in ("value", "ci_low", "ci_high")
    }
    width = min((len(values) for values in columns["value"]), default=0)
    if len(there) < 2 or not width or any(len(values) != width for values in columns["value"]):
        return None
    value_KX, low_KX, high_KX = (np.stack(columns[name]) for name in ("value", "ci_low", "ci_high"))
    notes = {}
    for at, value in np.ndenumerate(value_KX):
        ends = {"ci_low": float(low_KX[at]), "ci_high": float(high_KX[at])} if np.isfinite(low_KX[at]) else {}
        notes[at] = "absent" if np.isnan(value) else spelled({"value": float(value), **ends})
    reach = max(float(np.nanmax(np.abs(value_KX), initial=0)), _LEAST_REACH_NATS)
    colours = Colours(low=-reach, high=reach, centre=0.0, places=2 if reach >= 0.095 else 3)
    return grid_map(
        value_KX,
        [f"step {step}" for _, step in there],
        [fixed(place, 0) for place in range(width)],
        title=title,
        axes=("checkpoint", what),
        colours=colours,
        notes=notes,
    )
