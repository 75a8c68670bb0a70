"""What misleads in the study's virtual permutation of heads, with the verdicts of these runs."""

from __future__ import annotations

from headdyn.report.markup import soft
from headdyn.report.section import Section
from headdyn.studies.pages import Point, figures, misleading
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord

ORDERS = ("identity", "swap", "within_parity", "random", "reverse")


def sections(sweep: SweepRecord) -> list[Section]:
    """What the study did, where a run repeated it."""
    job = next((job for job in sweep.complete if "original_identity_success" in job.run.scalars), None)
    if job is None:
        return []
    reported = figures("head_swapping")["swap"]
    claim = soft(f"The study, of {reported['model']}: {reported['claim']}. Source: {reported['source']}.")
    title = "What the study did with the order of heads, and why it misleads"
    return [Section("misleads_order", title, misleading([point(job)]) + claim)]


def point(job: Job) -> Point:
    """How the study permuted heads, with the run's verdicts."""
    verdicts = [
        f"{order.replace('_', ' ')} {'right' if value else 'wrong'}"
        for order in ORDERS
        if (value := job.run.value(f"original_{order}_success")) is not None
    ]
    changes = [v for order in ORDERS[1:] if (v := job.run.value(f"{order}_float64_logit_change")) is not None]
    here = f"Its verdicts here: {', '.join(verdicts)}"
    if changes:
        here += f". Heads really reordered, weights and all, change no logit by more than {max(changes):.0e} in float64"
    return Point(
        "Its “virtual permutation” patched the heads that would sit at even places after a reordering.",
        "That relabels groups: another set of heads is patched, and judged by the same rule. No outcome of it can show "
        "that a function depends on indices, for the model never changed.",
        f"{here}.",
    )
