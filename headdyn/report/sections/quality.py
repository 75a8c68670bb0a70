"""Quality control: checks of sweeps, of series of checkpoints and of single runs, made from their records."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from headdyn.core.numbers import count, fixed, listed, number, spelled
from headdyn.report.blocks import Section, Table, marked
from headdyn.report.extension import added
from headdyn.sweep.jobs import Job, of_prompts
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_record import Series, read_series
from headdyn.sweep.series_words import share

_EARLY = 0.10  # share of training at whose checkpoints little or nothing is expected
_FINE = 0.25  # share of training; over a wider gap between checkpoints an emergence cannot be dated
_ROUNDING = 1e-6
_WORDS = {"fails": ("✗ fails", "fail"), "note": ("• note", "to note"), "ok": ("✓ ok", "ok")}


@dataclass(frozen=True)
class Check:
    """One check: its question, its verdict, and the facts behind the verdict."""

    question: str
    verdict: Literal["ok", "note", "fails"]
    facts: str


def section(sweep: SweepRecord) -> Section:
    """Every check of a sweep, and those of the packages that its runs name."""
    return _section([*checks(sweep), *series_checks(read_series(sweep)), *added("checks", sweep)])


def of_run(sweep: SweepRecord) -> Section:
    """The checks that apply to a single run, and those of the packages that it names."""
    return _section([*_of_runs(sweep.jobs), *_recovered(sweep.jobs[0]), *added("checks", sweep)])


def _section(results: Sequence[Check]) -> Section:
    ordered = sorted(results, key=lambda check: list(_WORDS).index(check.verdict))
    rows = [[marked(_WORDS[c.verdict][0], f"check-{c.verdict}"), c.question, c.facts] for c in ordered]
    numbers = Counter(check.verdict for check in ordered)
    headline = ", ".join(f"{several} {_WORDS[verdict][1]}" for verdict, several in numbers.items())
    return Section("quality", "Quality control", [Table(columns=["", "question", "facts"], rows=rows)], headline)


def checks(sweep: SweepRecord) -> list[Check]:
    """Every check that the records of any sweep allow."""
    jobs, results = sweep.complete, [_complete(sweep)]
    if jobs:
        results += [*_of_runs(jobs), *_same(jobs), *_corpora(jobs)]
        if any(job.factors.get("revision") is None for job in jobs):  # a series of checkpoints is one training
            results += [_seeds(jobs), _trainings(jobs)]
    return [*results, *(Check("Records used once?", "note", note) for note in sweep.notes)]


def _of_runs(jobs: Sequence[Job]) -> list[Check]:
    return [result for check in (_floor, _ranges, _identity, _absent, _tests) for result in check(jobs)]


def _recovered(job: Job) -> list[Check]:
    if not job.recalibrated:
        return []
    facts = job.run.scalars["recalibration"]
    losses, steps = facts["val_loss_nats"], facts["steps"]
    text = (
        f"{facts['parent_loss_nats']:.3f} nats before the change, {losses['0']:.3f} right after, "
        f"{losses[str(steps)]:.3f} after {count(steps, 'step')}"
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
    distance = spelled(least.scalar("excess_nats"))
    facts = f"the nearest, {least.label}, is {distance} nats above the floor on the same sequences"
    if beaten:
        facts = f"beaten by {listed([job.label for job in beaten])}: the floor or the loss must be wrong; {facts}"
    return [Check("Does any model beat the Bayes floor?", "fails" if beaten else "ok", facts)]


def _ranges(jobs: Sequence[Job]) -> list[Check]:
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


def _identity(jobs: Sequence[Job]) -> Iterator[Check]:
    """Whether single tokens tell the topic, so that neither a topic probe nor attention needs any context."""
    by_corpus = {}
    for job in jobs:
        token, majority = (job.scalar(f"probe_{name}") for name in ("token_identity", "majority"))
        if token.get("value") is not None and majority.get("value") is not None:
            by_corpus[job.run.manifest.get("stages", {}).get("corpus", {}).get("key")] = (job, token, majority)
    for job, token, majority in by_corpus.values():
        chance = token["value"] <= majority.get("ci_high", majority["value"])
        generator = job.run.manifest.get("corpus", {}).get("facts", {}).get("generator")
        facts = (
            f"the token alone gives the topic {spelled(token, scale=100)} % of the time, the commonest topic is right "
            f"{spelled(majority, scale=100)} %"
        )
        if not chance and generator in ("original", "seed"):  # "seed" in older records
            facts += "; generator=original boosts a topic's own tokens, a known defect that protocol=original keeps"
        yield Check("Do single tokens tell the topic?", "ok" if chance else "note", facts)


def _seeds(jobs: Sequence[Job]) -> Check:
    seeds = sorted({str(job.factors.get("seed")) for job in jobs})
    facts = f"{len(seeds)} seeds ({', '.join(seeds)})"
    if len(seeds) < 2:
        facts = f"one seed ({seeds[0]}): values without intervals; add seed=0,1,2 to the same command"
    return Check("Are there enough seeds for intervals of factors?", "note" if len(seeds) < 2 else "ok", facts)


def _absent(jobs: Sequence[Job]) -> list[Check]:
    reasons: dict[str, list[str]] = {}
    first_texts: dict[str, str] = {}  # reasons that differ in their numbers alone are one reason, in the first's words

    for job in jobs:
        scalars = {n: s for n, s in job.run.scalars.items() if isinstance(s, dict) and s.get("value") is None}
        rows = [row for row in job.heads.rows() if row["value"] is None and row["layer"] is not None]
        texts = [f"{name}: {scalar['reason']}" for name, scalar in scalars.items() if "reason" in scalar]
        for text in (*texts, *(f"{row['metric']} of heads or layers: {row['reason']}" for row in rows)):
            first = first_texts.setdefault(re.sub(r"[-−]?[\d.]+(e[-+]?\d+)?", "#", text), text)
            reasons.setdefault(first, []).append(job.label)
    facts = "; ".join(f"{text} ({len(runs)} in {count(len(set(runs)), 'run')})" for text, runs in reasons.items())
    return [Check("Is any number absent?", "note" if reasons else "ok", facts or "none")]


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
    facts = f"{count(len(jobs), 'complete run')} of {count(len(keys), 'training')}"
    if len(keys) < len(jobs):
        facts += ": arms that differ only in the change of positions after the training share it"
    return Check("Which runs share a training?", "ok", facts)


def _same(jobs: Sequence[Job]) -> Iterator[Check]:
    for what, facts in {
        "code": [job.run.manifest.get("git") or "not from a checkout" for job in jobs],
        "package versions": [pairs(job.run.manifest.get("versions", {})) for job in jobs],
        "device and precision": [pairs(machine(job.run.manifest), "device", "precision") for job in jobs],
    }.items():
        distinct = sorted(set(facts))
        dirty = what == "code" and any(fact.endswith("+") for fact in distinct)
        text = " | ".join(distinct) + ("; + means uncommitted changes" if dirty else "")
        yield Check(f"The same {what} everywhere?", "ok" if len(distinct) == 1 and not dirty else "note", text)


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
        facts = f"not for {listed(mixed)}: differences between these runs may come from their corpora"
    return [Check("Do all runs of a seed see the same corpus?", "fails" if mixed else "ok", facts)] if keys else []


def pairs(entries: Mapping[str, Any], *only: str) -> str:
    """The entries that are not empty, in one line: `threads 2, device cpu`. With `only`, just those of these names."""
    return ", ".join(f"{name} {value}" for name, value in entries.items() if value and (not only or name in only))


def series_checks(all_series: Sequence[Series]) -> list[Check]:
    """The checks of every series, then those over all of them."""
    checks = []
    for series in all_series:
        title = f" ({series.title})" if series.title else ""
        parts = [*_early(series), _states(series), *_dtype(series), *_resolution(series)]
        checks += [Check(check.question + title, check.verdict, check.facts) for check in parts]
    return [*checks, _repeated(all_series), _units(all_series)] if all_series else []


def _early(series: Series) -> list[Check]:
    """Whether the primary measure's intervals contain its null at early checkpoints, as expected."""
    name = series.primary
    if name is None or series.points(name) is None:
        return []
    rows = [row for row in series.counted if row["training_share"] <= _EARLY] or series.counted[:1]
    intervals, excluding = [], []
    for row in rows:
        value, low, high = (row.get(f"{name}{part}") for part in ("", "_ci_low", "_ci_high"))
        if value is None or low is None or high is None:
            continue
        scalar = {"value": value, "ci_low": low, "ci_high": high}
        intervals.append(f"{row['revision']} {spelled(scalar, signed=True)}")
        if not low <= (row.get(f"{name}_null") or 0.0) <= high:
            excluding.append(intervals[-1])
    question = f"Is the {series.metric(name).label} near chance at early checkpoints?"
    if not intervals:
        return [Check(question, "note", "no early checkpoint has an interval")]
    which = f"in the first {share(_EARLY)} of training" if rows[0]["training_share"] <= _EARLY else "the first one"
    if not excluding:
        return [Check(question, "ok", f"every interval {which} holds chance: {listed(intervals)}")]
    highest = max(abs(row[name]) for row in series.counted if row.get(name) is not None)
    facts = f"{len(excluding)} of {len(intervals)} intervals {which} exclude chance: {listed(excluding)}"
    more = f"; the largest of all is {fixed(highest, 3)}. Intervals are per checkpoint, not corrected"
    return [Check(question, "note", facts + more)]


