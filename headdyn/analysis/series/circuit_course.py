"""Circuits over training: effective rank, copying and similarity of heads, checkpoint by checkpoint (science.md §8).

K checkpoints, N heads of the whole model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from headdyn.analysis.circuits import Circuits
from headdyn.analysis.contract import SeriesFindings
from headdyn.analysis.metrics import BootstrapDraws
from headdyn.core.figures import Curve, Figure, curves
from headdyn.core.records import HeadTable, Metric
from headdyn.core.settings import settings

if TYPE_CHECKING:
    from headdyn.analysis.series.points import SeriesPoint

# Figures by name: the label of the y axis, and the metrics of Circuits that are drawn together, with their labels.
_PICTURES = {
    "effective_rank": ("effective rank (dimensions)", {"qk_effective_rank": "QK", "ov_effective_rank": "OV"}),
    "copying": ("copying score Σλ / Σ|λ|", {"copying_score": "OV"}),
    "similarity": ("cosine with the layer's other heads", {"qk_similarity": "QK", "ov_similarity": "OV"}),
    "nearest": ("cosine with the nearest head", {"qk_nearest": "QK", "ov_nearest": "OV"}),
}
FOLLOWED = tuple(metric for _, labels in _PICTURES.values() for metric in labels)


@settings
class CircuitCourse:
    """How the heads' circuits change over a series, from the rows of `circuits` at every checkpoint.

    Model rows: the mean over heads at the last checkpoint less that at the first, with a 95 % interval (BCa) over
    heads. The mean does not depend on whether an index stands for the same head at both ends. Table `circuit_course`:
    per checkpoint and metric the heads' mean, 10th and 90th percentile, and the mean of random heads. Failed revisions
    and revisions with the weights of another (`check_integrity`) are left out, with the reason.
    """

    final: str | None = None
    bootstrap_draws: BootstrapDraws = 2_000

    needs: ClassVar[frozenset[str]] = frozenset({"series"})
    metrics: ClassVar[Mapping[str, Metric]] = {
        f"{name}_change": dataclasses.replace(
            metric, label=f"change of {metric.label}", meaning=f"last checkpoint less first: {metric.meaning}",
            low=-np.inf, high=np.inf, outcome=False,
        )
        for name, metric in Circuits.metrics.items() if name in FOLLOWED
    }  # fmt: skip

    def __call__(self, points: Sequence[SeriesPoint], generator: np.random.Generator) -> SeriesFindings:
        """The changes, a figure for each kind of measure, and the table behind them."""
        from headdyn.analysis.series.points import excluded_from, in_order

        excluded, _ = excluded_from(in_order(points), self.final)
        unmeasured = [p for p in points if p.error is None and not len(p.table.where(metric=FOLLOWED[0]))]
        left_out = {
            **{p.revision: p.error for p in points if p.error is not None},
            **{p.revision: "circuits were not among its analyses" for p in unmeasured},
            **excluded,
        }
        counted = {p.step: p.table for p in points if p.revision not in left_out and p.step is not None}
        steps = sorted(counted)
        verdict: dict[str, Any] = {"steps": steps, "left_out": left_out}
        if len(steps) < 2:
            verdict["reason"] = f"{len(steps)} checkpoints with circuits are no series; add analysis=[circuits,...]"
            return SeriesFindings(table=HeadTable.concat([]), verdict=verdict)
        values = {m: np.array([counted[step].matrix(m).ravel() for step in steps]) for m in FOLLOWED}
        nulls = {m: [counted[step].summary()[m].get("null") for step in steps] for m in FOLLOWED}
        table = HeadTable.concat(self._change(metric, values[metric], generator) for metric in FOLLOWED)
        figures = {name: _picture(name, steps, values, nulls) for name in _PICTURES}
        return SeriesFindings(
            table=table,
            figures={name: figure for name, figure in figures.items() if figure is not None},
            tables={"circuit_course": _table(steps, values, nulls)},
            verdict=verdict | {"changes": {row["metric"]: row["value"] for row in table.rows()}},
        )

    def _change(self, metric: str, value_KN: np.ndarray, generator: np.random.Generator) -> HeadTable:
        from headdyn.analysis.estimates import means

        change_N = value_KN[-1] - value_KN[0]
        change_N = change_N[~np.isnan(change_N)]
        name = f"{metric}_change"
        if not len(change_N):
            reason = "no head has a value at both ends"
            return HeadTable.whole(name, None, reason=reason, unit="head", n=value_KN.shape[1])
        return means(change_N, generator, draws=self.bootstrap_draws).rows(name, null=0.0, unit="head")


def _spread(value_KN: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, 10th and 90th percentile over the heads that have a value, [K] each; every checkpoint needs such a head."""
    low_K, high_K = np.nanquantile(value_KN, (0.1, 0.9), axis=1)
    return np.nanmean(value_KN, axis=1), low_K, high_K


def _picture(
    name: str, steps: Sequence[int], values: Mapping[str, np.ndarray], nulls: Mapping[str, Sequence[float | None]]
) -> Figure | None:
    """Means over heads with their spread, random heads as reference lines; None where no head has a value."""
    ylabel, labels = _PICTURES[name]
    labels = {m: label for m, label in labels.items() if not np.isnan(values[m]).all(axis=1).any()}
    if not labels:
        return None
    spreads = {label: _spread(values[metric]) for metric, label in labels.items()}
    last = {f"random heads, {label}": nulls[metric][-1] for metric, label in labels.items()}
    return curves(
        [Curve(label=label, x=steps, y=mean, low=low, high=high) for label, (mean, low, high) in spreads.items()],
        xlabel="training step",
        ylabel=ylabel,
        title="Mean over heads, 10th to 90th percentile",
        references={label: null for label, null in last.items() if null is not None},
        log_x=True,
        caption="Line: mean over all heads of the model; band: their spread. Random heads show the level of chance.",
    )


def _table(
    steps: Sequence[int], values: Mapping[str, np.ndarray], nulls: Mapping[str, Sequence[float | None]]
) -> pa.Table:
    rows = []
    for metric, value_KN in values.items():
        for step, value_N, null in zip(steps, value_KN, nulls[metric], strict=True):
            known_1N = value_N[~np.isnan(value_N)][None]
            mean, low, high = (float(x[0]) for x in _spread(known_1N)) if known_1N.size else (None, None, None)
            rows.append({"step": step, "metric": metric, "mean": mean, "low": low, "high": high, "null": null})
    return pa.Table.from_pylist(rows)
