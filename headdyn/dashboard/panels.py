"""The contents of the W&B dashboards of a sweep and of a run, made from its records, as panels of W&B's client.

Keys are those that runs log (core/tracking.py). A scalar with an interval is a nested summary: `selectivity.value`,
`.ci_low`, `.null`. A run's config has its `factors` nested, and for checkpoints the number `checkpoint_step`. W&B's app
puts each top-level entry of a config into {"value": ...}. Filters and columns must contain that `value`:
`factors.value.attention`. Groups, axes and sort keys must not: `factors.attention`; client or app insert it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headdyn.core.tracking import preset_name
from headdyn.sweep.factors import level_label
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord

_TESTED = "Effects within a seed, with intervals and tests, are in the sweep's report.html."


@dataclass(frozen=True, kw_only=True)
class Section:
    """Panels under one heading. In a report, every entry of `arms` (a name and its filter) is one set of runs."""

    title: str
    text: str
    panels: Sequence[Any]
    arms: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """The sections of a workspace and a report, and the runs that they show.

    `where` filters runs, in the client's filter language; `groups` are config entries by which runs are pooled.
    """

    name: str
    title: str
    text: str
    sections: Sequence[Section]
    where: str = ""
    groups: Sequence[str] = ()
    order: str = ""  # the config entry to sort by, ascending; empty is the newest run first
    columns: Sequence[str] = ()  # shown in the workspace's table of runs
    most_runs: int = 100


def of_sweep(sweep: SweepRecord, entity: str, *, every_run: bool = False) -> Dashboard:
    """A sweep's factors and outcomes, or its checkpoints over training. `every_run` shows all runs of the project."""
    import wandb_workspaces.reports.v2 as wr

    groups = list(dict.fromkeys(job.run.folder.resolve().parent.name for job in sweep.jobs))
    where = [] if every_run else [f"Metric('Group') in {groups}"]
    recorded = {name for job in sweep.complete for name in job.run.scalars if job.run.value(name) is not None}
    outcomes = [name for name in sweep.outcomes if name in recorded]
    factors = [factor.name for factor in sweep.factors]
    of_checkpoints = any(job.factors.get("revision") is not None for job in sweep.complete)
    if of_checkpoints:
        step = wr.Config("checkpoint_step")
        over = [
            wr.ScatterPlot(title=_label(sweep, name), x=step, y=wr.SummaryMetric(f"{name}.value"), log_x=True)
            for name in outcomes
        ]
        about = "One point for each checkpoint, over its training step on a log axis, which cannot show step 0."
        sections = [Section(title="Outcomes", text=about, panels=over)]
        entries_of_columns = ["factors.model", "checkpoint_step"]
        where = ["Config('checkpoint_step.value') >= 0", *where]
        text = "Every run is a checkpoint; what emerges, and when, is in the sweep's report.html."
    else:
        entries = [*map(wr.Config, map(_entry, factors)), *(wr.SummaryMetric(f"{name}.value") for name in outcomes[:3])]
        columns = [wr.ParallelCoordinatesPlotColumn(metric=entry) for entry in entries]
        together = wr.ParallelCoordinatesPlot(title="conditions to outcomes", columns=columns)
        about = "Every run is a line through its conditions and its outcomes."
        sections = [_bars(sweep, name, outcomes) for name in factors]
        sections += [Section(title="Factors and outcomes", text=about, panels=[together]), _training(sweep.complete)]
        entries_of_columns = [_entry(name) for name in dict.fromkeys([*factors, "mode"])]
        text = f"What do {', '.join(factors) or 'these settings'} do to attention heads? {_TESTED}"
    return Dashboard(
        name="checkpoints" if of_checkpoints else "factors",
        title=f"headdyn {sweep.name}",
        text=text,
        where=" and ".join(where),
        order="checkpoint_step" if of_checkpoints else "",
        groups=[] if of_checkpoints else [_entry(name) for name in factors],
        columns=[*map(_column, [*entries_of_columns, "seed"]), *(f"summary:{name}.value" for name in outcomes)],
        sections=[*sections, *_media(sweep.complete, entity)],
    )


def of_run(job: Job, entity: str) -> Dashboard:
    """The dashboard of everything that one run logged."""
    import wandb_workspaces.reports.v2 as wr

    name, record = job.run.name, [wr.RunComparer(diff_only="split")]
    if (job.run.folder / "patterns.safetensors").exists():
        record.append(wr.WeavePanelArtifact(artifact=f"{name}-patterns", tab="files"))
    return Dashboard(
        name="run",
        title=f"headdyn run {name}",
        text="The run's curves, figures and tables.",
        where=f"Metric('Name') == {name!r}",
        most_runs=1,
        sections=[
            *([_training([job])] if job.metrics else []),
            *_media([job], entity),
            Section(title="Record", text="Config and summary.", panels=record),
        ],
    )


