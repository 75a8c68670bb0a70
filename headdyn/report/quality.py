"""Quality control: checks that apply to any sweep, made on its records."""

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
    """One check: its question, its verdict, and the facts behind the verdict."""

    question: str
    verdict: Verdict
    facts: str


def checks(sweep: SweepRecord) -> list[Check]:
    """Every check that the records allow, those that fail first."""
    jobs, results = sweep.complete, [_complete(sweep)]
    if jobs:
        results += [*_of_runs(jobs), *_same(jobs), *_corpora(jobs)]
        if any(job.factors.get("revision") is None for job in jobs):  # a series of checkpoints is one training
            results += [_seeds(jobs), _trainings(jobs)]
    return in_order([*results, *(Check("Records used once?", "note", note) for note in sweep.notes)])


def run_checks(job: Job) -> list[Check]:
    """The checks that apply to a single run."""
    return in_order([*_of_runs([job]), *_recovered(job)])


def _of_runs(jobs: Sequence[Job]) -> list[Check]:
    return [result for check in (_floor, _ranges, _identity, _absent, _tests) for result in check(jobs)]


def in_order(results: Sequence[Check]) -> list[Check]:
    """The checks that fail, then notes, then the others."""
    return sorted(results, key=lambda check: ("fails", "note", "ok").index(check.verdict))


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
    """A model that beats exact inference by more than sampling error shows that the floor or the loss is wrong."""
    measured = [job for job in jobs if job.scalar("excess_nats").get("value") is not None]
    if not measured:
        return []
    beaten = [job for job in measured if (loss := job.scalar("excess_nats")).get("ci_high", loss["value"]) < 0]
    least = min(measured, key=lambda job: job.scalar("excess_nats")["value"])
    facts = f"the nearest, {least.label}, is {spelled(least.scalar('excess_nats'))} nats above it on the same sequences"
    if beaten:
        facts = f"beaten by {listed([job.label for job in beaten])}: the floor or the loss must be wrong; {facts}"
    return [Check("Does any model beat the Bayes floor?", "fails" if beaten else "ok", facts)]


def _ranges(jobs: Sequence[Job]) -> list[Check]:
    """Whether every value lies in the range that its metric declares."""
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
    """Whether single tokens tell the topic, so that neither a topic probe nor attention needs any context."""
    by_corpus = {}
    for job in jobs:
        token, majority = (job.scalar(f"probe_{name}") for name in ("token_identity", "majority"))
        if token.get("value") is not None and majority.get("value") is not None:
            by_corpus[job.run.manifest.get("stages", {}).get("corpus", {}).get("key")] = (job, token, majority)
    results = []
    for job, token, majority in by_corpus.values():
        chance = token["value"] <= majority.get("ci_high", majority["value"])
        generator = job.run.manifest.get("corpus", {}).get("facts", {}).get("generator")
        facts = (
            f"the token alone gives the topic {spelled(token, scale=100)} % of the time, the commonest topic is right "
            f"{spelled(majority, scale=100)} %"
        )
        if not chance and generator in ("original", "seed"):  # "seed" in older records
            facts += "; generator=original boosts a topic's own tokens, a known defect that protocol=original keeps"
        results.append(Check("Do single tokens tell the topic?", "ok" if chance else "note", facts))
    return results


def _seeds(jobs: Sequence[Job]) -> Check:
    seeds = sorted({str(job.factors.get("seed")) for job in jobs})
    facts = f"{len(seeds)} seeds ({', '.join(seeds)})"
    if len(seeds) < 2:
        facts = f"one seed ({seeds[0]}): values without intervals; add seed=0,1,2 to the same command"
    return Check("Are there enough seeds for intervals of factors?", "note" if len(seeds) < 2 else "ok", facts)


def _absent(jobs: Sequence[Job]) -> list[Check]:
    """Numbers without a value, with their reasons."""
    reasons: dict[str, list[str]] = {}
    first_texts: dict[str, str] = {}  # reasons that differ in their numbers alone are one reason, in the first's words

    def note(text: str, run: str) -> None:
        first = first_texts.setdefault(re.sub(r"[-−]?[\d.]+(e[-+]?\d+)?", "#", text), text)
        reasons.setdefault(first, []).append(run)

    for job in jobs:
        for name, scalar in job.run.scalars.items():
            if isinstance(scalar, dict) and "reason" in scalar and scalar.get("value") is None:
                note(f"{name}: {scalar['reason']}", job.label)
        for row in job.heads.rows():
            if row["value"] is None and row["layer"] is not None:
                note(f"{row['metric']} of heads or layers: {row['reason']}", job.label)
    if not reasons:
        return [Check("Is any number absent?", "ok", "none")]
    facts = "; ".join(f"{text} ({len(runs)} in {count(len(set(runs)), 'run')})" for text, runs in reasons.items())
    return [Check("Is any number absent?", "note", facts)]


def _tests(jobs: Sequence[Job]) -> list[Check]:
    p_values = [row["p"] for job in jobs for row in job.heads.rows() if row["p"] is not None]
    if not p_values:
        return []
    low = sum(p < 0.05 for p in p_values)
    facts = (
        f"{count(len(p_values), 'p-value')} of heads, layers and models in all; {low} are below 0.05, and "
        f"{fixed(0.05 * len(p_values), 0)} would be by chance alone if nothing were there. "
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
    results = []
    for what, facts in {
        "code": [job.run.manifest.get("git") or "not from a checkout" for job in jobs],
        "package versions": [pairs(job.run.manifest.get("versions", {})) for job in jobs],
        "device and precision": [pairs(machine(job.run.manifest), "device", "precision") for job in jobs],
    }.items():
        distinct = sorted(set(facts))
        dirty = what == "code" and any(fact.endswith("+") for fact in distinct)
        text = " | ".join(distinct) + ("; + means uncommitted changes" if dirty else "")
        verdict: Verdict = "ok" if len(distinct) == 1 and not dirty else "note"
        results.append(Check(f"The same {what} everywhere?", verdict, text))
    return results


def machine(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's facts about its machine; the precision, which is that of training, only where the run has one."""
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
    """The entries that are not empty in one line, `threads 2, device cpu`; with `only`, none but those."""
    return ", ".join(f"{name} {value}" for name, value in entries.items() if value and (not only or name in only))
