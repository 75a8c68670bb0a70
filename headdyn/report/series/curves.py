"""Curves of metrics over the steps of a series, with intervals, what chance gives, and where a metric emerged."""

import math
from collections.abc import Mapping, Sequence

from headdyn.core.figures import Curve, Figure, curves
from headdyn.core.numbers import number
from headdyn.core.records import Metric
from headdyn.sweep.outcomes import outcomes_of
from headdyn.sweep.series_record import Points, Series

_MOST_METRICS = 6  # in one chart: each may bring its null as a second line
# Scalars of the runs that are reference lines of a metric's curve: (nearly) the same at every checkpoint.
_REFERENCES: Mapping[str, Sequence[str]] = {
    "loss_nats": ("random_nats", "unigram_nats", "mixture_nats", "bigram_nats", "trigram_nats", "floor_nats"),
    "probe_accuracy_middle": ("probe_majority", "probe_token_identity", "probe_position", "probe_ceiling"),
}


def primary_curve(series: Series) -> Figure | None:
    """The measure that answers the series' question, over training."""
    return None if series.primary is None else curve(series, [series.primary])


def other_curves(series: Series) -> dict[str, Figure]:
    """Charts, by title, of the other measures and of every outcome that at least two checkpoints measured.

    Each measure has its own chart; outcomes with the same analysis and unit share one.
    """
    names = dict.fromkeys((*series.measures, *outcomes_of(job.run for job in series.complete).names))
    groups: dict[object, list[str]] = {}
    for name in names:
        points = series.points(name)
        if name != series.primary and points is not None and len(points.steps) > 1:
            alone = name in series.measures or name in _REFERENCES
            metric = series.metric(name)
            groups.setdefault(name if alone else (_analysis(series, name), metric.unit, metric.scale), []).append(name)
    parts = [group[i : i + _MOST_METRICS] for group in groups.values() for i in range(0, len(group), _MOST_METRICS)]
    return {title(series, part): figure for part in parts if (figure := curve(series, part)) is not None}


def curve(series: Series, names: Sequence[str], *, more: Sequence[Curve] = ()) -> Figure | None:
    """Metrics of one unit over the steps, with intervals; None where no checkpoint has them.

    One metric alone is drawn with the band within which 95 % of all splits stay, its reference lines, its threshold and
    the span in which it emerged. `more` are further curves, in the reader's unit of the metric.
    """
    measured = {name: points for name in names if (points := series.points(name)) is not None}
    if not measured:
        return None
    first, alone = next(iter(measured)), len(measured) == 1
    metric = series.metric(first)
    lines, captions = [], []
    levels: dict[str, float] = {}
    for name, points in measured.items():
        label, meaning = series.metric(name).label, series.metric(name).meaning
        lines.append(_line(label, points, metric.scale))
        null = [(step, v) for step, v in zip(points.steps, points.null, strict=True) if math.isfinite(v)]
        if null and not any(v for _, v in null):
            levels["chance"] = 0.0
        elif null:
            steps, values = zip(*null, strict=True)
            lines.append(
                Curve(label="chance" if alone else f"chance, {label}", x=steps, y=[metric.scale * v for v in values])
            )
        captions.append(f"{label}: {meaning}" if meaning else label)
    if any(points.has_interval for points in measured.values()):
        captions.append("Shaded around a line: its 95 % interval")
    span = None
    if alone:
        judgement = series.measures.get(first, {})
        band, about = _band(series, first, metric)
        lines, captions, levels = [*lines, *band], [*captions, *about], levels | _references(series, first, metric)
        if judgement.get("threshold") is not None and not judgement["rule"].startswith("above half"):
            levels["threshold"] = metric.scale * judgement["threshold"]
        if judgement.get("emerges_at_step") is not None:
            span = (judgement["emerges_after_step"] or measured[first].steps[0], judgement["emerges_at_step"])
            captions.append("Shaded from top to bottom: the steps between which it emerges")
    return curves(
        [*lines, *more],
        xlabel="training step",
        ylabel=(f"{metric.label} ({metric.unit})" if alone and metric.unit else metric.unit) or metric.label,
        title=title(series, list(measured)),
        references=levels,
        log_x=True,
        span=span,
        caption=". ".join(captions) + ".",
    )


def title(series: Series, names: Sequence[str]) -> str:
    """The title of a chart of these metrics: the label of a single one, the analysis and unit of several."""
    text = series.metric(names[0]).label
    if len(names) > 1:
        text = f"{_analysis(series, names[0]).replace('_', ' ')}: {series.metric(names[0]).unit or text}"
    return text[:1].upper() + text[1:]


def _line(label: str, points: Points, scale: float) -> Curve:
    low, high = (points.low, points.high) if points.has_interval else (None, None)
    value, low, high = (None if ends is None else [scale * v for v in ends] for ends in (points.value, low, high))
    return Curve(label=label, x=points.steps, y=value or [], low=low, high=high)


def _band(series: Series, name: str, metric: Metric) -> tuple[list[Curve], list[str]]:
    """The band in which 95 % of all splits stay at every checkpoint, and its caption.

    Without a curve where the band reaches the metric's bound, without both where no band was recorded.
    """
    band = series.points(f"{name}_band")
    if band is None:
        return [], []
    if max(band.value) >= metric.high:
        return [], [
            f"More than one split in twenty reaches the bound {number(metric.high)}, so chance has no band here"
        ]
    ends = [metric.scale * v for v in band.value]
    zero, low = [0.0] * len(ends), [-v for v in ends]
    about = (
        "Of all splits 95 % stay within the band at every checkpoint: a split that leaves it is significant over the "
        "whole trajectory"
    )
    return [Curve(label="95 % of all splits (chance)", x=band.steps, y=zero, low=low, high=ends)], [about]


def _references(series: Series, name: str, metric: Metric) -> dict[str, float]:
    levels = {}
    for other in _REFERENCES.get(name, ()):
        value = series.complete[-1].run.value(other) if series.complete else None
        if value is not None:
            word = other.removesuffix("_nats").removeprefix("probe_").replace("_", " ")
            levels[word] = metric.scale * value
    return levels


def _analysis(series: Series, name: str) -> str:
    """The analysis that measured a metric."""
    glossaries = (job.run.manifest.get("glossary", {}) for job in series.complete)
    return next((title for each in glossaries for title, part in each.items() if name in part["metrics"]), "")
