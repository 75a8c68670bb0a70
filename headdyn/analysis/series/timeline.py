"""The checkpoints of a series side by side: one row each, and the curves over log steps (science.md §15)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from headdyn.analysis.series.head_matching import Matches
from headdyn.analysis.series.judgement import Judgements, Measure
from headdyn.analysis.series.points import SeriesPoint, with_metric
from headdyn.core.figures import Curve, Figure, curves
from headdyn.core.records import HeadTable


def timeline_table(
    points: Sequence[SeriesPoint], excluded: Mapping[str, str], total_steps: int, bands: Mapping[str, np.ndarray]
) -> pa.Table:
    """One row per revision: step, share of training, whether it counts (if not, the reason), then every model metric.

    A metric has columns for value, interval, null and p. `bands` are further columns for the revisions that count.
    """
    rows: list[dict[str, Any]] = []
    next_values = {name: iter(values.tolist()) for name, values in bands.items()}
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
        for metric, columns in point.table.summary().items():
            row[metric] = columns.get("value")
            row |= {f"{metric}_{part}": columns.get(part) for part in ("ci_low", "ci_high", "null", "p")}
        if reason is None:
            row |= {name: next(values) for name, values in next_values.items()}
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pa.table({name: column for name, column in columns.items() if name == "reason" or set(column) != {None}})


# -- figures ----------------------------------------------------------------------------------------------------------


Lines = dict[str, dict[int, float]]  # by label, then by step


def series_figures(
    points: Sequence[SeriesPoint],
    measures: Sequence[Measure],
    judgements: Judgements,
    matches: Matches,
    divergence: HeadTable,
) -> dict[str, Figure]:
    """The figures that a report cannot draw from the timeline; a figure without any data is left out."""
    log_odds: Lines = {
        label: {step: row["value"] for step, row in with_metric(points, metric).items()}
        for metric, label in (("plain_nats", "nothing patched"), ("source_nats", "the source"))
    }
    layers: Lines = {}
    for step, point in {point.step: point for point in points if point.step is not None}.items():
        if point.splits is not None:
            log_odds.setdefault("even heads", {})[step] = float(point.splits.even_P.mean())
            log_odds.setdefault("odd heads", {})[step] = float(point.splits.odd_P.mean())
        rows = point.table.where(metric="strength_nats", head=None).rows()
        for row in (row for row in rows if row["layer"] is not None and row["value"] is not None):
            layers.setdefault(f"layer {row['layer']}", {})[step] = row["value"]
    moves: dict[str, dict[int, list[float]]] = {}
    for row in (row for row in divergence.rows() if row["value"] is not None):
        moves.setdefault(row["metric"].replace("_", " "), {}).setdefault(row["step"], []).append(row["value"])
    figures = {
        "log_odds": _over_steps(
            log_odds,
            "mean Δ (nats)",
            "Log-odds of right against wrong",
            "Mean log-odds of the right answer against the wrong one. At 0 both are equally likely.",
            references={"right and wrong alike": 0.0},
        ),
        "layers": _over_steps(
            layers,
            "strength (nats)",
            "Even − odd at every layer",
            "Δ with a layer's even heads patched less that with its odd ones; 0 is no difference.",
        ),
        "detail": _detail(measures, judgements),
        "heads": _heads(matches),
        "cluster_divergence": _over_steps(
            {label: {step: float(np.mean(by)) for step, by in by_step.items()} for label, by_step in moves.items()},
            "divergence (mean over layers)",
            "Clusters against those of the checkpoint before",
            "0: the same clusters or distances as at the checkpoint before; 1: unrelated ones, as by chance.",
            references={"unrelated": 1.0},
        ),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def _detail(measures: Sequence[Measure], judgements: Judgements) -> Figure | None:
    """Every measure as a share of its highest value, at the checkpoints around emergence."""
    most = max((m.steps for m in measures), key=len, default=())
    nonzero = [m for m in measures if m.steps == most and np.abs(m.value_K).max() > 0]
    emerging = [judgements[m.name] for m in nonzero if judgements[m.name]["emerges_at_step"] is not None]
    if not emerging:
        return None
    places = [most.index(judgement["emerges_at_step"]) for judgement in emerging]
    window = slice(max(min(places) - 3, 0), max(places) + 3)
    return curves(
        [Curve(label=m.name, x=most[window], y=m.value_K[window] / np.abs(m.value_K).max()) for m in nonzero],
        xlabel="training step (linear)",
        ylabel="share of the highest |value|",
        title="Around emergence",
        references={"half": 0.5, "none": 0.0},
        span=(emerging[0]["emerges_after_step"] or 0, emerging[0]["emerges_at_step"]),
        caption="Every measure over its highest value, at the checkpoints around emergence. A thresholded measure may "
        "jump where the continuous one beneath it rises slowly.",
    )


def _heads(matches: Matches) -> Figure | None:
    """Each head's cosine over training with the last checkpoint's head of its index, and with the most similar head."""
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
    return curves(
        [*lines, Curve(label="other indices", x=steps, y=other_K)],
        xlabel="training step",
        ylabel="cosine of circuits (least to most)",
        title=f"Heads against those of step {last}",
        log_x=True,
        caption="Mean over heads of the cosine with the last checkpoint's circuits; bands reach from the least to the "
        "greatest head. Heads of other indices show the level of chance.",
    )


def _over_steps(lines: Lines, ylabel: str, title: str, caption: str, **more: Any) -> Figure | None:
    parts = [Curve(label=label, x=list(line), y=list(line.values())) for label, line in lines.items() if line]
    if not parts:
        return None
    return curves(parts, xlabel="training step", ylabel=ylabel, title=title, caption=caption, log_x=True, **more)
