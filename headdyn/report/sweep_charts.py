"""The charts of a sweep: losses, recovery, probes, effects and head maps, each from the jobs' records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from headdyn.core.figures import PALETTE
from headdyn.core.numbers import fixed, level, p_value, quantity, spelled
from headdyn.report.charts import Dot, Line, figure, interval_chart, legend, line_chart
from headdyn.report.head_data import head_metrics
from headdyn.report.head_maps import Colours, head_map
from headdyn.sweep.effects import effect_name
from headdyn.sweep.record import Job, SweepRecord

_LEAST_REACH = 0.02  # of the selectivity scale, so that a sweep without any does not colour its noise
REFERENCES = ("random", "unigram", "mixture", "bigram", "trigram", "floor")


@dataclass(frozen=True)
class HeadMaps:
    """One metric's map for every run, on one colour scale."""

    title: str
    note: str
    bar: Markup
    maps: Sequence[tuple[Job, Markup]]


def loss_charts(sweep: SweepRecord) -> list[Markup]:
    """Held-out loss over training, one curve a training, with the reference lines; a chart and its legend a group."""
    charts = []
    for group in sweep.groups:
        lines: list[Line] = []
        references: dict[str, list[float]] = {}
        for siblings in sweep.siblings:
            job = siblings[0]
            series = job.metrics.get("val_loss_nats", [])
            if job.group != group or not series:
                continue
            x, y = zip(*series, strict=True)
            lines.append(
                Line(label=shared_label(siblings), x=x, y=y, style=job.style, runs=[j.number for j in siblings])
            )
            references |= {
                name: [*references.get(name, []), job.run.scalars[f"{name}_nats"]]
                for name in REFERENCES
                if f"{name}_nats" in job.run.scalars
            }
        if lines:
            chart = line_chart(
                lines,
                title="Held-out loss" + (f" ({group})" if group else ""),
                x_label="training step",
                y_label="loss (nats)",
                references={
                    _reference_label(name, levels): float(np.mean(levels)) for name, levels in references.items()
                },
                width=860,
                height=380,
                unit="nats",
            )
            charts.append(figure(chart, legend(lines), 860))
    return charts


def recovery_charts(sweep: SweepRecord) -> list[Markup]:
    """Loss above the parent's over recalibration steps, step 0 being the raw drop."""
    charts = []
    for group in sweep.groups:
        arms = [job for job in sweep.complete if job.recalibrated and job.group == group]
        lines, limits = [], set()
        for job in arms:
            facts = job.run.scalars["recalibration"]
            losses = sorted((int(step), loss) for step, loss in facts["val_loss_nats"].items())
            limits.add(facts.get("recovered_within_nats"))
            x, y = zip(*((step, loss - facts["parent_loss_nats"]) for step, loss in losses), strict=True)
            lines.append(Line(label=job.label, x=x, y=y, style=job.style, runs=[job.number]))
        if lines:
            references = {"before: 0": 0.0}
            if len(limits) == 1 and (limit := limits.pop()) is not None:
                references[f"recovered: {limit:g}"] = limit
            chart = line_chart(
                lines,
                title="Recovery" + (f" ({group})" if group else ""),
                x_label="recalibration step (log scale; 0: right after the change)",
                y_label="held-out loss above the parent's (nats)",
                references=references,
                log_x=True,
                width=760,
                height=340,
                unit="nats",
            )
            charts.append(figure(chart, legend(lines), 760))
    return charts


def probe_charts(sweep: SweepRecord) -> list[Markup]:
    """Probe accuracy and selectivity behind every layer, a panel for each kind of positions, on shared axes."""
    charts = []
    for metric, title, y_label, with_references in (
        ("probe_accuracy", "Probe accuracy", "probe accuracy (% of test tokens)", True),
        ("probe_selectivity", "Probe selectivity", "accuracy less control-task accuracy (points)", False),
    ):
        for group in sweep.groups:
            jobs = [job for job in sweep.complete if job.group == group and _has_layers(job, metric)]
            panels = dict.fromkeys(str(job.factors.get("position_enc")) for job in jobs)
            shared = [
                v
                for job in jobs
                for c in ("value", "ci_low", "ci_high")
                for v in job.heads.layer_series(metric, c)
                if not np.isnan(v)
            ]
            for panel in panels:
                lines = [_layers(job, metric) for job in jobs if str(job.factors.get("position_enc")) == panel]
                references = _probe_references(jobs) if with_references else {"control: 0": 0.0}
                chart = line_chart(
                    lines,
                    title=f"{title}, {level(panel)}" + (f" ({group})" if group else ""),
                    x_label="layer of the residual stream (0: the embedding)",
                    y_label=y_label,
                    references=references,
                    whole_x=True,
                    y_values=[*shared, *(v for v in _probe_references(jobs).values() if with_references)],
                    width=530,
                    height=320,
                    scale_y=100,
                    unit="%" if with_references else "points",
                )
                charts.append(figure(chart, legend(lines), 530))
    return charts


