"""A run's figures: one for all to see, the others behind, under the analysis that drew them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from headdyn.core.figures import Curve, Figure, curves
from headdyn.core.numbers import count
from headdyn.report.markup import gallery
from headdyn.report.page import picture
from headdyn.report.section import Section
from headdyn.sweep.record import SweepRecord

REFERENCES = ("random", "unigram", "mixture", "bigram", "trigram", "position_only", "speaker_blind", "floor")
_MEANINGS = {
    "random": "uniform guessing, what chance gives",
    "mixture": "the best topic-blind bigram, where a model waits before it infers topics",
    "position_only": "evidence of the topic weighted by distance alone",
    "speaker_blind": "exact inference that does not know who speaks",
    "floor": "exact inference, which no model can beat",
}
_TITLES = {"training": "Training", "patterns": "Attention patterns"}


def main_picture(sweep: SweepRecord) -> Markup | None:
    """The course of training; of a model that came trained, the first figure of the analysis of its first outcome."""
    groups = by_analysis(sweep)
    glossary = sweep.jobs[0].run.manifest.get("glossary", {})
    owners = [name for name, part in glossary.items() if sweep.outcomes.primary in part["metrics"]]
    name = next((name for name in ("training", *owners, *groups) if name in groups), None)
    return None if name is None else picture(groups[name][0], title_of(name))


def sections(sweep: SweepRecord) -> list[Section]:
    """A section for each analysis that left figures."""
    return [
        Section(
            f"figures-{name}",
            title_of(name),
            gallery(picture(path, f"{title_of(name)}: {path.stem}") for path in paths),
            count(len(paths), "figure"),
        )
        for name, paths in by_analysis(sweep).items()
    ]


def by_analysis(sweep: SweepRecord) -> dict[str, list[Path]]:
    """The files of the run's figures: training, then the analyses in the order they ran, then any other.

    Older runs left PNG files.
    """
    job = sweep.jobs[0]
    groups: dict[str, list[Path]] = {name: [] for name in ("training", *job.run.manifest.get("glossary", {}))}
    names = sorted(groups, key=len, reverse=True)  # the longest name that a file begins with is its analysis
    files = {path.stem: path for kind in ("png", "json") for path in (job.run.folder / "figures").glob(f"*.{kind}")}
    for _, path in sorted(files.items()):
        name = next((name for name in names if path.stem.startswith(f"{name}_")), path.stem.partition("_")[0])
        groups.setdefault(name, []).append(path)
    return {name: paths for name, paths in groups.items() if paths}


def title_of(name: str) -> str:
    """An analysis's name in a reader's words."""
    return _TITLES.get(name, name.replace("_", " ").capitalize())


def training_figures(
    metrics: Mapping[str, Sequence[tuple[int, float]]], scalars: Mapping[str, Any]
) -> dict[str, Figure]:
    """Loss against steps with the reference lines, and the recovery after a positional change where there was one."""
    references = {name: scalars[f"{name}_nats"] for name in REFERENCES if f"{name}_nats" in scalars}
    drawn = {}
    if "val_loss_nats" in metrics:
        lines = [
            Curve(label=label, x=[s for s, _ in metrics[name]], y=[v for _, v in metrics[name]])
            for name, label in (("train_loss_nats", "training batches"), ("val_loss_nats", "held out"))
            if name in metrics
        ]
        words = "; ".join(f"{name}: {what}" for name, what in _MEANINGS.items() if name in references)
        drawn["loss"] = curves(
            lines,
            xlabel="training step",
            ylabel="loss (nats)",
            title="Training loss",
            references=references,
            caption=f"Loss over training. {words}.",
        )
    if "recalibration" in scalars:
        losses = {int(step): loss for step, loss in scalars["recalibration"]["val_loss_nats"].items()}
        parent = scalars["recalibration"]["parent_loss_nats"]
        drawn["recovery"] = curves(
            [Curve(label="held out", x=sorted(losses), y=[losses[step] for step in sorted(losses)])],
            xlabel="recalibration step",
            ylabel="loss (nats)",
            title="Recovery after the positional change",
            references={"before the change": parent, **references},
            log_x=True,
            caption="Held-out loss after the positions were changed; the line is the loss before that.",
        )
    return drawn
