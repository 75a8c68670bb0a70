"""How the trainings went: held-out loss over steps, passes and speed; and the recovery after a positional change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from headdyn.core.figures import Curve, Figure, curves
from headdyn.core.numbers import ABSENT, fixed, listed, number
from headdyn.report.looks import level_of, looks
from headdyn.report.markup import soft, table
from headdyn.report.page import drawn
from headdyn.report.section import Section
from headdyn.report.sections.figures import REFERENCES
from headdyn.sweep.record import Job, SweepRecord

_ABOUT = (
    "Held-out loss of every training; arms that differ only in what became of the positions afterwards share one. "
    "Random is uniform guessing; the mixture is the best topic-blind bigram, the plateau before topics are inferred in "
    "context; the floor is the exact Bayes filter, which no model can beat."
)
_RECOVERY = (
    "Held-out loss above that of the same training before the change; step 0 is right after it. Every arm of a seed is "
    "recalibrated on the same shuffled batches."
)


def section(sweep: SweepRecord) -> Section | None:
    """Curves of held-out loss, and a row a training."""
    figures = loss_figures(sweep)
    if not figures:
        return None
    trainings = [siblings for siblings in sweep.siblings if "train_passes" in siblings[0].run.scalars]
    html = soft(_ABOUT) + Markup("").join(map(drawn, figures.values()))
    if trainings:
        columns = ["training", "arms", "last loss\nnats", "steps", "passes\nover the corpus"]
        columns += ["of the last pass\nshown at the end", "topic at the end", "tokens/s"]
        numbers = [" ".join(map(str, _numbers(arms))) for arms in trainings]
        html += table(columns, [_row(siblings) for siblings in trainings], numbers=numbers)
    return Section("training", "Training", html, _last_losses(sweep))


def recovery(sweep: SweepRecord) -> Section | None:
    """Loss over recalibration steps, and a row an arm."""
    arms = [job for job in sweep.complete if job.recalibrated]
    if not arms:
        return None
    rows = []
    for job in arms:
        facts = job.run.scalars["recalibration"]
        losses = {int(step): loss for step, loss in facts["val_loss_nats"].items()}
        last, before = losses[facts["steps"]], facts["parent_loss_nats"]
        texts = [f"{loss:.3f}" for loss in (before, losses[0], last)]
        verdict = "yes" if facts["recovered"] else "no"
        rows.append([job.label, *texts, fixed(last - before, 3, signed=True), facts["steps"], verdict])
    columns = ["arm", "before\nnats", "right after\nnats", "in the end\nnats"]
    columns += ["end less before\nnats", "recalibration\nsteps", "recovered"]
    html = soft(_RECOVERY) + Markup("").join(map(drawn, recovery_figures(sweep).values()))
    html += table(columns, rows, numbers=[job.number for job in arms])
    back = sum(job.run.scalars["recalibration"]["recovered"] for job in arms)
    return Section("recovery", "Recovery after the positional change", html, f"{back} of {len(arms)} arms recovered")


def loss_figures(sweep: SweepRecord) -> dict[str, Figure]:
    """Held-out loss over training, one curve a training, with the reference lines; a figure a group, by title."""
    figures, look = {}, looks(sweep, without=["position_enc"])
    for group in sweep.groups:
        lines: list[Curve] = []
        references: dict[str, list[float]] = {}
        for siblings in sweep.siblings:
            arms = [job for job in siblings if job.group == group]
            if not arms or not (series := arms[0].metrics.get("val_loss_nats", [])):
                continue
            job = arms[0]
            x, y = zip(*series, strict=True)
            label, numbers = shared_label(arms), _numbers(arms)
            lines.append(Curve(label=label, x=x, y=y, look=look[job.number] or None, runs=numbers))
            for name in REFERENCES:
                if f"{name}_nats" in job.run.scalars:
                    references.setdefault(name, []).append(job.run.scalars[f"{name}_nats"])
        if lines:
            caption = (
                "Below the mixture a model uses the topic of the sequence; at the floor it would use all there is."
            )
            title = f"Held-out loss ({group})" if group else "Held-out loss"
            figure = curves(
                lines,
                title=title,
                xlabel="training step",
                ylabel="loss (nats)",
                references={name: float(np.mean(levels)) for name, levels in references.items()},
                caption=caption if "mixture" in references else "",
            )
            figures[title] = figure
    return figures


def recovery_figures(sweep: SweepRecord) -> dict[str, Figure]:
    """Loss above the parent's over recalibration steps; a figure a group, by title."""
    figures, look = {}, looks(sweep)
    for group in sweep.groups:
        lines, limits = [], set()
        for job in [job for job in sweep.complete if job.recalibrated and job.group == group]:
            facts = job.run.scalars["recalibration"]
            losses = sorted((int(step), loss) for step, loss in facts["val_loss_nats"].items())
            limits.add(facts.get("recovered_within_nats"))
            x, y = zip(*((step, loss - facts["parent_loss_nats"]) for step, loss in losses), strict=True)
            lines.append(Curve(label=job.label, x=x, y=y, look=look[job.number] or None, runs=[job.number]))
        if lines:
            limit = limits.pop() if len(limits) == 1 else None
            title = f"Recovery ({group})" if group else "Recovery"
            figure = curves(
                lines,
                title=title,
                xlabel="recalibration step (log scale)",
                ylabel="held-out loss above the parent's (nats)",
                references={"before the change": 0.0, **({} if limit is None else {"recovered": limit})},
                log_x=True,
            )
            figures[title] = figure
    return figures


def shared_label(siblings: Sequence[Job]) -> str:
    """The words that the labels of all arms of a training share."""
    words = [job.label.split() for job in siblings]
    shared = [word for word in words[0] if all(word in other for other in words[1:])]
    of_checkpoints = len({job.factors.get("revision") for job in siblings}) > 1
    return " ".join(shared) or ("the training" if of_checkpoints else siblings[0].label)


def _row(siblings: Sequence[Job]) -> list[str]:
    job, scalars = siblings[0], siblings[0].run.scalars
    series = job.metrics.get("val_loss_nats", [])
    speed, ended = scalars.get("tokens_per_second"), scalars.get("ended_in_pass")
    return [
        shared_label(siblings),
        listed(list(dict.fromkeys(level_of(arm, "position_enc") for arm in siblings))),
        f"{series[-1][1]:.3f}" if series else "",
        number(series[-1][0]) if series else "",
        number(scalars["train_passes"]),
        "" if ended is None else f"{100 * ended:.0f} %",
        scalars.get("ended_in_topic") or ABSENT,
        "" if speed is None else f"{speed / 1000:.1f} K",
    ]


def _last_losses(sweep: SweepRecord) -> str:
    last = [
        siblings[0].metrics["val_loss_nats"][-1][1]
        for siblings in sweep.siblings
        if siblings[0].metrics.get("val_loss_nats")
    ]
    low, high = min(last), max(last)
    return f"ended at {low:.3f} nats" if low == high else f"ended at {low:.3f} to {high:.3f} nats"


def _numbers(jobs: Sequence[Job]) -> list[int]:
    return [job.number for job in jobs]