def _states(series: Series) -> Check:
    """Whether all checkpoints were loaded and differ, by the hashes of their weights and not by their names alone."""
    question = "Were the checkpoints loaded, and are they different ones?"
    verdict = series.verdict
    hashes = [row["state_hash"] for row in series.rows if row.get("state_hash")]
    facts = f"{count(len(hashes), 'state')} hashed, {len(set(hashes))} distinct"
    problems = [f"{' = '.join(group)} have the same weights" for group in verdict["duplicates"]]
    problems += [f"{revision} is excluded: {reason}" for revision, reason in verdict["excluded"].items()]
    problems += [f"{revision} did not load or run: {reason}" for revision, reason in verdict["failed"].items()]
    if verdict["unhashed"]:
        problems.append(f"no hash of {listed(list(verdict['unhashed']))}, so a mislabelled one would pass")
    text = "; ".join([facts, *(problems or ["none excluded, none failed"])])
    return Check(question, "fails" if problems else "ok", text)


def _dtype(series: Series) -> list[Check]:
    """Whether weights that come from files were loaded in a stated dtype, not silently in the files' own."""
    if not of_prompts(series.complete):
        return []
    dtypes = sorted({str(job.run.manifest.get("checkpoint", {}).get("dtype")) for job in series.complete})
    stated = len(dtypes) == 1 and "None" not in dtypes
    facts = f"{listed(dtypes)} at every checkpoint, whatever the files store" if stated else listed(dtypes)
    return [Check("Is the dtype stated?", "ok" if stated else "fails", facts)]


