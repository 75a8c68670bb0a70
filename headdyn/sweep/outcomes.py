"""The metrics that a sweep tests, and how each is shown (label, unit, scale), from the runs' records.

A run's configuration names them by `outcomes: {primary: NAME, others: [NAME, …]}`; `others: null` means every metric
that an analysis of the run declares a possible outcome (`Metric.outcome`).
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from headdyn.core.records import Metric
from headdyn.core.run_folder import RunRecord

# The possible outcomes of earlier records, whose configurations and metrics do not name any.
_EARLIER = (
    *("selectivity", "within_ratio", "probe_accuracy_middle", "loss_nats", "gap_closed", "raw_selectivity_no_self"),
    *("rollout_selectivity_no_self", "tensorlens_selectivity_no_self", "entropy_nats", "sink_rate", "specialisation"),
    *("plain_success", "even_success", "odd_success", "all_success", "strength", "strength_nats"),
    *("control_strength_nats", "qk_best_silhouette", "ov_best_silhouette", "behaviour_best_silhouette"),
)
_FIELDS = {field.name for field in dataclasses.fields(Metric)}


def outcomes_of(runs: Iterable[RunRecord]) -> tuple[str, ...]:
    """The outcomes that the first configuration with `outcomes` names, the primary one first.

    Earlier records declare no metric a possible outcome; theirs are the metrics of _EARLIER that the runs recorded.
    """
    runs = list(runs)
    metrics = metrics_of(runs)
    possible = [name for name, metric in metrics.items() if metric.outcome]
    if not possible:
        recorded = {name for run in runs for name in run.scalars}
        possible = [name for name in _EARLIER if name in recorded]
    named = (run.manifest.get("config", {}).get("outcomes") for run in runs)
    settings: Mapping[str, Any] = next(filter(None, named), {})
    others = settings.get("others")
    names = dict.fromkeys((settings.get("primary"), *(possible if others is None else others)))
    return tuple(name for name in names if name)


def metrics_of(runs: Iterable[RunRecord]) -> dict[str, Metric]:
    """The descriptions of the runs' metrics, by name, from their manifests. A metric without a label gets its name."""
    entries: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        for analysis in run.manifest.get("glossary", {}).values():
            entries |= analysis["metrics"]
    described = {
        name: {field: value for field, value in entry.items() if field in _FIELDS and value not in (None, "")}
        for name, entry in entries.items()
    }
    return {name: dataclasses.replace(unnamed(name), **fields) for name, fields in described.items()}


def unnamed(name: str) -> Metric:
    """The description of a scalar that no analysis describes: its own name as label, no unit and no scale."""
    return Metric(meaning="", label=name.replace("_", " "))
