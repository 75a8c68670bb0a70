"""What a sweep's numbers say, in sentences computed from its records: values, intervals and numbers of units.

A sentence about a factor has training runs (seeds) as its units: with one seed it gives the value and says that there
can be no interval. A sentence about one run has sequences as its units. It says "effect" where q < 0.05, else that no
effect of so much or more was detected, never that there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headdyn.core.numbers import count, fixed, listed, spelled
from headdyn.sweep.effect_words import (
    ALPHA,
    ONE_SEED,
    Row,
    difference,
    factor,
    interactions,
    is_effect,
    matched,
)
from headdyn.sweep.factors import CHOICES, level_label
from headdyn.sweep.record import Job, SweepRecord

# What topic order leaves in the heads, by positions.
_ORDER_AT = {
    "rope": "Does topic order leave topic-selective attention with RoPE?",
    "drope": "Does topic order leave topic-selective attention after DroPE?",
}
_INSTRUMENTS = {
    "selectivity": "raw attention",
    "raw_selectivity_no_self": "raw attention",
    "rollout_selectivity_no_self": "attention rollout",
    "tensorlens_selectivity_no_self": "TensorLens",
    "probe_accuracy_middle": "probes",
}


@dataclass(frozen=True)
class Statement:
    """A question with its answer: the first sentence is the one to read if only one is, the others are its details.

    `group` names the group of comparable runs that the answer is about; "" where there is one.
    """

    question: str
    sentences: Sequence[str]
    group: str = ""


def statements(sweep: SweepRecord) -> list[Statement]:
    """Every question the sweep's records can answer, group by group."""
    answered = []
    for group in sweep.groups:
        jobs = [job for job in sweep.complete if job.group == group]
        effects, simple, pairs, pooled = (
            [row for row in rows if row.get("group", "") == group]
            for rows in (sweep.effects, sweep.simple_effects, sweep.pairs, sweep.pooled)
        )
        names = dict.fromkeys(name for row in effects for name in row["factors"])
        answers = [
            ("Did the models learn?", learning(jobs)),
            *((question_about(name), factor(name, effects, sweep.metric)) for name in names),
            ("Do the factors interact?", interactions(effects, simple, sweep.metric)),
            ("Do the orderings differ at matched loss?", matched(pairs, pooled, sweep.metric)),
            ("Did the DroPE arms recover?", recovery(jobs)),
            *((q, by_instruments(jobs, position, [*effects, *simple])) for position, q in _ORDER_AT.items()),
        ]
        answered += [Statement(question, sentences, group) for question, sentences in answers if sentences]
    return answered


def question_about(name: str) -> str:
    """What is asked of a factor."""
    return CHOICES[name].question if name in CHOICES else f"Does {name} matter?"


def learning(jobs: Sequence[Job]) -> list[str]:
    """Whether each training left the loss of the topic-blind mixture, when, and how much of the gap it closed."""
    measured = [job for job in jobs if not job.recalibrated and job.scalar("loss_nats").get("value") is not None]
    trainings = list({job.training: job for job in measured}.values())
    judged = [job for job in trainings if job.run.value("mixture_nats") is not None]
    sentences = []
    if judged:
        orderings = dict.fromkeys(str(job.factors.get("data_ordering")) for job in judged)
        of = {name: [job for job in judged if str(job.factors.get("data_ordering")) == name] for name in orderings}
        named = {"topic": "topic-ordered"}
        left = [f"{sum(map(_below_plateau, same))} of {len(same)} {named.get(o, o)}" for o, same in of.items()]
        sentences.append(
            f"Of the trainings, {listed(left)} ones left the topic-blind plateau, the loss of the best bigram mixture."
        )
    elif trainings:
        sentences.append("There is no exact law to judge these trainings by; their losses beside simple references:")
    for job in trainings:
        ended = f"{job.label}: ended at {spelled(job.scalar('loss_nats'))} nats"
        if job.scalar("gap_closed").get("value") is not None:
            closed = spelled(job.scalar("gap_closed"), scale=100)
            ended += f", having closed {closed} % of the gap from uniform guessing to the Bayes floor"
        sentences.append(f"{ended} ({_units(job.scalar('loss_nats'))}); {_beside(job)}.")
    return sentences