def effect_charts(effects: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """One interval chart for each outcome and group, a row an effect."""
    charts = []
    for outcome in dict.fromkeys(row["outcome"] for row in effects):
        for group in dict.fromkeys(row["group"] for row in effects):
            rows = [row for row in effects if row["group"] == group and row["outcome"] == outcome]
            q = quantity(outcome)
            dots = [
                Dot(
                    label=effect_name(row),
                    value=_scaled(row["value"], q.scale),
                    low=_scaled(row["ci_low"], q.scale),
                    high=_scaled(row["ci_high"], q.scale),
                    note=f"{q.spelled(row, signed=True)} {q.of_differences}, n {row['n']}, q {p_value(row.get('q'))}",
                    reason=row.get("reason") or "",
                    colour=PALETTE[0] if len(row["factors"]) == 1 else "#5b6675",
                )
                for row in rows
            ]
            if dots:
                title = q.label[0].upper() + q.label[1:] + (f" ({group})" if group else "")
                charts.append(interval_chart(dots, title=title, x_label=f"effect ({q.of_differences})"))
    return charts


def head_maps(sweep: SweepRecord) -> list[HeadMaps]:
    """Selectivity, within ratio and entropy of every head of every run, each on one colour scale."""
    found = []
    for metric, title, diverging, places in (
        (
            "selectivity",
            "Topic selectivity: attention on the query's topic beyond the label-swap null (share)",
            True,
            2,
        ),
        ("within_ratio", "Within ratio: attention on keys of the query's topic (share)", False, 2),
        ("entropy_nats", "Entropy of attention (nats)", False, 2),
        ("effect_nats", "Change of Δ when a head is set to its mean (nats)", True, 2),
        (
            "sufficiency_nats",
            "Change of Δ when a head of the corrupted prompt takes the clean one's value (nats)",
            True,
            2,
        ),
    ):
        jobs = [job for job in sweep.complete if metric in head_metrics(job.heads)]
        if not jobs:
            continue
        matrices = {job.number: job.heads.matrix(metric) for job in jobs}
        values = np.concatenate([matrix.ravel() for matrix in matrices.values()])
        values = values[~np.isnan(values)]
        nulls = [job.scalar(metric).get("null") for job in jobs]
        there = [null for null in nulls if null is not None]
        null = float(np.mean(there)) if there else None
        if diverging:
            reach = max(float(np.abs(values).max(initial=0)), _LEAST_REACH)
            colours = Colours(low=-reach, high=reach, centre=0.0, places=places if reach >= 0.095 else 3)
        elif metric == "within_ratio":
            colours = Colours(low=0.0, high=1.0, places=places)
        else:
            top = max([float(values.max(initial=0)), null or 0.0, 1e-6])
            colours = Colours(low=0.0, high=math.ceil(top * 10) / 10, places=places)
        note = {
            "selectivity": "Null 0; an asterisk marks q < 0.05.",
            "within_ratio": "The diamond is the mean label-swap null of the runs; every head's own is in its details.",
            "entropy_nats": "The diamond is causal-uniform attention, the largest entropy there is.",
            "effect_nats": "Mean over all pairs; an asterisk marks q < 0.05.",
            "sufficiency_nats": "Mean over bug pairs; an asterisk marks q < 0.05.",
        }[metric]
        maps = [(job, _one_map(job, metric, matrices[job.number], colours)) for job in jobs]
        found.append(HeadMaps(title, note, colours.bar("null" if null is not None else "", null), maps))
    return found


def _one_map(job: Job, metric: str, value_LH: np.ndarray, colours: Colours) -> Markup:
    columns = {name: job.heads.matrix(metric, name) for name in ("ci_low", "ci_high", "null", "q")}
    notes = {}
    for at, value in np.ndenumerate(value_LH):
        if np.isnan(value):
            notes[at] = "absent"
            continue
        scalar = {"value": value} | {name: None if np.isnan(m[at]) else m[at] for name, m in columns.items()}
        notes[at] = spelled(scalar)
        if scalar["null"] is not None:
            notes[at] += f", null {fixed(scalar['null'], 3)}"
        if scalar["q"] is not None:
            notes[at] += f", q {p_value(scalar['q'])}"
    return head_map(
        value_LH,
        run=job.number,
        label=job.label,
        metric=metric,
        colours=colours,
        marked_LH=columns["q"] < 0.05,
        notes=notes,
    )


def _layers(job: Job, metric: str) -> Line:
    y, low, high = (job.heads.layer_series(metric, column) for column in ("value", "ci_low", "ci_high"))
    return Line(
        label=job.label,
        x=list(range(len(y))),
        y=y.tolist(),
        low=low.tolist(),
        high=high.tolist(),
        style=job.style,
        runs=[job.number],
    )


def _has_layers(job: Job, metric: str) -> bool:
    return any(
        row["layer"] is not None and row["value"] is not None
        for row in job.heads.where(metric=metric, head=None).rows()
    )


def _probe_references(jobs: Sequence[Job]) -> dict[str, float]:
    """Ceiling and baselines, averaged over runs (they differ only by the seed's corpus)."""
    found = {}
    for name, label in (
        ("ceiling", "Bayes ceiling"),
        ("majority", "majority"),
        ("token_identity", "token alone"),
        ("position", "position alone"),
    ):
        there = [
            job.scalar(f"probe_{name}")["value"] for job in jobs if job.scalar(f"probe_{name}").get("value") is not None
        ]
        if there:
            found[f"{label} {fixed(100 * float(np.mean(there)), 1)}"] = float(np.mean(there))
    return found


def _reference_label(name: str, levels: Sequence[float]) -> str:
    mean, spread = float(np.mean(levels)), max(levels) - min(levels)
    return f"{name} {mean:.3f}" if spread < 5e-4 else f"{name} {mean:.3f} ±{spread / 2:.3f}"


def shared_label(siblings: Sequence[Job]) -> str:
    """The words that the labels of all arms of a training share."""
    words = [job.label.split() for job in siblings]
    shared = [word for word in words[0] if all(word in other for other in words[1:])]
    of_checkpoints = len({job.factors.get("revision") for job in siblings}) > 1
    return " ".join(shared) or ("the training" if of_checkpoints else siblings[0].label)


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else scale * value
