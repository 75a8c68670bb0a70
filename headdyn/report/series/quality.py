"""Quality control of series: early checkpoints, weights, dtype, distances of checkpoints, repeats, units."""

from collections.abc import Mapping, Sequence
from typing import Any

from headdyn.core.numbers import count, fixed, listed, number, spelled
from headdyn.report.quality import Check
from headdyn.sweep.jobs import Job, of_prompts
from headdyn.sweep.series_record import Series
from headdyn.sweep.series_words import share

_EARLY = 0.10  # share of training at whose checkpoints little or nothing is expected
_FINE = 0.25  # share of training; over a wider gap between checkpoints an emergence cannot be dated
_ROUNDING = 1e-6


def series_checks(series: Sequence[Series]) -> list[Check]:
    """The checks of every series, then those over all of them."""
    checks = []
    for each in series:
        title = f" ({each.title})" if each.title else ""
        parts = [*_early(each), _states(each), *_dtype(each), *_resolution(each)]
        checks += [Check(check.question + title, check.verdict, check.facts) for check in parts]
    return [*checks, _repeated(series), _units(series)] if series else []


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
        text = f"{row['revision']} {spelled({'value': value, 'ci_low': low, 'ci_high': high}, signed=True)}"
        intervals.append(text)
        if not low <= (row.get(f"{name}_null") or 0.0) <= high:
            excluding.append(text)
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
    if problems:
        return Check(question, "fails", "; ".join([facts, *problems]))
    return Check(question, "ok", f"{facts}; none excluded, none failed")


def _dtype(series: Series) -> list[Check]:
    """Whether weights that come from files were loaded in a stated dtype, not silently in the files' own."""
    if not of_prompts(series.complete):
        return []
    dtypes = sorted({str(job.run.manifest.get("checkpoint", {}).get("dtype")) for job in series.complete})
    stated = len(dtypes) == 1 and "None" not in dtypes
    facts = f"{listed(dtypes)} at every checkpoint, whatever the files store" if stated else listed(dtypes)
    return [Check("Is the dtype stated?", "ok" if stated else "fails", facts)]


def _resolution(series: Series) -> list[Check]:
    """How finely an emergence can be dated, by the widest gap between checkpoints."""
    widest = series.verdict.get("widest_interval")
    if widest is None:
        return []
    first, last = widest["steps"]
    facts = (
        f"the widest gap between checkpoints that count is steps {number(first)} to {number(last)}, "
        f"{share(widest['training_share'])} of training: no checkpoint tells what happens within it, or how suddenly"
    )
    return [Check("How finely can emergence be dated?", "ok" if widest["training_share"] < _FINE else "note", facts)]


def _repeated(series: Sequence[Series]) -> Check:
    """Whether equal weights that were measured more than once gave equal numbers, where the runs hold such weights."""
    question = "Are the results repeatable?"
    by_state: dict[tuple[str, Any], list[Job]] = {}
    for each in series:
        for row in each.rows:
            job = each.jobs.get(row["revision"])
            if job is not None and job.complete and row.get("state_hash"):
                by_state.setdefault((row["state_hash"], job.factors.get("seed")), []).append(job)
    repeats = [jobs for jobs in by_state.values() if len(jobs) > 1]
    if not repeats:
        facts = (
            "by design (prompts, splits, bootstrap draws and probes are drawn from the run's seed, weights are "
            "identified by hash, decoding is greedy); not verified here, since no checkpoint was measured twice"
        )
        return Check(question, "note", facts)
    worst, compared = 0.0, 0
    for jobs in repeats:
        for name in {name for job in jobs for name, scalar in job.run.scalars.items() if isinstance(scalar, Mapping)}:
            values = [value for job in jobs if (value := job.run.value(name)) is not None]
            if len(values) > 1:
                worst, compared = max(worst, max(values) - min(values)), compared + 1
    facts = (
        f"{count(len(repeats), 'set')} of equal weights measured more than once: the largest difference among "
        f"{count(compared, 'number')} is {number(worst)}"
    )
    return Check(question, "ok" if worst < _ROUNDING else "fails", facts)


def _units(series: Sequence[Series]) -> Check:
    trainings = {(each.model, str(each.factors.get("seed")), each.truth.get("suite")) for each in series}
    facts = (
        f"{count(len(trainings), 'training')}: intervals and p-values are over pairs, sequences or splits of this "
        "training, and say nothing of how often another training would do the same"
    )
    return Check("What is the unit?", "note" if len(trainings) == 1 else "ok", facts)