def recovery(jobs: Sequence[Job]) -> list[str]:
    """Whether each recalibrated arm came back to its parent's held-out loss."""
    arms = [job for job in jobs if job.recalibrated and job.factors.get("position_enc") == "drope"]
    if not arms:
        return []
    facts_of = {job.number: job.run.scalars["recalibration"] for job in arms}
    back = [job for job in arms if facts_of[job.number]["recovered"]]
    limits = {facts.get("recovered_within_nats") for facts in facts_of.values()}
    limit = limits.pop() if len(limits) == 1 else None
    within = "" if limit is None else f" to within {limit:g} nats of the loss before the drop"
    others = "them" if not back else "the others"
    warning = "" if len(back) == len(arms) else f"; what is said of {others} is said of damaged models"
    sentences = [f"{len(back)} of {count(len(arms), 'DroPE arm')} recovered{within}{warning}."]
    for job in arms:
        facts = facts_of[job.number]
        losses = {int(step): loss for step, loss in facts["val_loss_nats"].items()}
        verdict = "recovered" if facts["recovered"] else "not recovered"
        sentences.append(
            f"{job.label}: {facts['parent_loss_nats']:.3f} nats with RoPE, {losses[0]:.3f} right after the drop, "
            f"{losses[facts['steps']]:.3f} after {count(facts['steps'], 'recalibration step')}: {verdict}."
        )
    if not any(job.factors.get("position_enc") == "rope_control" for job in jobs):
        sentences.append(
            "DroPE arms also trained a little longer than RoPE arms; position_enc=rope_control, which is not in this "
            "sweep, would tell the two apart."
        )
    return sentences


def by_instruments(jobs: Sequence[Job], position: str, effects: Sequence[Row]) -> list[str]:
    """The ordering's effect at one kind of positions, by attention, rollout, TensorLens and probes; every arm's own.

    `effects` are the group's rows, simple effects among them. Where TensorLens was run, raw attention is measured as
    TensorLens and rollout are: on the same sequences, without the query's own position.
    """
    arms = [job for job in jobs if job.factors.get("position_enc") == position]
    if not {job.factors.get("data_ordering") for job in arms} >= {"shuffled", "topic"}:
        return []
    held = {"position_enc": position} if len(arms) < len(jobs) else {}
    row_of = {r["outcome"]: r for r in effects if r["factors"] == ["data_ordering"] and r.get("held", {}) == held}
    recorded = {name for job in arms for name in job.run.scalars}
    alike = "raw_selectivity_no_self" in recorded
    details, rows = [], []
    for outcome, instrument in _INSTRUMENTS.items():
        if outcome not in recorded or (alike and outcome == "selectivity"):
            continue
        row = row_of.get(outcome)
        if row is None:
            given = [job.scalar(outcome).get("reason") for job in arms]
            reasons = dict.fromkeys(filter(None, given)) or {"it is no outcome of this sweep": None}
            details.append(f"By {instrument}: absent, {listed(list(reasons))}.")
        elif row["value"] is None:
            details.append(f"By {instrument}: absent, {row['reason']}.")
        else:
            rows.append(row)
        for ordering in ("topic", "shuffled"):
            same = [job for job in arms if job.factors.get("data_ordering") == ordering]
            texts = [_arm(job, outcome, jobs) for job in same if job.scalar(outcome).get("value") is not None]
            if texts:
                details.append(f"By {instrument}, {ordering}: {'; '.join(texts)}.")
    if not rows:
        return details
    by_quantity = {
        "topic selectivity": [row for row in rows if "selectivity" in row["outcome"]],
        "probe accuracy at the middle layer": [row for row in rows if row["outcome"].startswith("probe")],
    }
    metric = arms[0].metric
    differences = listed(
        [
            f"in {name} by " + listed([f"{difference(row, metric)} ({_INSTRUMENTS[row['outcome']]})" for row in some])
            for name, some in by_quantity.items()
            if some
        ]
    )
    seeds = max(row["n"] for row in rows)
    damaged = sum(not job.run.scalars["recalibration"]["recovered"] for job in arms if job.recalibrated)
    if damaged:
        details.insert(0, f"{damaged} of the {len(arms)} arms have not recovered from the drop.")
    at = "After" if position == "drope" else "With"
    head = f"{at} {level_label('position_enc', position)}, topic-ordered training differs from shuffled {differences}"
    if alike:
        details.insert(0, "Selectivities are of what is not read from the query's own position.")
    if seeds < 2:
        return [f"{ONE_SEED} {head}.", *details]
    clear = [_INSTRUMENTS[row["outcome"]] for row in rows if is_effect(row)]
    rest = [_INSTRUMENTS[row["outcome"]] for row in rows if not is_effect(row)]
    parts = [f"An effect by {listed(clear)} (q < {ALPHA:g})"] if clear else []
    parts += [f"{'none' if clear else 'No effect'} detected by {listed(rest)}"] if rest else []
    return [f"{', '.join(parts)}. {head}; {count(seeds, 'seed')}.", *details]


