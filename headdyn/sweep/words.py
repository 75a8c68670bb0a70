"""The answers at the top of a sweep's page: sentences with values, intervals and numbers of units, from its records.

Sentences about factors, whose units are trainings, are in effect_words.py; the units of those here are sequences.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from headdyn.core.numbers import capital, count, fixed, listed, spelled, units
from headdyn.core.records import Metric
from headdyn.data.lines import NOTHING_TO_SELECT, WITHOUT_SELECTION
from headdyn.sweep.effect_words import factor, interactions, matched
from headdyn.sweep.effects import unrecovered
from headdyn.sweep.factors import CHOICES, MISSING, level_label, level_of, ordered, varying
from headdyn.sweep.jobs import Job, reading_order
from headdyn.sweep.record import SweepRecord

WORTH = "What is selecting by topic worth on this corpus?"
LOSS = "loss_nats"
_LITTLE_NATS = 0.1  # below this, contrasts of selectivity mean little
_ALSO_TRAINED_LONGER = (
    "DroPE arms also trained a little longer than RoPE arms; position_enc=rope_control, which is not in this sweep, "
    "would show the effect of that alone."
)


@dataclass(frozen=True)
class Statement:
    """A question with its answer: the first sentence is the answer, the others are details.

    `group` names the group of comparable runs to which the answer belongs; "" if there is only one group.
    """

    question: str
    sentences: Sequence[str]
    group: str = ""


_AT_MATCHED_LOSS = {
    "data_ordering": "Do the orderings differ at matched loss?",
    "position_enc": "Does dropping positions matter at matched loss?",
}


def statements(sweep: SweepRecord) -> list[Statement]:
    """Every question that the sweep's records can answer, group by group."""
    answered, rank = [], {name: place for place, name in enumerate(sweep.outcomes)}
    for group, jobs in sweep.groups.items():
        effects, simple, pairs, pooled = (
            sorted((r for r in rows if r.get("group", "") == group), key=lambda r: rank.get(r["outcome"], len(rank)))
            for rows in (sweep.effects, sweep.simple_effects, sweep.pairs, sweep.pooled)
        )
        names = dict.fromkeys(name for row in effects for name in row["factors"])
        answers = [
            (WORTH, selection_worth(jobs)),
            ("Did the models learn?", learning(jobs)),
            *((question_about(name), _about_factor(name, effects, jobs, sweep.metric)) for name in names),
            ("Do the factors interact?", interactions(effects, simple, sweep.metric)),
            *((question, matched(name, pairs, pooled, sweep.metric)) for name, question in _AT_MATCHED_LOSS.items()),
            ("Did the DroPE arms recover?", recovery(jobs)),
        ]
        answered += [Statement(question, sentences, group) for question, sentences in answers if sentences]
    return answered


def question_about(name: str) -> str:
    """The question about a factor."""
    return CHOICES[name].question if name in CHOICES else f"Does {name} matter?"


def selection_worth(jobs: Sequence[Job]) -> list[str]:
    """What attending by topic is worth beyond attending by distance, by the data's settings; means over seeds."""
    corpora = {job.run.manifest["stages"]["corpus"]["key"]: job for job in jobs if "corpus" in job.run.manifest}
    level_of_corpus = _data_levels(list(corpora.values()))
    by_kind: dict[tuple[str, Any], list[Mapping[str, Any]]] = {}  # by the data's level and the predictors compared
    absent: dict[str, None] = {}
    for job, level in zip(corpora.values(), level_of_corpus, strict=True):
        facts = job.run.manifest["corpus"].get("facts", {})
        if "selection_worth_nats" in facts:
            lines = frozenset(name for name in WITHOUT_SELECTION if f"{name}_nats" in facts)
            by_kind.setdefault((level, lines), []).append(facts)
        elif "selection_worth_absent" in facts:
            absent[(f"{level}: " if level else "") + worth_sentence([facts])] = None
    sentences, worths = [], []
    for (level, _), corpora_facts in by_kind.items():
        of_several = f"{len(corpora_facts)} of {len(corpora)} corpora: " if len(by_kind) > 1 else ""
        sentences.append((f"{level}: " if level else of_several) + worth_sentence(corpora_facts))
        worth = fmean(facts["selection_worth_nats"] for facts in corpora_facts)
        worths.append(f"{worth:.3f} nats a token with {level}")
    lead = f"What selecting by topic is worth depends on the data: {listed(worths)}."
    return [*([lead] if any(level_of_corpus) and len(worths) > 1 else []), *sentences, *absent]


