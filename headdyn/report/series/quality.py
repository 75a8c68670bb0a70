"""Quality control of series: the end against what is known, the beginning against nothing, weights, repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headdyn.core.numbers import count, fixed, listed, number, p_value, spelled
from headdyn.report.quality import Check
from headdyn.report.seed_protocol import responses
from headdyn.report.series.record import Series
from headdyn.report.series.study import known_final
from headdyn.report.series.words import share
from headdyn.sweep.jobs import Job

_EARLY = 0.10  # of training: where the study expects little to no specialisation
_COMPARED = ("strength", "strength_nats", "plain_nats", "selectivity", "probe_accuracy_middle", "loss_nats")


def series_checks(series: Sequence[Series]) -> list[Check]:
    """The checks of every series, then those over all of them."""
    found = []
    for each in series:
        of = f" ({each.title})" if each.title else ""
        parts = [_final(each), *_onset(each), *_early(each), _states(each), *_dtype(each), *_resolution(each)]
        found += [Check(check.question + of, check.verdict, check.facts) for check in parts]
    if series:
        found.append(_repeated(series))
        found.append(_units(series))
    return found


def _final(series: Series) -> Check:
    """The last checkpoint against what is known of it: the study's figure for its own model, the truth of a suite."""
    question = "Does the final checkpoint show the known result?"
    if not series.counted or not series.complete:
        return Check(question, "note", "no checkpoint counts")
    last, job = series.counted[-1], series.complete[-1]
    end = [row for row in series.rows if row["step"] is not None][-1]
    if end is not last:
        return Check(question, "note", f"the last checkpoint, {end['revision']}, does not count: {end['reason']}")
    if series.organism:
        return _final_organism(series, question, last, job)
    known = known_final(series.model)
    if known is None:
        return Check(question, "note", f"no known result for {series.model}, so the end cannot be checked against one")
    if last["step"] != 143_000:
        return Check(
            question, "note", f"the study's is of step 143000; the last that counts here is {last['revision']}"
        )
    ours = f"strength {spelled(job.scalar('strength'), signed=True)} over pairs"
    told = job.run.value("seed_strength")
    if told is None:
        facts = f"the study reports strength {fixed(known, 0, signed=True)} on one prompt; not run under protocol=seed"
        return Check(question, "note", f"{facts}; corrected, {ours}")
    facts = f"the study reports {fixed(known, 0, signed=True)}; as it judged it, {fixed(told, 0, signed=True)} here"
    return Check(question, "ok" if told == known else "fails", f"{facts}; corrected, {ours}")


def _final_organism(series: Series, question: str, last: Mapping[str, Any], job: Job) -> Check:
    truth, split = series.organism, series.verdict.get("even_odd", {})
    if "found" not in split:
        return Check(question, "note", f"no verdict: {split.get('reason', series.verdict.get('reason'))}")
    wanted, found = truth["organism"] == "planted", split["found"]
    planted = "nothing is planted"
    if truth["heads"]:
        planted = (
            f"the choice is planted into heads {listed([str(h) for h in truth['heads']])} of layer {truth['layer']}"
        )
    strength = spelled(job.scalar("strength"), signed=True)
    facts = (
        f"organism {truth['organism']}: {planted}, so even/odd must {'' if wanted else 'not '}be found; it was "
        f"{'' if found else 'not '}found (p {p_value(split['p'])}), and {last['revision']} has strength {strength}"
    )
    return Check(question, "ok" if found == wanted else "fails", facts)


def _onset(series: Series) -> list[Check]:
    """Where a suite's planting began against where emergence was dated: within one checkpoint interval."""
    onset = series.organism.get("onset")
    if not onset or series.organism["organism"] != "planted":
        return []
    question = "Is the onset dated where planting began?"
    said = series.measures.get("strength_nats", {})
    known = f"planting began at step {number(round(onset['step']))}"
    steps = [row["step"] for row in series.counted]
    if not steps or steps[-1] <= onset["step"]:
        return [Check(question, "note", f"{known}; no checkpoint behind it counts")]
    if said.get("emerges_at_step") is None:
        return [Check(question, "fails", f"{known}; no emergence was found")]
    true, found = sum(step <= onset["step"] for step in steps), steps.index(said["emerges_at_step"])
    after = said["emerges_after_step"]
    facts = (
        f"{known}; strength of Δ emerges in ({'' if after is None else number(after)}, "
        f"{number(said['emerges_at_step'])}], {count(abs(found - true), 'checkpoint interval')} off"
    )
    return [Check(question, "ok" if abs(found - true) <= 1 else "fails", facts)]