def _arm(job: Job, outcome: str, jobs: Sequence[Job]) -> str:
    """One arm's figure after the drop, with what it stands against, and the same before the drop."""
    scalar, metric = job.scalar(outcome), job.metric(outcome)
    text = f"{job.label} {spelled(scalar, scale=metric.scale)} {metric.unit}"
    if _INSTRUMENTS[outcome] == "raw attention":
        rows = [r for r in job.heads.where(metric="selectivity").rows() if r["head"] is not None and r["q"] is not None]
        if rows:
            selective = sum(row["q"] < 0.05 and row["value"] > 0 for row in rows)
            text += f", {selective} of {len(rows)} heads above 0 at q < 0.05"
    elif outcome.startswith("probe"):
        if scalar.get("null") is not None:
            text += f", best baseline {fixed(metric.scale * scalar['null'], 1)} %"
        ceiling = job.scalar("probe_ceiling").get("value")
        if ceiling is not None:
            text += f", Bayes ceiling {fixed(metric.scale * ceiling, 1)} %"
    if job.factors.get("position_enc") == "rope":
        return text
    for other in jobs:
        before = other.scalar(outcome).get("value")
        if other.training == job.training and other.factors.get("position_enc") == "rope" and before is not None:
            text += f" (before the drop {fixed(metric.scale * before, metric.digits)})"
    return text


def _below_plateau(job: Job) -> bool:
    loss, mixture = job.scalar("loss_nats"), job.run.value("mixture_nats")
    assert mixture is not None
    return bool(loss.get("ci_high", loss["value"]) < mixture)


def _beside(job: Job) -> str:
    """Between which evaluations the held-out loss left the plateau for good; without one, simple references."""
    mixture, series = job.run.value("mixture_nats"), job.metrics.get("val_loss_nats", [])
    if mixture is None:
        known = {name: job.run.value(f"{name}_nats") for name in ("random", "unigram", "bigram", "trigram")}
        return ", ".join(f"{name} {value:.3f}" for name, value in known.items() if value is not None) or "no references"
    if not _below_plateau(job):
        return f"not clear of the plateau at {mixture:.3f} nats"
    above = [step for step, loss in series if loss >= mixture]
    below = [step for step, loss in series if loss < mixture and (not above or step > above[-1])]
    if not above or not below:
        return f"below the plateau at {mixture:.3f} nats"
    return f"below the plateau at {mixture:.3f} nats for good since between steps {above[-1]} and {below[0]}"


def _units(scalar: Row) -> str:
    return count(scalar["n"], scalar["unit"]) if scalar.get("n") else "units not recorded"
