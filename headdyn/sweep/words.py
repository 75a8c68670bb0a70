"""What a sweep's numbers say, in sentences computed from its records: values, intervals and numbers of units.

A sentence about a factor has training runs (seeds) as its units: with one seed it gives the value and says that there
can be no interval. A sentence about one run has sequences as its units. It says "effect" where q < 0.05, else that no
effect of so much or more was detected, never that there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headdyn.core.numbers import count, listed, spelled
from headdyn.sweep.effect_words import (
    Row,
    factor,
    interactions,
    matched,
)
from headdyn.sweep.factors import CHOICES
from headdyn.sweep.record import Job, SweepRecord


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
