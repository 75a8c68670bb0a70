"""The jobs of a sweep, each with its run's record, its factors and its label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from headdyn.core.records import HeadTable, Metric
from headdyn.core.run_folder import RunRecord
from headdyn.sweep.factors import level_label, varying
from headdyn.sweep.groups import comparable
from headdyn.sweep.outcomes import metrics_of, unnamed

_LABELLED = ("model", "data", "attention", "data_ordering", "position_enc", "mode", "protocol", "seed")


@dataclass(frozen=True)
class Job:
    """One job: its number in the sweep, its run's record, the factors it was started with, its label and its group.

    Tables and charts name the job by `label`. `group` is the name of its group of comparable runs (groups.py), "" if
    there is only one.
    """

    number: int
    run: RunRecord
    factors: Mapping[str, Any]
    label: str
    group: str

    @property
    def complete(self) -> bool:
        return self.run.status == "complete"

    @cached_property
    def heads(self) -> HeadTable:
        return self.run.heads()

    @cached_property
    def metrics(self) -> Mapping[str, Sequence[tuple[int, float]]]:
        """The run's metrics.jsonl, read once."""
        return self.run.metrics()

    @cached_property
    def glossary(self) -> Mapping[str, Metric]:
        """The descriptions of the run's metrics, from its manifest."""
        return metrics_of([self.run])

    def metric(self, name: str) -> Metric:
        """The description of a metric; one by its name alone if the run's analyses do not describe it."""
        return self.glossary.get(name) or unnamed(name)

    @property
    def training(self) -> str:
        """The key of the run's training, which all arms of the same training share; the run's name if it has none."""
        stage = self.run.manifest.get("stages", {}).get("training")
        return stage["key"] if stage else self.run.name

    @property
    def recalibrated(self) -> bool:
        """Whether the model was recalibrated after its training (DroPE and its control)."""
        return "recalibration" in self.run.scalars

    def scalar(self, name: str) -> Mapping[str, Any]:
        """A scalar's value, with its interval, null and so on if it has them; only a `reason` if the run lacks it."""
        scalar = self.run.scalars.get(name)
        if scalar is None:
            return {"reason": f"the run recorded no {name}" if self.complete else f"the run is {self.run.status}"}
        return scalar if isinstance(scalar, Mapping) else {"value": scalar}


def of_prompts(jobs: Sequence[Job]) -> bool:
    """Whether all these runs are on prompts, none on a corpus; False for no runs."""
    return bool(jobs) and not any("corpus" in job.run.manifest for job in jobs)


def build_jobs(runs: Sequence[tuple[RunRecord, Mapping[str, Any]]], swept: Sequence[str] = ()) -> list[Job]:
    """The jobs of runs, each given with its factors, in this order; `swept` are the keys that a command varied.

    A label consists of the levels that vary; a label that several jobs would share is replaced by the run's name.
    """
    group_of = {run.folder: group.name for group in comparable([run for run, _ in runs], swept) for run in group.runs}
    groups = [group_of.get(run.folder, "") for run, _ in runs]
    all_factors = [factors for _, factors in runs]
    varied, labels = varying(all_factors, reading_order(all_factors)), []
    for (run, factors), group in zip(runs, groups, strict=True):
        label = " ".join(level_label(name, factors[name]) for name in varied if name in factors) or run.name
        # A single group has no name; a mode that distinguishes several groups is in the labels already.
        labels.append(label if not group or group in label.split() else f"{group}: {label}")
    return [
        Job(number, run, factors, run.name if labels.count(label) > 1 else label, group)
        for number, ((run, factors), label, group) in enumerate(zip(runs, labels, groups, strict=True))
    ]


def reading_order(factors: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of jobs' factors in the order of labels: groups of conf/, then other keys but `experiment`, the seed."""
    others = dict.fromkeys(name for each in factors for name in each if name not in (*_LABELLED, "experiment"))
    return [*_LABELLED[:-1], *others, _LABELLED[-1]]