def figures(jobs: Iterable[Job]) -> dict[str, Path]:
    """The runs' figures by the key that they are logged under, SECTION/TITLE; their files are SECTION_TITLE.json."""
    keyed = {}
    for job in jobs:
        sections = sorted((*job.run.manifest.get("glossary", {}), "patterns"), key=len, reverse=True)
        for path in sorted((job.run.folder / "figures").glob("*.json")):
            section = next((name for name in sections if path.stem.startswith(f"{name}_")), None)
            if section is not None:
                keyed[f"{section}/{path.stem.removeprefix(f'{section}_')}"] = path
    return keyed


def _bars(sweep: SweepRecord, factor: str, outcomes: Sequence[str]) -> Section:
    """A bar plot of every outcome by the factor's level; a null that is not 0 stands beside it."""
    import wandb_workspaces.reports.v2 as wr

    pooled = {"groupby": wr.Config(_entry(factor)), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    bars = []
    for name in outcomes:
        has_null = any(job.scalar(name).get("null") for job in sweep.complete)
        metrics = [f"{name}.value", f"{name}.null"] if has_null else [f"{name}.value"]
        bars.append(wr.BarPlot(title=_label(sweep, name), metrics=metrics, **pooled))
    levels = next(candidate.levels for candidate in sweep.factors if candidate.name == factor)
    other = next((candidate for candidate in sweep.factors if candidate.name != factor), None)
    arms = {} if other is None else {level_label(other.name, v): _filter(other.name, v) for v in other.levels}
    text = (
        f"{' against '.join(level_label(factor, level) for level in reversed(levels))}: means over runs, whiskers from "
        f"the lowest run to the highest, which is no interval: runs of a bar differ in other factors too. {_TESTED}"
    )
    return Section(title=f"Effects of {factor}", text=text, panels=bars, arms=arms)


def _training(jobs: Iterable[Job]) -> Section:
    """What the runs logged step by step, the losses in one panel."""
    import wandb_workspaces.reports.v2 as wr

    logged = dict.fromkeys(name for job in jobs for name in job.metrics)
    losses = [name for name in logged if name.endswith("loss_nats")]
    titled = {"loss (nats)": losses, **{name.replace("_", " "): [name] for name in logged if name not in losses}}
    lines = [wr.LinePlot(title=title, x="step", y=keys) for title, keys in titled.items() if keys]
    text = "Over the training step. A recalibration after dropping positions is not part of these curves."
    return Section(title="Training", text=text, panels=lines)


def _media(jobs: Sequence[Job], entity: str) -> list[Section]:
    """A section for the figures of each analysis, and one for the tables of heads."""
    import wandb_workspaces.reports.v2 as wr

    by_section: dict[str, list[Any]] = {}
    for key in figures(jobs):
        query, name = {"summaryTable": {"tableKey": f"{key}_table"}}, f"{entity}/{preset_name(key)}"
        chart = wr.CustomChart(query=query, chart_name=name, chart_fields={}, chart_strings={})
        by_section.setdefault(key.partition("/")[0], []).append(chart)
    analyses = dict.fromkeys(name for job in jobs for name in job.run.manifest.get("glossary", {}))
    tables = [wr.WeavePanelSummaryTable(table_name=f"heads/{name}") for name in analyses]
    return [
        *(Section(title=f"Figures of {name}", text="", panels=charts) for name, charts in by_section.items()),
        Section(title="Tables", text="One row for each head, for each layer, or for the model.", panels=tables),
    ]


def _label(sweep: SweepRecord, name: str) -> str:
    metric = sweep.metric(name)  # W&B shows values as recorded: percentages are shares there
    unit = metric.unit if metric.scale == 1 else "share"
    return f"{metric.label} ({unit})" if unit else metric.label


def _entry(factor: str) -> str:
    """The config entry of a factor; a factor with a dotted name is itself such an entry."""
    return factor if "." in factor else f"factors.{factor}"


def _column(entry: str) -> str:
    first, _, rest = entry.partition(".")
    return f"config:{first}.value.{rest}" if rest else f"config:{first}.value"


def _filter(factor: str, level: object) -> str:
    """The filter, in the client's language, for runs at this level of the factor."""
    return f"Config({_column(_entry(factor)).removeprefix('config:')!r}) == {level!r}"