def _data_levels(jobs: Sequence[Job]) -> list[str]:
    """Each job's levels of the factors by which the data of these jobs differ; "" if they differ in seeds alone."""
    factors = [job.factors for job in jobs]
    varied = varying(factors, [name for name in reading_order(factors) if _changes_data(name)])
    return [", ".join(level_label(name, job.factors.get(name)) for name in varied) for job in jobs]


def _changes_data(name: str) -> bool:
    return name in ("data", "mode") or (name.startswith("data.") and not name.endswith(".seed"))


def _about_factor(
    name: str, effects: Sequence[Mapping[str, Any]], jobs: Sequence[Job], metric: Callable[[str], Metric]
) -> list[str]:
    """The answer about a factor. A comparison of held-out losses on different data also gives their floors."""
    sentences, floors = factor(name, effects, metric), _floors(name, jobs) if _changes_data(name) else {}
    compared = any(row["outcome"] == LOSS and row["factors"] == [name] and row["value"] is not None for row in effects)
    if compared and len(set(floors.values())) > 1:
        texts = listed([f"{floor} with {level_label(name, level)}" for level, floor in floors.items()])
        first = next(place for place, sentence in enumerate(sentences) if metric(LOSS).label in sentence)
        sentences[first] += f" The exact floors of these data differ too ({texts}): compare losses above the floor."
    return sentences


def _floors(name: str, jobs: Sequence[Job]) -> dict[Any, str]:
    """By level of the factor, the exact floor in nats, averaged over corpora, or `unknown`."""
    by_level: dict[Any, dict[str, float | None]] = {}
    for job in jobs:
        corpus = job.run.manifest.get("stages", {}).get("corpus", {}).get("key", job.run.name)
        by_level.setdefault(level_of(job.run, name), {})[corpus] = job.run.value("floor_nats")
    by_level.pop(MISSING, None)
    known = {level: [f for f in floors.values() if f is not None] for level, floors in by_level.items()}
    return {level: fixed(fmean(known[level]), 3) if known[level] else "unknown" for level in ordered(name, known)}


def worth_sentence(corpora: Sequence[Mapping[str, Any]]) -> str:
    """A sentence on what selecting by topic is worth, or why that is unknown, from the facts of one kind of corpora."""
    if (reason := corpora[0].get("selection_worth_absent")) is not None:
        if NOTHING_TO_SELECT.items() <= corpora[0].items():
            return f"Selecting by topic is worth nothing on this corpus: {reason}."
        return f"What selecting by topic is worth is not known: {reason}."  # of earlier records

    def nats(name: str) -> str:
        return f"{fmean(facts[f'{name}_nats'] for facts in corpora):.3f}"

    without = {
        "position_only": "the best weighting of evidence by distance alone",
        "speaker_blind": "exact inference that does not know who speaks",
    }
    lines = [f"{what} {nats(name)}" for name, what in without.items() if f"{name}_nats" in corpora[0]]
    worth = nats("selection_worth")
    little = ", so little that contrasts of selectivity mean little here" if float(worth) < _LITTLE_NATS else ""
    over = f" (means over {len(corpora)} corpora)" if len(corpora) > 1 else ""
    absent = corpora[0].get("speaker_blind_absent")
    left_out = f" {capital(without['speaker_blind'])} is left out: {absent}."
    return (
        f"Selecting by topic is worth {worth} nats a token{over}, {nats('selection_worth_second_half')} on the second "
        f"half of a sequence{little}: {listed(lines)}, the exact floor {nats('floor')}. A predictor gains this; it "
        f"does not follow that attention must select for it.{left_out if absent else ''}"
    )


def learning(jobs: Sequence[Job]) -> list[str]:
    """Whether each training left the loss of the topic-blind mixture, when, and how much of the gap it closed."""
    measured = [job for job in jobs if not job.recalibrated and job.scalar("loss_nats").get("value") is not None]
    trainings = list({job.training: job for job in measured}.values())
    by_order: dict[str, list[Job]] = {}
    for job in trainings:
        if job.run.value("mixture_nats") is not None:
            by_order.setdefault(str(job.factors.get("data_ordering")), []).append(job)
    left_plateau = [
        f"{sum(map(_below_plateau, same))} of {len(same)} {'topic-ordered' if order == 'topic' else order}"
        for order, same in by_order.items()
    ]
    lead = "There is no exact law to judge these trainings by; their losses beside simple references:"
    if all(job.run.value("gap_closed") is not None for job in trainings):
        lead = "Held-out losses at the end of training, on the way from uniform guessing to the exact floor:"
    if left_plateau:
        if len(trainings) == 1:
            subject = "The training left" if _below_plateau(trainings[0]) else "The training did not leave"
        elif len(left_plateau) == 1:
            (judged,) = by_order.values()
            subject = f"{sum(map(_below_plateau, judged))} of {len(judged)} trainings left"
        else:
            subject = f"Of the trainings, {listed(left_plateau)} ones left"
        lead = f"{subject} the topic-blind plateau, the loss of the best bigram that does not know the topic."
    return [lead, *map(_ended, trainings)] if trainings else []


