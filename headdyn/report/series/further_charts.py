"""Charts of what else checkpoints measured: topics (loss, selectivity, probes), clusters of heads, heads matched."""

from __future__ import annotations

import math

import numpy as np
from markupsafe import Markup

from headdyn.core.figures import PALETTE
from headdyn.core.numbers import fixed, number, quantity
from headdyn.report.charts import Line, Style
from headdyn.report.series.drawing import GREY, LOOKS, chart_over_steps, measured_line, plain_line
from headdyn.report.series.record import Series
from headdyn.report.series.study import seed_silhouettes

_SILHOUETTES = ("qk_best_silhouette", "ov_best_silhouette", "behaviour_best_silhouette")
_REFERENCES = ("random", "unigram", "mixture", "bigram", "trigram", "floor")
_SEED_PARTS = ("query", "key", "value")
_PROBES = ("majority", "token_identity", "position")


def loss_chart(series: Series) -> Markup | None:
    """Held-out loss with its reference lines."""
    points = series.points("loss_nats")
    if points is None:
        return None
    told = {name: [j.run.value(f"{name}_nats") for j in series.complete] for name in _REFERENCES}
    references = {
        f"{name} {values[0]:.3f}": values[0] for name, values in told.items() if values and values[0] is not None
    }
    return chart_over_steps([measured_line("held out", points, 0)], "Held-out loss", "nats", references)


def topic_chart(series: Series, name: str) -> Markup | None:
    """One of the topic statistics, with its null or its baselines."""
    points = series.points(name)
    if points is None:
        return None
    q, lines = quantity(name), [measured_line(quantity(name).label, points, 0)]
    references = {}
    nulls = [v for v in points.null if math.isfinite(v)]
    if name == "probe_accuracy_middle":
        for baseline in (*_PROBES, "ceiling"):
            theirs = series.points(f"probe_{baseline}")
            if theirs is not None:
                references[baseline.replace("_", " ").replace("token identity", "token alone")] = theirs.value[-1]
    elif nulls and not any(nulls):
        references["null: 0"] = 0.0
    elif nulls:
        lines.append(plain_line("null", [*zip(points.steps, points.null, strict=True)], GREY, "7 3", "up"))
    title = q.label[0].upper() + q.label[1:]
    return chart_over_steps(lines, title, q.unit, references, said=series.measures.get(name, {}), scale=q.scale)


def silhouettes_chart(series: Series) -> Markup | None:
    """Best silhouettes of QK circuits, OV circuits and effects, each with its null."""
    lines = []
    for i, name in enumerate(_SILHOUETTES):
        points = series.points(name)
        if points is not None:
            label = quantity(name).label.removeprefix("silhouette, ")
            lines.append(measured_line(label, points, i, "", LOOKS[i][1]))
            null = [(s, v) for s, v in zip(points.steps, points.null, strict=True) if math.isfinite(v)]
            lines.append(plain_line(f"null of {label}", null, PALETTE[i], "2 3", LOOKS[i][1]))
    return chart_over_steps(
        [line for line in lines if len(line.x)], "Silhouettes of heads", "best silhouette", {"0": 0.0}
    )


def seed_silhouettes_chart(series: Series) -> Markup | None:
    """Silhouettes of the pieces that the study clustered, with their nulls; the study's own for its own model."""
    lines, theirs = [], seed_silhouettes(series.model)
    for i, part in enumerate(_SEED_PARTS):
        points = series.points(f"seed_{part}_silhouette")
        if points is None:
            continue
        lines.append(measured_line(f"{part} pieces", points, i, "", LOOKS[i][1]))
        null = [(s, v) for s, v in zip(points.steps, points.null, strict=True) if math.isfinite(v)]
        lines += [plain_line(f"null of {part} pieces", null, PALETTE[i], "2 3", LOOKS[i][1])] if null else []
        if part in theirs:
            lines.append(plain_line(f"the study's {part}", theirs[part], PALETTE[i], "7 3", "up"))
    return chart_over_steps(
        lines, "As the study read the weights (pieces are no heads)", "silhouette, k = 2", {"0": 0.0}
    )


def divergence_chart(series: Series) -> Markup | None:
    """How far the clusters of a checkpoint are from those of the one before."""
    told: dict[str, dict[int, list[float]]] = {}
    for row in series.table("cluster_divergence"):
        if row["value"] is not None and row["metric"].endswith("_label_divergence"):
            told.setdefault(row["metric"], {}).setdefault(row["step"], []).append(row["value"])
    lines = [
        plain_line(
            metric.removesuffix("_label_divergence").replace("qk", "QK circuits").replace("ov", "OV circuits"),
            [(step, float(np.mean(values))) for step, values in sorted(by_step.items())],
            PALETTE[i % len(PALETTE)],
            *LOOKS[i % len(LOOKS)],
        )
        for i, (metric, by_step) in enumerate(told.items())
    ]
    title = "Clusters against those of the checkpoint before"
    return chart_over_steps(lines, title, "1 − adjusted Rand, mean over layers", {"unrelated": 1.0, "the same": 0.0})


def kept_chart(series: Series) -> Markup | None:
    """Share of heads that are most like their own index, at the checkpoint before and at the last."""
    kept = series.verdict.get("heads", {})
    if "kept_to_next" not in kept:
        return None
    following = [(int(pair.partition("-")[2]), v) for pair, v in kept["kept_to_next"].items()]
    last = [(int(step), v) for step, v in kept["kept_to_last"].items()]
    lines = [
        plain_line("to the checkpoint before", following, PALETTE[0], *LOOKS[0]),
        plain_line("to the last checkpoint", last, PALETTE[1], *LOOKS[1]),
    ]
    chance = {f"chance {fixed(kept['chance'], 2)}": kept["chance"]}
    return chart_over_steps(lines, "Heads most like their own index", "share of heads", chance, y_values=(0.0, 1.0))


def cosines_chart(series: Series) -> Markup | None:
    """How alike heads' circuits are to those of the last checkpoint, by index and by best match."""
    rows = series.table("head_matches")
    if not rows:
        return None
    last = max(row["later_step"] for row in rows)
    lines = []
    for i, (column, label) in enumerate((("cosine_same_index", "own index"), ("cosine_best_match", "best match"))):
        by_step: dict[int, list[float]] = {}
        for row in rows:
            if row["later_step"] == last:
                by_step.setdefault(row["earlier_step"], []).append(row[column])
        steps = sorted(by_step)
        means, low, high = ([float(f(by_step[s])) for s in steps] for f in (np.mean, np.min, np.max))
        style = Style(PALETTE[i], *LOOKS[i])
        lines.append(Line(label=f"{label} (least to most)", x=steps, y=means, low=low, high=high, style=style))
    return chart_over_steps(lines, f"Heads against those of step {number(last)}", "cosine of circuits", {"0": 0.0})
