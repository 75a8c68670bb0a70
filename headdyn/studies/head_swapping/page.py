"""The study's virtual permutation of heads: why it misleads, and the verdicts of these runs."""

from headdyn.analysis.interventions.permutation import ORDERS
from headdyn.report.blocks import Section
from headdyn.studies.pages import facts, misleading
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord


def sections(sweep: SweepRecord) -> list[Section]:
    """Why the study misleads, if a run repeated its procedure."""
    job = next((job for job in sweep.complete if "original_identity_success" in job.run.scalars), None)
    if job is None:
        return []
    reported = facts("head_swapping")["swap"]
    claim = f"The study, of {reported['model']}: {reported['claim']}. Source: {reported['source']}."
    title = "What the study did with the order of heads, and why it misleads"
    return [Section("misleads_order", title, [misleading("head_swapping", verdicts(job)), claim])]


def verdicts(job: Job) -> str:
    """The verdicts of a run that repeated the study, and what a real reordering of heads changes."""
    right = [
        f"{order.replace('_', ' ')} {'right' if value else 'wrong'}"
        for order in ORDERS
        if (value := job.run.value(f"original_{order}_success")) is not None
    ]
    changes = [v for order in ORDERS[1:] if (v := job.run.value(f"{order}_float64_logit_change")) is not None]
    text = f"Its verdicts here: {', '.join(right)}."
    if changes:
        text += f" Heads really reordered, weights and all, change no logit by more than {max(changes):.0e} in float64."
    return text
