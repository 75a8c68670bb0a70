"""Quality control: what must hold in any sweep, checked on its records."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from headdyn.core.numbers import count, fixed, listed, spelled
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord

Verdict = Literal["ok", "note", "fails"]


@dataclass(frozen=True)
class Check:
    """One check: what was asked, how it came out, and the facts."""

    question: str
    verdict: Verdict
    facts: str


def checks(sweep: SweepRecord) -> list[Check]:
    """Every check that the records allow, those that fail first."""
    jobs, made = sweep.complete, [_complete(sweep)]
    if jobs:
        made += [*_of_runs(jobs), *_same(jobs), *_corpora(jobs)]
        if any(job.factors.get("revision") is None for job in jobs):  # checkpoints are no arms of a design
            made += [_seeds(jobs), _trainings(jobs)]
    return in_order([*made, *(Check("Records used once?", "note", note) for note in sweep.notes)])


def run_checks(job: Job) -> list[Check]:
    """The checks that make sense of one run."""
    return in_order([*_of_runs([job]), *_recovered(job)])


def _of_runs(jobs: Sequence[Job]) -> list[Check]:
    return [check for made in (_floor, _ranges, _identity, _absent, _tests) for check in made(jobs)]


def in_order(made: Sequence[Check]) -> list[Check]:
    """Checks that fail first, then notes."""
    return sorted(made, key=lambda check: ("fails", "note", "ok").index(check.verdict))


def _recovered(job: Job) -> list[Check]:
    if not job.recalibrated:
        return []
    facts = job.run.scalars["recalibration"]
    losses = {int(step): loss for step, loss in facts["val_loss_nats"].items()}
    text = (
        f"{facts['parent_loss_nats']:.3f} nats before the change, {losses[0]:.3f} right after, "
        f"{losses[facts['steps']]:.3f} after {count(facts['steps'], 'step')}"
    )
    return [Check("Did it recover from the positional change?", "ok" if facts["recovered"] else "note", text)]


def _complete(sweep: SweepRecord) -> Check:
    facts = f"{len(sweep.complete)} of {count(len(sweep.jobs), 'job')}"
    if sweep.failed:
        facts += f"; not: {listed([job.label for job in sweep.failed])}"
    return Check("Did every job finish?", "fails" if sweep.failed else "ok", facts)


def _floor(jobs: Sequence[Job]) -> list[Check]:
    """No model may beat exact inference beyond sampling error: else the floor or the loss is wrong."""
    measured = [job for job in jobs if job.scalar("excess_nats").get("value") is not None]
    if not measured:
        return []
    beaten = [job for job in measured if (of := job.scalar("excess_nats")).get("ci_high", of["value"]) < 0]
    least = min(measured, key=lambda job: job.scalar("excess_nats")["value"])
    facts = f"the nearest, {least.label}, is {spelled(least.scalar('excess_nats'))} nats above it on the same sequences"
    if beaten:
        facts = f"beaten by {listed([job.label for job in beaten])}: the floor or the loss must be wrong; {facts}"
    return [Check("Does any model beat the Bayes floor?", "fails" if beaten else "ok", facts)]


def _ranges(jobs: Sequence[Job]) -> list[Check]:
    """Every value within the range its metric declares."""
    rows = [(job, row, job.glossary.get(row["metric"])) for job in jobs for row in job.heads.rows()]
    stated = [(job, row, metric) for job, row, metric in rows if metric is not None and row["value"] is not None]
    outside = [
        f"{job.label} {row['metric']} = {row['value']:.4g}"
        for job, row, metric in stated
        if not metric.low - 1e-9 <= row["value"] <= metric.high + 1e-9
    ]
    facts = f"all {len(stated)} values"
    if outside:
        facts = f"{len(outside)} of {len(stated)} do not: {'; '.join(outside[:5])}"
    question = "Does every value lie in the range its metric declares?"
    return [Check(question, "fails" if outside else "ok", facts)] if stated else []


def _identity(jobs: Sequence[Job]) -> list[Check]:
    """Whether single tokens give the topic away: then a topic probe needs no context, and attention no content."""
    by_corpus = {}
    for job in jobs:
        token, majority = (job.scalar(f"probe_{name}") for name in ("token_identity", "majority"))
        if token.get("value") is not None and majority.get("value") is not None:
            by_corpus[job.run.manifest.get("stages", {}).get("corpus", {}).get("key")] = (job, token, majority)
    made = []
    for job, token, majority in by_corpus.values():
        chance = token["value"] <= majority.get("ci_high", majority["value"])
        generator = job.run.manifest.get("corpus", {}).get("facts", {}).get("generator")
        facts = (
            f"the token alone gives the topic {spelled(token, scale=100)} % of the time, the commonest topic is right "
            f"{spelled(majority, scale=100)} %"
        )
        if not chance and generator in ("original", "seed"):  # "seed" in older records
            facts += "; generator=original boosts a topic's own tokens, a known defect that protocol=original keeps"
        made.append(Check("Do single tokens tell the topic?", "ok" if chance else "note", facts))
    return made


def _seeds(jobs: Sequence[Job]) -> Check:
    seeds = sorted({str(job.factors.get("seed")) for job in jobs})
    facts = f"{len(seeds)} seeds ({', '.join(seeds)})"
    if len(seeds) < 2:
        facts = f"one seed ({seeds[0]}): values without intervals; add seed=0,1,2 to the same command"
    return Check("Are there enough seeds for intervals of factors?", "note" if len(seeds) < 2 else "ok", facts)


def _absent(jobs: Sequence[Job]) -> list[Check]:
    """Numbers without a value, with their reasons: never shown as 0."""
    reasons: dict[str, list[str]] = {}
    like: dict[str, str] = {}  # reasons that differ in their numbers alone are said once

    def note(what: str, where: str) -> None:
        known = like.setdefault(re.sub(r"[-−]?[\d.]+(e[-+]?\d+)?", "#", what), what)
        reasons.setdefault(known, []).append(where)

    for job in jobs:
        for name, scalar in job.run.scalars.items():
            if isinstance(scalar, dict) and "reason" in scalar and scalar.get("value") is None:
                note(f"{name}: {scalar['reason']}", job.label)
        for row in job.heads.rows():
            if row["value"] is None and row["layer"] is not None:
                note(f"{row['metric']} of heads or layers: {row['reason']}", job.label)
    if not reasons:
        return [Check("Is any number absent?", "ok", "none")]
    facts = "; ".join(f"{what} ({len(where)} in {count(len(set(where)), 'run')})" for what, where in reasons.items())
    return [Check("Is any number absent?", "note", facts)]


def _tests(jobs: Sequence[Job]) -> list[Check]:
    p = [row["p"] for job in jobs for row in job.heads.rows() if row["p"] is not None]
    if not p:
        return []
    low = sum(value < 0.05 for value in p)
    facts = (
        f"{count(len(p), 'p-value')} of heads, layers and models in all; {low} are below 0.05, and "
        f"{fixed(0.05 * len(p), 0)} would be by chance alone if nothing were there. "
        "q-values are per analysis and run (Benjamini–Hochberg)"
    )
    return [Check("How many tests were made?", "note", facts)]


def _trainings(jobs: Sequence[Job]) -> Check:
    keys = {job.training for job in jobs}
    facts = f"{count(len(jobs), 'complete run')} stand on {count(len(keys), 'training')}"
    if len(keys) < len(jobs):
        facts += ": arms that differ only in what became of the positions share one"
    return Check("Which runs share a training?", "ok", facts)


def _same(jobs: Sequence[Job]) -> list[Check]:
    """Whether all runs come from the same code, versions and kind of machine."""
    made = []
    for what, facts in {
        "code": [job.run.manifest.get("git") or "not from a checkout" for job in jobs],
        "package versions": [pairs(job.run.manifest.get("versions", {})) for job in jobs],
        "device and precision": [pairs(machine(job.run.manifest), "device", "precision") for job in jobs],
    }.items():
        distinct = sorted(set(facts))
        dirty = what == "code" and any(fact.endswith("+") for fact in distinct)
        text = " | ".join(distinct) + ("; + means uncommitted changes" if dirty else "")
        made.append(Check(f"The same {what} everywhere?", "ok" if len(distinct) == 1 and not dirty else "note", text))
    return made


def machine(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was computed on; the precision is training's, so without a training there is none to state."""
    trained = manifest.get("stages") is None or "training" in manifest["stages"]
    return {name: v for name, v in manifest.get("machine", {}).items() if trained or name != "precision"}


def _corpora(jobs: Sequence[Job]) -> list[Check]:
    keys: dict[tuple[str, Any], set[str]] = {}
    for job in jobs:
        stage = job.run.manifest.get("stages", {}).get("corpus")
        if stage:
            keys.setdefault((job.group, job.factors.get("seed")), set()).add(stage["key"])
    mixed = [f"seed {seed}" for (_, seed), of_seed in keys.items() if len(of_seed) > 1]
    corpora = len(set().union(*keys.values()))
    facts = f"{corpora} corpora" if corpora != 1 else "one corpus in all"
    if mixed:
        facts = f"not in {listed(mixed)}: their differences are also the corpora's"
    return [Check("Do all runs of a seed see the same corpus?", "fails" if mixed else "ok", facts)] if keys else []


def pairs(entries: Mapping[str, Any], *only: str) -> str:
    """Entries in a line, `threads 2, device cpu`, without those that are empty; with `only` those alone."""
    return ", ".join(f"{name} {value}" for name, value in entries.items() if value and (not only or name in only))
