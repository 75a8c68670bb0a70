"""How well linear probes read the topic from the residual stream behind every layer."""

from collections.abc import Mapping, Sequence

import numpy as np

from headdyn.analysis.probes import REFERENCES
from headdyn.core.figures import Curve, Figure, curves
from headdyn.report.blocks import Section
from headdyn.report.looks import level_of, looks
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord

_ABOUT = (
    "Share of test tokens whose topic a linear probe reads from the residual stream, with 95 % intervals over "
    "sequences. The ceiling is the Bayes filter's; the baselines are the commonest topic, the token alone and the "
    "position alone. Selectivity is the accuracy less that of a probe fitted to random labels of token types (control "
    "task)."
)


def section(sweep: SweepRecord) -> Section | None:
    """Accuracy and selectivity of probes, with one picture for each kind of positions."""
    figures = probe_figures(sweep)
    return Section("probes", "Topic probes by layer", [_ABOUT, [*figures.values()]]) if figures else None


def probe_figures(sweep: SweepRecord) -> dict[str, Figure]:
    """Figures by title, one for each group, metric and kind of positions; a metric's figures share their y axis."""
    figures, look = {}, looks(sweep, without=["position_enc"])
    for metric, title, ylabel in (
        ("probe_accuracy", "Probe accuracy", "probe accuracy (% of test tokens)"),
        ("probe_selectivity", "Probe selectivity", "accuracy less the control task's (points)"),
    ):
        for group, complete in sweep.groups.items():
            jobs = [job for job in complete if _has_layers(job, metric)]
            lines = {job.number: _line(job, metric, look[job.number]) for job in jobs}
            values = [v for line in lines.values() for v in (*line.low, *line.high) if np.isfinite(v)]  # type: ignore[misc]
            references = _references(jobs) if metric == "probe_accuracy" else {"control task": 0.0}
            for panel in dict.fromkeys(level_of(job, "position_enc") for job in jobs):
                name = ", ".join(filter(None, (title, panel.strip("–"), group)))
                figures[name] = curves(
                    [lines[job.number] for job in jobs if level_of(job, "position_enc") == panel],
                    title=name,
                    xlabel="layer of the residual stream (0: the embedding)",
                    ylabel=ylabel,
                    references=references,
                    whole_x=True,
                    y_values=[min(values), max(values)] if values else (),
                )
    return figures


def _line(job: Job, metric: str, look: Mapping[str, str]) -> Curve:
    y, low, high = (100 * job.heads.layer_series(metric, column) for column in ("value", "ci_low", "ci_high"))
    return Curve(label=job.label, x=range(len(y)), y=y, low=low, high=high, look=look, runs=[job.number])


def _has_layers(job: Job, metric: str) -> bool:
    rows = job.heads.where(metric=metric, head=None).rows()
    return any(row["layer"] is not None and row["value"] is not None for row in rows)


def _references(jobs: Sequence[Job]) -> dict[str, float]:
    """Ceiling and baselines in percent, averaged over runs; runs of one random seed have the same corpus."""
    values = {
        label: [v for job in jobs if (v := job.run.value(f"probe_{name}")) is not None]
        for name, label in REFERENCES.items()
    }
    return {label: 100 * float(np.mean(several)) for label, several in values.items() if several}