def _early(series: Series) -> list[Check]:
    """Early checkpoints are expected near zero: intervals of what is measured hold the null there."""
    metric = next((name for name in ("strength_nats", "selectivity") if series.points(name)), None)
    if metric is None:
        return []
    rows = [row for row in series.counted if row["training_share"] <= _EARLY] or series.counted[:1]
    off, shown = [], []
    for row in rows:
        value, low, high = (row.get(f"{metric}{part}") for part in ("", "_ci_low", "_ci_high"))
        if value is None or low is None or high is None:
            continue
        told = f"{row['revision']} {spelled({'value': value, 'ci_low': low, 'ci_high': high}, signed=True)}"
        shown.append(told)
        if not low <= (row.get(f"{metric}_null") or 0.0) <= high:
            off.append(told)
    question = f"Are early checkpoints near zero ({metric})?"
    if not shown:
        return [Check(question, "note", "no early checkpoint has an interval")]
    which = f"in the first {share(_EARLY)} of training" if rows[0]["training_share"] <= _EARLY else "the first one"
    if off:
        highest = max(abs(row[metric]) for row in series.counted if row.get(metric) is not None)
        facts = f"{len(off)} of {len(shown)} intervals {which} exclude 0: {listed(off)}; the largest of all is "
        return [Check(question, "note", f"{facts}{fixed(highest, 3)}. Intervals are per checkpoint, not corrected")]
    return [Check(question, "ok", f"every interval {which} holds 0: {listed(shown)}")]


def _states(series: Series) -> Check:
    """A revision's name is not trusted: every loaded state has a hash, and no two the same."""
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
    """Weights are loaded in a stated dtype: a stored float16 is not taken over silently."""
    if not series.of_prompts:
        return []
    told = {str(job.run.manifest.get("checkpoint", {}).get("dtype")) for job in series.complete}
    explicit = told and "None" not in told and len(told) == 1
    facts = f"{listed(sorted(told))} at every checkpoint, whatever the files store"
    return [Check("Is the dtype stated?", "ok" if explicit else "fails", facts if explicit else listed(sorted(told)))]


def _resolution(series: Series) -> list[Check]:
    """How finely an emergence can be dated at all."""
    widest = series.verdict.get("widest_interval")
    if widest is None:
        return []
    first, last = widest["steps"]
    facts = (
        f"the widest gap between checkpoints that count is steps {number(first)} to {number(last)}, "
        f"{share(widest['training_share'])} of training: what lies within it, sudden or not, no checkpoint tells"
    )
    return [Check("How finely can emergence be dated?", "ok" if widest["training_share"] < 0.25 else "note", facts)]


def _repeated(series: Sequence[Series]) -> Check:
    """Equal weights measured twice must give equal numbers; only what these runs hold is said to be verified."""
    question = "Are the results repeatable?"
    by_state: dict[tuple[str, Any], list[Job]] = {}
    for each in series:
        for row in each.rows:
            job = each.jobs.get(row["revision"])
            if job is not None and job.complete and row.get("state_hash"):
                by_state.setdefault((row["state_hash"], job.factors.get("seed")), []).append(job)
    twice = [jobs for jobs in by_state.values() if len(jobs) > 1]
    told = (
        "prompts, splits, bootstrap draws and probes are drawn from the run's seed, weights are identified by hash, "
        "decoding is greedy"
    )
    trials = _trials(series)
    if not twice:
        facts = f"by design ({told}); not verified here, since no checkpoint was measured twice in these runs{trials}"
        return Check(question, "note", facts)
    worst, compared = 0.0, 0
    for jobs in twice:
        for name in _COMPARED:
            values = [job.run.value(name) for job in jobs]
            there = [value for value in values if value is not None]
            if len(there) > 1:
                worst, compared = max(worst, max(there) - min(there)), compared + 1
    facts = (
        f"{count(len(twice), 'set')} of equal weights measured more than once: the largest difference among "
        f"{count(compared, 'number')} is {number(worst)}{trials}"
    )
    return Check(question, "ok" if worst < 1e-6 else "fails", facts)


def _trials(series: Sequence[Series]) -> str:
    """Whether the study's repeated greedy generations wrote the same, where they were repeated."""
    shares = [row["agreeing"] for each in series for job in each.complete for row in responses(job)]
    if not shares:
        return ""
    same = sum(value == 1 for value in shares)
    return f"; of {len(shares)} answers generated the study's way, repeated trials wrote the same in {same}"


def _units(series: Sequence[Series]) -> Check:
    trained = len({(each.model, str(each.factors.get("seed")), each.organism.get("suite")) for each in series})
    facts = (
        f"{count(trained, 'training')}: intervals and p-values are over pairs, sequences or splits of this training, "
        "and say nothing of how often another training would do the same"
    )
    return Check("What is the unit?", "note" if trained == 1 else "ok", facts)
