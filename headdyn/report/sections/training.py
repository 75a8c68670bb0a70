"""How the trainings went: held-out loss over steps, passes and speed; and the recovery after a positional change."""

from collections.abc import Mapping, Sequence

import numpy as np

from headdyn.core.figures import Curve, Figure, curves
from headdyn.core.numbers import ABSENT, fixed, listed, number
from headdyn.report.blocks import Section, Table
from headdyn.report.looks import level_of, looks
from headdyn.sweep.jobs import Job
from headdyn.sweep.matched_loss import heads_held
from headdyn.sweep.record import SweepRecord

LOSS_REFERENCES = ("random", "unigram", "mixture", "bigram", "trigram", "position_only", "speaker_blind", "floor")
_MEANINGS = {
    "random": "uniform guessing, what chance gives",
    "mixture": "the best topic-blind bigram; a model's loss stays near it until the model infers topics",
    "position_only": "evidence of the topic weighted by distance alone",
    "speaker_blind": "exact inference that does not know who speaks",
    "floor": "exact inference, which no model can beat",
}
_ABOUT = "Held-out loss of every training; arms that differ only in a later change of the positions share one training."
_HELD = (
    "In some of these trainings heads were held at an ideal (train.clamp). The losses in this section are with the "
    "heads held; all other numbers on the page are with the heads free, as the models were not trained."
)
_RECOVERY = (
    "Held-out loss above that of the same training before the change; step 0 is right after it. Every arm of a seed is "
    "recalibrated on the same shuffled batches."
)


def section(sweep: SweepRecord) -> Section | None:
    """Curves of held-out loss, and a table with one row per training."""
    figures = loss_figures(sweep)
    if not figures:
        return None
    trainings = [siblings for siblings in sweep.siblings if "train_passes" in siblings[0].run.scalars]
    numbers = [" ".join(str(job.number) for job in arms) for arms in trainings]
    table = Table.of(list(map(_row, trainings)), runs=numbers)
    last = [job.metrics["val_loss_nats"][-1][1] for job, *_ in sweep.siblings if job.metrics.get("val_loss_nats")]
    ends = " to ".join(dict.fromkeys(f"{loss:.3f}" for loss in (min(last), max(last))))
    held = any(heads_held(job.run) for job in sweep.complete)
    blocks = [_ABOUT, _HELD if held else None, *figures.values(), table if trainings else None]
    return Section("training", "Training", blocks, f"ended at {ends} nats")


def recovery(sweep: SweepRecord) -> Section | None:
    """Loss over recalibration steps, and a table with one row per recalibrated run."""
    arms = [job for job in sweep.complete if job.recalibrated]
    rows = []
    for job in arms:
        facts = job.run.scalars["recalibration"]
        losses = facts["val_loss_nats"]
        last, before = losses[str(facts["steps"])], facts["parent_loss_nats"]
        rows.append(
            {
                "arm": job.label,
                "before\nnats": fixed(before, 3),
                "right after\nnats": fixed(losses["0"], 3),
                "in the end\nnats": fixed(last, 3),
                "end less before\nnats": fixed(last - before, 3, signed=True),
                "recalibration\nsteps": facts["steps"],
                "recovered": "yes" if facts["recovered"] else "no",
            }
        )
    table = Table.of(rows, runs=[job.number for job in arms])
    back = sum(job.run.scalars["recalibration"]["recovered"] for job in arms)
    blocks = [_RECOVERY, *recovery_figures(sweep).values(), table]
    headline = f"{back} of {len(arms)} arms recovered"
    return Section("recovery", "Recovery after the positional change", blocks, headline) if arms else None


