"""The checkpoints of a series side by side: one row each, and the curves over log steps (science.md §15)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from headdyn.analysis.series.head_matching import Match
from headdyn.analysis.series.judgement import Measure
from headdyn.analysis.series.points import SeriesPoint, with_metric
from headdyn.core.figures import Curve, Figure, curves
from headdyn.core.records import HeadTable

SUCCESSES = {
    "plain_success": "nothing patched",
    "even_success": "even heads",
    "odd_success": "odd heads",
    "all_success": "all heads",
    "source_success": "the source prompts",
}


def timeline_table(
    points: Sequence[SeriesPoint], excluded: Mapping[str, str], total_steps: int, bands: Mapping[str, np.ndarray]
) -> pa.Table:
    """One row per revision: step, share of training, whether it counts and if not why, then every model metric.

    A metric has columns for value, interval, null and p. `bands` are further columns for the revisions that count.
    """
    rows: list[dict[str, Any]] = []
    place = 0
    for point in points:
        reason = point.error or excluded.get(point.revision)
        row: dict[str, Any] = {
            "revision": point.revision,
            "step": point.step,
            "training_share": None if point.step is None else point.step / total_steps,
            "counts": reason is None,
            "reason": reason,
            "state_hash": point.state_hash,
        }
        for metric, columns in point.summary().items():
            row[metric] = columns.get("value")
            row |= {f"{metric}_{part}": columns.get(part) for part in ("ci_low", "ci_high", "null", "p")}
        if reason is None:
            row |= {name: float(values[place]) for name, values in bands.items()}
            place += 1
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pa.table({name: column for name, column in columns.items() if name == "reason" or set(column) != {None}})


# -- figures ----------------------------------------------------------------------------------------------------------


def strength_figure(
    points: Sequence[SeriesPoint], metric: str, unit: str, judgement: Mapping[str, Any], band_K: np.ndarray | None
) -> Figure | None:
    """A strength over log steps with its interval, the null band about 0, and the emergence interval shaded."""
    lines = [metric_curve(points, metric, "even − odd")]
    if band_K is not None:
        steps = [point.step for point in points if point.step is not None]
        lines.append(Curve(label="95 % null band", x=steps, y=np.zeros(len(steps)), low=-band_K, high=band_K))
    at, after = judgement["emerges_at_step"], judgement["emerges_after_step"]
    since = "at or before" if after is None else f"after step {after} and by"
    title = "No emergence" if at is None else f"Emerges {since} step {at} ({judgement['class']})"
    threshold = judgement["threshold"]
    return _over_steps(
        lines,
        f"strength ({unit})",
        title,
        "With the even heads patched less with the odd ones, and its 95 % interval over pairs. Inside the null band it "
        "is what splits of the heads reach by chance. Shaded: the interval in which it emerges.",
        references={} if threshold is None else {judgement["rule"]: threshold},
        span=_emergence_span(judgement),
    )


def success_figure(points: Sequence[SeriesPoint]) -> Figure | None:
    """Success rates over log steps, patched and not; None where no table has them."""
    return _over_steps(
        [metric_curve(points, metric, label) for metric, label in SUCCESSES.items()],
        "success (share of bug pairs)",
        "Answers that are right",
        "Share of the bug pairs answered rightly, with 95 % intervals over pairs. Guessing gives one half.",
    )


def log_odds_figure(points: Sequence[SeriesPoint]) -> Figure | None:
    """Mean Δ over log steps: unpatched, of the source, and with either half patched where splits were measured."""
    lines = [metric_curve(points, "plain_nats", "nothing patched"), metric_curve(points, "source_nats", "the source")]
    split = {point.step: point.splits for point in points if point.splits is not None and point.step is not None}
    for name, half in (("even heads", "even_P"), ("odd heads", "odd_P")) if split else ():
        y = [getattr(splits, half).mean() for splits in split.values()]
        lines.append(Curve(label=name, x=list(split), y=y))
    return _over_steps(
        lines,
        "mean Δ (nats)",
        "Log-odds of right against wrong",
        "Mean log-odds of the right answer against the wrong one. At 0 both are equally likely.",
        references={"right and wrong alike": 0.0},
    )


def detail_figure(
    steps: Sequence[int], measures: Sequence[Measure], judgements: Mapping[str, Mapping[str, Any]]
) -> Figure | None:
    """Every measure as a share of its highest value, around where those that emerge do so; None where none does."""
    values = {m.name: m.value_K for m in measures if m.steps == tuple(steps)}
    emerging = [judgements[name] for name in values if judgements[name]["emerges_at_step"] is not None]
    if not emerging:
        return None
    places = [steps.index(each["emerges_at_step"]) for each in emerging]
    window = slice(max(min(places) - 3, 0), max(places) + 3)
    sizes = {name: np.abs(value_K).max() for name, value_K in values.items()}
    return curves(
        [Curve(label=name, x=steps[window], y=values[name][window] / size) for name, size in sizes.items() if size > 0],
        xlabel="training step (linear)",
        ylabel="share of the highest |value|",
        title="Around emergence",
        references={"half": 0.5, "none": 0.0},
        span=_emergence_span(emerging[0]),
        caption="Every measure over its highest value, at the checkpoints around emergence. A thresholded measure may "
        "jump where the continuous one beneath it rises slowly.",
    )


def layers_figure(points: Sequence[SeriesPoint]) -> Figure | None:
    """strength_nats of every layer over log steps; None where the tables have no such rows."""
    by_layer: dict[int, dict[int, float]] = {}
    for point in points:
        if point.table is not None and point.step is not None:
            for row in point.table.where(metric="strength_nats", head=None).rows():
                if row["layer"] is not None and row["value"] is not None:
                    by_layer.setdefault(row["layer"], {})[point.step] = row["value"]
    return _over_steps(
        [Curve(label=f"layer {layer}", x=list(y), y=list(y.values())) for layer, y in sorted(by_layer.items())],
        "strength (nats)",
        "Even − odd at every layer",
        "Δ with a layer's even heads patched less that with its odd ones; 0 is no difference.",
    )


def heads_figure(matches: Mapping[tuple[int, int], Match]) -> Figure | None:
    """How like its last self each head is over training: under its own index, and the best match of any index."""
    if not matches:
        return None
    last = max(later for _, later in matches)
    steps = sorted(earlier for earlier, later in matches if later == last)
    cosine_KHJ = np.stack([matches[step, last].cosine_HJ for step in steps])
    heads = cosine_KHJ.shape[-1]
    own_KJ, best_KJ = cosine_KHJ.diagonal(axis1=1, axis2=2), cosine_KHJ.max(1)
    other_K = (cosine_KHJ.sum((1, 2)) - own_KJ.sum(1)) / max(heads * (heads - 1), 1)
    lines = [
        Curve(label=name, x=steps, y=value_KJ.mean(1), low=value_KJ.min(1), high=value_KJ.max(1))
        for name, value_KJ in (("own index", own_KJ), ("best match", best_KJ))
    ]
    return _over_steps(
        [*lines, Curve(label="other indices", x=steps, y=other_K)],
        "cosine of circuits (least to most)",
        f"Heads against those of step {last}",
        "Mean over heads of the cosine with the last checkpoint's circuits; bands reach from the least to the greatest "
        "head. Heads of other indices are what chance would look like.",
    )


def divergence_figure(divergence: HeadTable) -> Figure | None:
    """How far clusters moved from one checkpoint to the next, mean over layers, against 1 for unrelated ones."""
    by_metric: dict[str, dict[int, list[float]]] = {}
    for row in divergence.rows():
        if row["value"] is not None:
            by_metric.setdefault(row["metric"], {}).setdefault(row["step"], []).append(row["value"])
    return _over_steps(
        [
            Curve(label=metric.replace("_", " "), x=list(values), y=[float(np.mean(of)) for of in values.values()])
            for metric, values in by_metric.items()
        ],
        "divergence (mean over layers)",
        "Clusters against those of the checkpoint before",
        "0: the same clusters or distances as at the checkpoint before; 1: unrelated ones, as chance would have it.",
        references={"unrelated": 1.0},
    )


def metric_curve(points: Sequence[SeriesPoint], metric: str, label: str) -> Curve | None:
    """A model metric with its interval over the steps that have it; None where fewer than two do."""
    rows = with_metric(points, metric)
    if len(rows) < 2:
        return None
    value, low, high = (
        [row.get(part, row["value"]) for row in rows.values()] for part in ("value", "ci_low", "ci_high")
    )
    return Curve(label=label, x=list(rows), y=value, low=low, high=high)


def _over_steps(lines: Sequence[Curve | None], ylabel: str, title: str, caption: str, **more: Any) -> Figure | None:
    drawn = [line for line in lines if line is not None and len(line.x)]
    if not drawn:
        return None
    return curves(drawn, xlabel="training step", ylabel=ylabel, title=title, caption=caption, log_x=True, **more)


def _emergence_span(judgement: Mapping[str, Any]) -> tuple[float, float] | None:
    at = judgement["emerges_at_step"]
    return None if at is None else (judgement["emerges_after_step"] or 0, at)
