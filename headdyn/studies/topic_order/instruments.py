"""The effect of topic order on heads by several instruments: raw attention, rollout, TensorLens and probes."""

from collections.abc import Sequence

from headdyn.core.numbers import count, fixed, listed, spelled
from headdyn.report.sections.patterns import head_metrics, metrics_of_roles
from headdyn.studies.topic_order import retention
from headdyn.sweep.effect_words import ONE_SEED, Metrics, Row, difference, is_effect, would_be_detected
from headdyn.sweep.effects import ALPHA, factor_effects
from headdyn.sweep.factors import level_label
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.words import Statement

_RECORDS = {
    "corrected": "eight seeds in experiments/matrix/README.md",
    "original": "three seeds in experiments/matrix_original/README.md",
}
_QUESTIONS = {
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
# By metric, the instrument whose selectivity the metric subtracts from TensorLens' on the same sequences.
_PAIRED = {
    "tensorlens_less_raw_no_self": "raw attention",
    "tensorlens_less_rollout_no_self": "attention rollout",
}


def headlines(sweep: SweepRecord) -> list[Statement]:
    """The effect of the ordering with RoPE and after DroPE, group by group."""
    statements = []
    for group, jobs in sweep.groups.items():
        paired = factor_effects([job.run for job in jobs], swept=sweep.swept, outcomes=list(_PAIRED))
        effects = [row for row in (*sweep.effects, *sweep.simple_effects) if row["group"] == group] + paired
        for position, question in _QUESTIONS.items():
            if sentences := by_instruments(jobs, position, effects):
                statements.append(Statement(question, sentences, group))
    return [*statements, *retention.headlines(sweep), *_on_record(sweep)]


def _on_record(sweep: SweepRecord) -> list[Statement]:
    """Where the results of more seeds are, for the page of a matrix of one seed, which can show no effect."""
    seeds = {job.factors.get("seed") for job in sweep.complete}
    arms = sorted({str(job.factors.get("protocol")) for job in sweep.complete})
    presets = {(job.factors.get("experiment"), job.factors.get("mode")) for job in sweep.complete}
    if len(seeds) != 1 or presets != {("matrix", "laptop")} or not set(arms) <= _RECORDS.keys():
        return []
    records = listed([_RECORDS[arm] for arm in arms])
    sentence = f"On record, with intervals and the smallest effects that could have been seen: {records}."
    return [Statement("What do several seeds of this matrix show?", [sentence])]


def by_instruments(jobs: Sequence[Job], position: str, effects: Sequence[Row]) -> list[str]:
    """Sentences on the ordering's effect under one position encoding by each instrument, then each arm's own values.

    `effects` are the group's rows, simple effects among them. Where TensorLens was run, raw attention is measured like
    TensorLens and rollout: on the same sequences, without the query's own position.
    """
    arms = [job for job in jobs if job.factors.get("position_enc") == position]
    if not {job.factors.get("data_ordering") for job in arms} >= {"shuffled", "topic"}:
        return []
    where = {"position_enc": position} if len(arms) < len(jobs) else {}
    row_of = {r["outcome"]: r for r in effects if r["factors"] == ["data_ordering"] and r.get("held", {}) == where}
    recorded = {name for job in arms for name in job.run.scalars}
    without_self = "raw_selectivity_no_self" in recorded
    details, rows = [], []
    for outcome, instrument in _INSTRUMENTS.items():
        if outcome not in recorded or (without_self and outcome == "selectivity"):
            continue
        row = row_of.get(outcome)
        if row is None:
            reasons = dict.fromkeys(reason for job in arms if (reason := job.scalar(outcome).get("reason")))
            row = {"value": None, "reason": listed(list(reasons)) or "it is no outcome of this sweep"}
        if row["value"] is None:
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
    arm = f"{'After' if position == 'drope' else 'With'} {level_label('position_enc', position)}"
    head = f"{arm}, topic-ordered training differs from shuffled {differences}"
    details = [*_compared([row_of[name] for name in _PAIRED if name in row_of], metric), *details]
    if without_self:
        details.insert(0, "Selectivities leave out attention to the query's own position.")
    if seeds < 2:
        return [f"{ONE_SEED} {head}.", *details]
    clear = [_INSTRUMENTS[row["outcome"]] for row in rows if is_effect(row)]
    rest = [
        _INSTRUMENTS[row["outcome"]] + would_be_detected(row, metric(row["outcome"]))
        for row in rows
        if not is_effect(row)
    ]
    parts = [f"An effect by {listed(clear)} (q < {ALPHA:g})"] if clear else []
    parts += [f"{'none' if clear else 'No effect'} detected by {listed(rest)}"] if rest else []
    return [f"{', '.join(parts)}. {head}; {count(seeds, 'seed')}.", *details]


def _compared(rows: Sequence[Row], metric: Metrics) -> list[str]:
    """Sentences on whether two instruments see the same effect, by their difference within every seed."""
    sentences = []
    for row in (row for row in rows if row["value"] is not None and row["n"] > 1):
        bound = would_be_detected(row, metric(row["outcome"]))
        words = "they differ" if is_effect(row) else f"no difference detected{bound}"
        other = _PAIRED[row["outcome"]]
        sentences.append(f"TensorLens' effect less that of {other}, seed by seed: {difference(row, metric)}, {words}.")
    return sentences


def _arm(job: Job, outcome: str, jobs: Sequence[Job]) -> str:
    """One arm's value with its baseline and ceiling and, after a drop of positions, the value before the drop."""
    scalar, metric = job.scalar(outcome), job.metric(outcome)
    text = f"{job.label} {spelled(scalar, scale=metric.scale)} {metric.unit}"
    if _INSTRUMENTS[outcome] == "raw attention":
        name = metrics_of_roles(head_metrics(job.heads)).get("most topic-selective", "selectivity")
        rows = [row for row in job.heads.where(metric=name).rows() if row["head"] is not None and row["q"] is not None]
        if rows:
            selective = sum(row["q"] < 0.05 and row["value"] > 0 for row in rows)
            by = "" if name == "selectivity" else f" in {job.metric(name).label}"
            text += f", {selective} of {len(rows)} heads above 0{by} at q < 0.05"
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