def _resolution(series: Series) -> list[Check]:
    widest = series.verdict.get("widest_interval")
    if widest is None:
        return []
    first, last = widest["steps"]
    facts = (
        f"the widest gap between checkpoints that count is steps {number(first)} to {number(last)}, "
        f"{share(widest['training_share'])} of training: no checkpoint tells what happens within it, or how suddenly"
    )
    return [Check("How finely can emergence be dated?", "ok" if widest["training_share"] < _FINE else "note", facts)]


def _repeated(all_series: Sequence[Series]) -> Check:
    question = "Are the results repeatable?"
    by_state: dict[tuple[str, Any], list[Job]] = {}
    for series in all_series:
        for row in series.rows:
            job = series.jobs.get(row["revision"])
            if job is not None and job.complete and row.get("state_hash"):
                by_state.setdefault((row["state_hash"], job.factors.get("seed")), []).append(job)
    repeats = [jobs for jobs in by_state.values() if len(jobs) > 1]
    if not repeats:
        facts = (
            "by design (prompts, splits, bootstrap draws and probes are drawn from the run's seed, weights are "
            "identified by hash, decoding is greedy); not verified here, since no checkpoint was measured twice"
        )
        return Check(question, "note", facts)
    differences = []
    for jobs in repeats:
        for name in {name for job in jobs for name, scalar in job.run.scalars.items() if isinstance(scalar, Mapping)}:
            values = [value for job in jobs if (value := job.run.value(name)) is not None]
            differences += [max(values) - min(values)] if len(values) > 1 else []
    worst = max(differences, default=0.0)
    facts = (
        f"{count(len(repeats), 'set')} of equal weights measured more than once: the largest difference among "
        f"{count(len(differences), 'number')} is {number(worst)}"
    )
    return Check(question, "ok" if worst < _ROUNDING else "fails", facts)


def _units(all_series: Sequence[Series]) -> Check:
    trainings = {(series.model, str(series.factors.get("seed")), series.truth.get("suite")) for series in all_series}
    facts = (
        f"{count(len(trainings), 'training')}: intervals and p-values are over pairs, sequences or splits of one "
        "training, and do not tell how often another training would do the same"
    )
    return Check("What is the unit?", "note" if len(trainings) == 1 else "ok", facts)