def recovery(jobs: Sequence[Job]) -> list[str]:
    """Whether each recalibrated arm came back to its parent's held-out loss."""
    arms = [job for job in jobs if job.recalibrated and job.factors.get("position_enc") == "drope"]
    if not arms:
        return []
    recovered = sum(job.run.scalars["recalibration"]["recovered"] for job in arms)
    limits = {job.run.scalars["recalibration"].get("recovered_within_nats") for job in arms} - {None}
    within = f" to within {limits.pop():g} nats of the loss before the drop" if len(limits) == 1 else ""
    others = "the others" if recovered else "them"
    warning = "" if recovered == len(arms) else f"; sentences about {others} describe damaged models"
    left_out = [job.label for job in arms if unrecovered(job.run)]
    if left_out:
        warning = f"; {listed(left_out)} did not within as many steps as training had, and no effect includes them"
    sentences = [f"{recovered} of {count(len(arms), 'DroPE arm')} recovered{within}{warning}."]
    for job in arms:
        facts = job.run.scalars["recalibration"]
        losses = {int(step): loss for step, loss in facts["val_loss_nats"].items()}
        sentences.append(
            f"{job.label}: {facts['parent_loss_nats']:.3f} nats with RoPE, {losses[0]:.3f} right after the drop, "
            f"{losses[facts['steps']]:.3f} after {count(facts['steps'], 'recalibration step')}: "
            f"{'recovered' if facts['recovered'] else 'not recovered'}."
        )
    controls = [job for job in jobs if job.factors.get("position_enc") == "rope_control" and job.recalibrated]
    for job in controls:
        facts = job.run.scalars["recalibration"]
        drift = facts["val_loss_nats"][str(facts["steps"])] - facts["parent_loss_nats"]
        change = fixed(drift, 3, signed=True)
        sentences.append(f"{job.label}: {change} nats after the same training with RoPE kept.")
    sentences += [
        f"{job.label}: {spelled(job.scalar('loss_nats'))} nats without positions from the start, a bound on what an "
        "arm can reach without them."
        for job in jobs
        if job.factors.get("position_enc") == "nope" and job.scalar("loss_nats").get("value") is not None
    ]
    return sentences if controls else [*sentences, _ALSO_TRAINED_LONGER]


def _ended(job: Job) -> str:
    loss, gap = job.scalar("loss_nats"), job.scalar("gap_closed")
    closed = ""
    if gap.get("value") is not None:
        closed = f", having closed {spelled(gap, scale=100)} % of the gap from uniform guessing to the Bayes floor"
    return (
        f"{job.label}: ended at {spelled(loss)} nats{closed} ({units(loss) or 'units not recorded'}); {_beside(job)}."
    )


def _beside(job: Job) -> str:
    """Between which evaluations the held-out loss left the plateau for good; without a plateau, simple references."""
    mixture, series = job.run.value("mixture_nats"), job.metrics.get("val_loss_nats", [])
    if mixture is None:
        references = {name: job.run.value(f"{name}_nats") for name in ("random", "unigram", "bigram", "trigram")}
        return (
            ", ".join(f"{name} {value:.3f}" for name, value in references.items() if value is not None)
            or "no references"
        )
    if not _below_plateau(job):
        return f"not clear of the plateau at {mixture:.3f} nats"
    above = [step for step, loss in series if loss >= mixture]
    below = [step for step, loss in series if loss < mixture and (not above or step > above[-1])]
    since = f" for good since between steps {above[-1]} and {below[0]}" if above and below else ""
    return f"below the plateau at {mixture:.3f} nats{since}"


def _below_plateau(job: Job) -> bool:
    loss, mixture = job.scalar("loss_nats"), job.run.value("mixture_nats")
    return mixture is not None and bool(loss.get("ci_high", loss["value"]) < mixture)