def loss_figures(sweep: SweepRecord) -> dict[str, Figure]:
    """Held-out loss over training, one curve per training, with reference lines; one figure per group, by title."""
    figures, look = {}, looks(sweep, without=["position_enc"])
    for group in sweep.groups:
        siblings = [[job for job in arms if job.group == group] for arms in sweep.siblings]
        trainings = [arms for arms in siblings if arms and arms[0].metrics.get("val_loss_nats")]
        title = f"Held-out loss ({group})" if group else "Held-out loss"
        lines = []
        for arms in trainings:
            first, runs = arms[0], [job.number for job in arms]
            lines.append(loss_curve(first, "val_loss_nats", shared_label(arms), look[first.number], runs))
        if lines:
            figures[title] = loss_figure(lines, [arms[0] for arms in trainings], title)
    return figures


def loss_curve(
    job: Job, metric: str, label: str, look: Mapping[str, str] | None = None, runs: Sequence[int] = ()
) -> Curve:
    """A loss that a run logged over its steps."""
    steps, losses = zip(*job.metrics[metric], strict=True)
    return Curve(label=label, x=steps, y=losses, look=look, runs=runs)


def loss_figure(lines: Sequence[Curve], jobs: Sequence[Job], title: str) -> Figure:
    """Losses over training, with the reference lines of these runs' corpora."""
    levels = {name: [v for job in jobs if (v := job.run.value(f"{name}_nats")) is not None] for name in LOSS_REFERENCES}
    meanings = {name.replace("_", " "): meaning for name, meaning in _MEANINGS.items() if levels[name]}
    return curves(
        lines,
        title=title,
        xlabel="training step",
        ylabel="loss (nats)",
        references={name.replace("_", " "): float(np.mean(values)) for name, values in levels.items() if values},
        caption=" ".join(f"{name.capitalize()}: {meaning}." for name, meaning in meanings.items()),
    )


def recovery_figures(sweep: SweepRecord) -> dict[str, Figure]:
    """Loss above the parent's over recalibration steps; one figure per group, by title."""
    figures, look = {}, looks(sweep)
    for group, jobs in sweep.groups.items():
        lines, limits = [], set()
        for job in filter(lambda job: job.recalibrated, jobs):
            facts = job.run.scalars["recalibration"]
            losses = dict(sorted((int(step), loss) for step, loss in facts["val_loss_nats"].items()))
            limits.add(facts.get("recovered_within_nats"))
            above = [loss - facts["parent_loss_nats"] for loss in losses.values()]
            lines.append(Curve(label=job.label, x=[*losses], y=above, look=look[job.number], runs=[job.number]))
        limit = limits.pop() if len(limits) == 1 else None
        title = f"Recovery ({group})" if group else "Recovery"
        if lines:
            figures[title] = curves(
                lines,
                title=title,
                xlabel="recalibration step (log scale)",
                ylabel="held-out loss above the parent's (nats)",
                references={"before the change": 0.0, **({} if limit is None else {"recovered": limit})},
                log_x=True,
                caption="Held-out loss less that before the change of positions; step 0 is right after it.",
            )
    return figures


def shared_label(siblings: Sequence[Job]) -> str:
    """The words that the labels of all arms of a training share."""
    words = [job.label.split() for job in siblings]
    shared = [word for word in words[0] if all(word in other for other in words[1:])]
    of_checkpoints = len({job.factors.get("revision") for job in siblings}) > 1
    return " ".join(shared) or ("the training" if of_checkpoints else siblings[0].label)


def _row(siblings: Sequence[Job]) -> dict[str, str]:
    job, scalars = siblings[0], siblings[0].run.scalars
    losses = job.metrics.get("val_loss_nats", [])
    speed, ended = scalars.get("tokens_per_second"), scalars.get("ended_in_pass")
    return {
        "training": shared_label(siblings),
        "arms": listed(list(dict.fromkeys(level_of(arm, "position_enc") for arm in siblings))),
        "last loss\nnats": f"{losses[-1][1]:.3f}" if losses else "",
        "steps": number(losses[-1][0]) if losses else "",
        "passes\nover the corpus": number(scalars["train_passes"]),
        "of the last pass\nshown at the end": "" if ended is None else f"{100 * ended:.0f} %",
        "topic at the end": scalars.get("ended_in_topic") or ABSENT,
        "tokens/s": "" if speed is None else f"{speed / 1000:.1f} K",
    }
