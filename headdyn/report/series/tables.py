"""The tables of a series: what is said of each measure, which weights its checkpoints have, several series compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headdyn.core.numbers import ABSENT, count, fixed, number, p_value
from headdyn.core.records import Metric
from headdyn.report.series.record import Series
from headdyn.report.series.words import STAGES, halves, interval, share, stage

CHECKPOINT_COLUMNS = (
    *("revision", "step", "of training", "counts", "weights' hash\nSHA-256, first 12 digits", "commit", "dtype"),
    "why it does not count",
)
Judgement = Mapping[str, Any]


def verdict_table(series: Series) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """(measures, rows): a column a measure; a row whose cells are all absent is left out."""
    columns = [(series.metric(name), judgement) for name, judgement in series.measures.items()]
    rows = {
        "counts as emerged when": [j["rule"] for _, j in columns],
        "emergence: (last step below, first step above]": [interval(j) for _, j in columns],
        "as shares of training": [_shares(j) for _, j in columns],
        "first step above, 95 % of bootstrap draws": [_ends(j) for _, j in columns],
        "class": [stage(j) for _, j in columns],
        "class over bootstrap draws": [_probabilities(j) for _, j in columns],
        "pace": [_pace(j) for _, j in columns],
        "largest interval: share of the rise": [_jump(j) for _, j in columns],
        "monotone": [_monotone(j) for _, j in columns],
        "highest; at the last checkpoint": [_highest(metric, j) for metric, j in columns],
        "beyond chance": [_beyond(j) for _, j in columns],
        "units": [ABSENT if j["n"] is None else count(j["n"], "pair") for _, j in columns],
    }
    headings = [f"{metric.label} ({metric.unit})" if metric.unit else metric.label for metric, _ in columns]
    return headings, [(label, cells) for label, cells in rows.items() if set(cells) != {ABSENT}]


def checkpoint_rows(series: Series) -> list[list[str]]:
    """What every checkpoint's weights are, and whether it counts; cells as in CHECKPOINT_COLUMNS."""
    rows = []
    for row in series.rows:
        job = series.jobs.get(row["revision"])
        facts = {} if job is None else job.run.manifest.get("checkpoint", {})
        rows.append(
            [
                row["revision"],
                ABSENT if row["step"] is None else number(row["step"]),
                share(row["training_share"]),
                "yes" if row["counts"] else "no",
                (row.get("state_hash") or ABSENT)[:12],
                (facts.get("commit") or ABSENT)[:12],
                facts.get("dtype") or ABSENT,
                row.get("reason") or "",
            ]
        )
    return rows


def compared(series: Sequence[Series]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Several series side by side: where each measure emerged, and whether the split is beyond chance."""
    labels = {name: each.metric(name).label for each in series for name in each.measures}
    rows = []
    for each in series:
        judged = [each.measures.get(name) for name in labels]
        cells = [
            ABSENT if judgement is None else f"{interval(judgement)}, {judgement['class']}" for judgement in judged
        ]
        rows.append((each.title or each.model, [*cells, p_value(each.split.get("p"))]))
    return [*labels.values(), f"p of {'/'.join(halves(series[0]))} over the trajectory"], rows


def _shares(judgement: Judgement) -> str:
    if judgement["emerges_at_share"] is None:
        return ABSENT
    low = judgement["emerges_after_share"]
    return f"{'0 %' if low is None else share(low)} to {share(judgement['emerges_at_share'])}"


def _ends(judgement: Judgement) -> str:
    if "emerges_at_step_95" in judgement:
        return " to ".join(number(step) for step in judgement["emerges_at_step_95"])
    return str(judgement.get("emerges_at_step_95_reason") or judgement.get("probabilities_reason") or ABSENT)


def _probabilities(judgement: Judgement) -> str:
    odds = judgement.get("probabilities")
    return ABSENT if odds is None else ", ".join(f"{word} {share(odds[word])}" for word in STAGES)


def _pace(judgement: Judgement) -> str:
    if judgement["pace"] is None:
        return "none: nothing emerged"
    odds = judgement.get("probabilities", {}).get(judgement["pace"])
    return judgement["pace"] + ("" if odds is None else f" (probability {share(odds)})")


def _jump(judgement: Judgement) -> str:
    if "jump_share" not in judgement:
        return "no rise"
    first, last = judgement["jump_steps"]
    width = share(judgement["jump_width_share"])
    return f"{share(judgement['jump_share'])}, steps {number(first)} to {number(last)} ({width} of training)"


def _monotone(judgement: Judgement) -> str:
    return "yes" if judgement["monotone"] else f"no, {count(judgement['reversals'], 'reversal')} beyond noise"


def _highest(metric: Metric, judgement: Judgement) -> str:
    ends = (fixed(metric.scale * judgement[key], metric.digits, signed=True) for key in ("highest", "last"))
    return "; ".join(ends)


def _beyond(judgement: Judgement) -> str:
    word = {True: "yes", False: "not shown", None: "cannot be told"}[judgement["beyond_chance"]]
    return f"{word}: {judgement['against_chance']}"
