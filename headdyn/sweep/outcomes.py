"""Which metrics a sweep tests, and the label, unit and scale under which each is shown, from the runs' records.

`outcomes: {primary: NAME, others: [NAME, …]}` in a run's configuration names them; `others: null` stands for every
metric whose analysis says that it may be an outcome.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from headdyn.core.records import Metric
from headdyn.core.run_folder import RunRecord

# What was tested before configurations named outcomes and metrics said that they may be one; for records made then.
_EARLIER = (
    *("selectivity", "within_ratio", "probe_accuracy_middle", "loss_nats", "gap_closed", "raw_selectivity_no_self"),
    *("rollout_selectivity_no_self", "tensorlens_selectivity_no_self", "entropy_nats", "sink_rate", "specialisation"),
    *("plain_success", "even_success", "odd_success", "all_success", "strength", "strength_nats"),
    *("control_strength_nats", "qk_best_silhouette", "ov_best_silhouette", "behaviour_best_silhouette"),
)


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """The tested metrics in the order they are read; the first is the primary one, whose answer is given first."""

    names: tuple[str, ...]
    primary: str | None = None


def outcomes_of(runs: Iterable[RunRecord]) -> Outcomes:
    """The outcomes that the runs' configurations name, the primary first; of earlier records, what was tested then."""
    runs = list(runs)
    metrics = metrics_of(runs)
    possible = [name for name, metric in metrics.items() if metric.outcome]
    if not possible:
        recorded = {name for run in runs for name in run.scalars}
        possible = [name for name in _EARLIER if name in recorded]
    named = (run.manifest.get("config", {}).get("outcomes") for run in runs)
    settings: Mapping[str, Any] = next(filter(None, named), {})
    others = settings.get("others")
    names = [name for name in (settings.get("primary"), *(possible if others is None else others)) if name]
    return Outcomes(names=tuple(dict.fromkeys(names)), primary=names[0] if names else None)


def metrics_of(runs: Iterable[RunRecord]) -> dict[str, Metric]:
    """What the runs' analyses say of their metrics, by name."""
    entries: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        for analysis in run.manifest.get("glossary", {}).values():
            entries |= analysis["metrics"]
    return {name: _metric(name, entry) for name, entry in entries.items()}


def unnamed(name: str) -> Metric:
    """A scalar of which no analysis says anything: its own name, unscaled."""
    return Metric(meaning="", label=name.replace("_", " "))


_FIELDS = {field.name for field in dataclasses.fields(Metric)}


def _metric(name: str, entry: Mapping[str, Any]) -> Metric:
    """A metric as a run's manifest states it; without a label it is called by its name."""
    stated = {key: value for key, value in entry.items() if key in _FIELDS and value not in (None, "")}
    return Metric(**{"meaning": "", "label": name.replace("_", " "), **stated})
