"""A run's figures: the main picture, and a folded section for each analysis with the figures that it drew."""

from pathlib import Path

from headdyn.core.figures import Figure
from headdyn.core.numbers import count
from headdyn.report.blocks import Section
from headdyn.report.sections.training import loss_curve, loss_figure, recovery_figures
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord

_LOSSES = {"train_loss_nats": "training batches", "val_loss_nats": "held out"}


def main_picture(sweep: SweepRecord) -> Path | None:
    """The course of training; of a model that came trained, the first figure of the primary outcome's analysis."""
    groups = by_analysis(sweep.jobs[0])
    glossary = sweep.jobs[0].run.manifest.get("glossary", {})
    owners = [name for name, part in glossary.items() if sweep.outcomes.primary in part["metrics"]]
    return next((groups[name][0] for name in ("training", *owners, *groups) if name in groups), None)


def sections(sweep: SweepRecord) -> list[Section]:
    """A section for each analysis that left figures."""
    parts = []
    for name, paths in by_analysis(sweep.jobs[0]).items():
        title = {"patterns": "Attention patterns"}.get(name, name.replace("_", " ").capitalize())
        parts.append(Section(f"figures-{name}", title, [paths], count(len(paths), "figure")))
    return parts


def by_analysis(job: Job) -> dict[str, list[Path]]:
    """The files of the run's figures: training, then the analyses in the order they ran, then any other."""
    groups: dict[str, list[Path]] = {name: [] for name in ("training", *job.run.manifest.get("glossary", {}))}
    names = sorted(groups, key=len, reverse=True)  # a file is named after its analysis: the longest name that fits
    for path in sorted((job.run.folder / "figures").glob("*.json")):
        name = next((name for name in names if path.stem.startswith(f"{name}_")), path.stem.partition("_")[0])
        groups.setdefault(name, []).append(path)
    return {name: paths for name, paths in groups.items() if paths}


def training_figures(job: Job) -> dict[str, Figure]:
    """Loss against steps with the reference lines, and the recovery after a positional change where there was one."""
    lines = [loss_curve(job, name, label) for name, label in _LOSSES.items() if job.metrics.get(name)]
    figures = {"loss": loss_figure(lines, [job], "Training loss")} if job.metrics.get("val_loss_nats") else {}
    for figure in recovery_figures(SweepRecord.of(job)).values():
        figures["recovery"] = figure
    return figures
