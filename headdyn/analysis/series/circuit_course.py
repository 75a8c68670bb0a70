"""Circuits over training: effective rank, copying and similarity of heads, checkpoint by checkpoint (science.md §8).

K checkpoints, N heads of the whole model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from headdyn.analysis.circuits import Circuits
from headdyn.analysis.series.emergence import SeriesFindings
from headdyn.analysis.series.points import SeriesPoint, excluded_from, in_order
from headdyn.core.figures import Curve, Figure, curves
from headdyn.core.records import HeadTable, Metric
from headdyn.core.statistics import bootstrap_interval

# Metrics of Circuits that are drawn together: figure, its y axis, and the label of each.
_PICTURES = {
    "effective_rank": ("effective rank (dimensions)", {"qk_effective_rank": "QK", "ov_effective_rank": "OV"}),
    "copying": ("copying score Σλ / Σ|λ|", {"copying_score": "OV"}),
    "similarity": ("cosine with the layer's other heads", {"qk_similarity": "QK", "ov_similarity": "OV"}),
    "nearest": ("cosine with the nearest head", {"qk_nearest": "QK", "ov_nearest": "OV"}),
}
FOLLOWED = tuple(metric for _, labels in _PICTURES.values() for metric in labels)


@dataclass(frozen=True, kw_only=True)
class CircuitCourse:
    """How the heads' circuits change over a series, from what `circuits` measured at every checkpoint.

    Model rows: the mean over heads at the last checkpoint less that at the first, with a 95 % interval (BCa) over
    heads. A head's index need not stand for the same function at both ends; a mean does not depend on it. Table
    `circuit_course`: per checkpoint and metric the heads' mean, 10th and 90th percentile, and the mean of random
    heads. Revisions that hold the weights of another are left out (`headdyn.models.integrity`), as are failed ones,
    both with their reason.
    Raises ValueError for settings that give no interval.
    """

    final: str | None = None
    bootstrap_draws: int = 2_000

    rows: ClassVar[Literal["model"]] = "model"
    needs: ClassVar[frozenset[str]] = frozenset({"series"})
    metrics: ClassVar[Mapping[str, Metric]] = {
        f"{metric}_change": Metric(meaning=f"last checkpoint less first: {Circuits.metrics[metric].meaning}")
        for metric in FOLLOWED
    }

    def __post_init__(self) -> None:
        if self.bootstrap_draws < 100:
            raise ValueError(f"analysis.circuit_course.bootstrap_draws={self.bootstrap_draws} must be at least 100")

    def __call__(self, points: Sequence[SeriesPoint], generator: np.random.Generator) -> SeriesFindings:
        """The changes, a figure for each kind of measure, and the table behind them."""
        left_out = self._left_out(points)
        counted = {p.step: p.table for p in points if p.revision not in left_out and p.step is not None and p.table}
        steps = sorted(counted)
        values = {metric: _by_step(counted, steps, metric) for metric in FOLLOWED}
        verdict: dict[str, Any] = {"steps": steps, "left_out": left_out}
        if len(steps) < 2:
            verdict["reason"] = f"{len(steps)} checkpoints with circuits are no series; add analysis=[circuits,...]"
            return SeriesFindings(table=HeadTable.concat([]), verdict=verdict)
        rows = [self._change(metric, values[metric], generator) for metric in FOLLOWED]
        drawn = {name: _picture(name, steps, values, counted) for name in _PICTURES}
        return SeriesFindings(
            table=HeadTable.from_rows(rows),
            figures={name: figure for name, figure in drawn.items() if figure is not None},
            tables={"circuit_course": _table(steps, values, counted)},
            verdict=verdict | {"changes": {row["metric"]: row.get("value") for row in rows}},
        )

    def _left_out(self, points: Sequence[SeriesPoint]) -> dict[str, str]:
        failed = {p.revision: p.error for p in points if p.error is not None}
        bare = {
            p.revision: "circuits were not among its analyses"
            for p in points
            if p.table is not None and not len(p.table.where(metric=FOLLOWED[0]))
        }
        excluded, _ = excluded_from(in_order(points), self.final)
        return failed | bare | excluded

    def _change(self, metric: str, value_KN: np.ndarray, generator: np.random.Generator) -> dict[str, Any]:
        row = {"metric": f"{metric}_change", "unit": "head"}
        change_N = value_KN[-1] - value_KN[0]
        change_N = change_N[~np.isnan(change_N)]
        if not len(change_N):
            return row | {"reason": "no head has a value at both ends", "n": value_KN.shape[1]}
        low, high = bootstrap_interval(change_N, generator, draws=self.bootstrap_draws)
        interval = {} if np.isnan(low) else {"ci_low": float(low), "ci_high": float(high)}
        return row | {"value": float(change_N.mean()), "null": 0.0, "n": len(change_N)} | interval


def _by_step(tables: Mapping[int, HeadTable], steps: Sequence[int], metric: str) -> np.ndarray:
    """[K, N], NaN where a head has no value."""
    return np.array([tables[step].matrix(metric).ravel() for step in steps]) if steps else np.empty((0, 0))


def _spread(value_KN: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, 10th and 90th percentile over the heads that have a value, [K] each; a checkpoint must have one."""
    low_K, high_K = np.nanquantile(value_KN, (0.1, 0.9), axis=1)
    return np.nanmean(value_KN, axis=1), low_K, high_K


def _null(table: HeadTable, metric: str) -> float | None:
    return table.summary()[metric].get("null")


def _picture(
    name: str, steps: Sequence[int], values: Mapping[str, np.ndarray], tables: Mapping[int, HeadTable]
) -> Figure | None:
    """Means over heads with their spread, random heads as dashed lines; None where no head has a value."""
    ylabel, labels = _PICTURES[name]
    lines, nulls = [], []
    for metric, label in labels.items():
        if np.isnan(values[metric]).all(axis=1).any():
            continue
        mean_K, low_K, high_K = _spread(values[metric])
        lines.append(Curve(label=label, x=steps, y=mean_K, low=low_K, high=high_K))
        null = _null(tables[steps[-1]], metric)
        if null is not None:
            nulls.append((f"random heads, {label}", null))
    if not lines:
        return None
    return curves(
        lines,
        xlabel="training step",
        ylabel=ylabel,
        title="Mean over heads, 10th to 90th percentile",
        references=dict(nulls),
        log_x=True,
    )


def _table(steps: Sequence[int], values: Mapping[str, np.ndarray], tables: Mapping[int, HeadTable]) -> pa.Table:
    rows = []
    for metric, value_KN in values.items():
        for step, value_N in zip(steps, value_KN, strict=True):
            there_1N = value_N[~np.isnan(value_N)][None]
            mean, low, high = (float(x[0]) for x in _spread(there_1N)) if there_1N.size else (None, None, None)
            null = _null(tables[step], metric)
            rows.append({"step": step, "metric": metric, "mean": mean, "low": low, "high": high, "null": null})
    return pa.Table.from_pylist(rows)
