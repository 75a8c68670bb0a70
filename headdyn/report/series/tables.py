"""The tables of a series: its verdict by measure, H1 to H5 beside the study's claims, what its checkpoints are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headdyn.core.numbers import ABSENT, count, fixed, number, p_value, quantity
from headdyn.report.series.record import Series
from headdyn.report.series.study import claims
from headdyn.report.series.words import interval, measure_name, share, stage

Said = Mapping[str, Any]


def verdict_table(series: Series) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """(measures, rows): a row for each thing that is said, a column for each measure."""
    said = series.measures
    rows: list[tuple[str, Callable[[str, Said], str]]] = [
        ("counts as emerged when", lambda _, m: m["rule"]),
        ("emergence: (last step below, first step above]", lambda _, m: interval(m)),
        ("as shares of training", _shares),
        ("first step above, 95 % of bootstrap draws", _ends),
        ("class", lambda _, m: stage(m)),
        *((f"probability of {word}", _probability(word)) for word in ("none", "early", "mid", "late")),
        ("pace", lambda _, m: m["pace"] or "none: nothing emerged"),
        ("probability of sudden", _probability("sudden")),
        ("largest interval: share of the rise", _jump),
        ("its width, share of training", lambda _, m: share(m.get("jump_width_share"))),
        ("monotone", lambda _, m: "yes" if m["monotone"] else f"no, {count(m['reversals'], 'reversal')} beyond noise"),
        ("highest; at the last checkpoint", _highest),
        ("beyond chance", _beyond),
        ("units", lambda _, m: ABSENT if m["n"] is None else f"{m['n']} pairs"),
    ]
    told = [(label, [of(n, m) for n, m in said.items()]) for label, of in rows]
    return [measure_name(name) for name in said], [row for row in told if set(row[1]) != {ABSENT}]


def hypothesis_table(series: Series) -> tuple[list[str], list[dict[str, Any]]]:
    """(measures, rows): each hypothesis with the study's claim, and verdict, probability and evidence by measure."""
    told = [name for name, said in series.measures.items() if "hypotheses" in said]
    if not told:
        return [], []
    rows = []
    for name, claim in claims().items():
        verdicts = []
        for measure in told:
            one = series.measures[measure]["hypotheses"][name]
            odds = f"probability {share(one['probability'])}" if "probability" in one else ""
            verdicts.append((one["verdict"], odds, one["evidence"]))
        statement = series.measures[told[0]]["hypotheses"][name]["statement"]
        rows.append({"name": name, "statement": statement, "claim": claim, "verdicts": verdicts})
    return [measure_name(name) for name in told], rows


def identity_rows(series: Series) -> list[dict[str, str]]:
    """What every checkpoint's weights are: by hash, commit and dtype, and whether it counts."""
    rows = []
    for row in series.rows:
        job = series.jobs.get(row["revision"])
        facts = {} if job is None else job.run.manifest.get("checkpoint", {})
        rows.append(
            {
                "revision": row["revision"],
                "step": ABSENT if row["step"] is None else number(row["step"]),
                "share": share(row["training_share"]),
                "counts": "yes" if row["counts"] else "no",
                "reason": row.get("reason") or "",
                "hash": (row.get("state_hash") or ABSENT)[:12],
                "commit": (facts.get("commit") or ABSENT)[:12],
                "dtype": facts.get("dtype") or ABSENT,
                "number": "" if job is None else str(job.number),
            }
        )
    return rows


def compared(series: Sequence[Series]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Several series side by side: where each measure emerged, and whether even/odd is beyond chance."""
    names = list(dict.fromkeys(name for each in series for name in each.measures))
    rows = []
    for each in series:
        cells = []
        for name in names:
            said = each.measures.get(name)
            cells.append(ABSENT if said is None else f"{interval(said)}, {said['class']}")
        split = each.verdict.get("even_odd", {})
        p = p_value(split.get("p"))
        rows.append((each.title or each.model, [*cells, p if "p" in split else ABSENT]))
    return [*(measure_name(name) for name in names), "p of even/odd over the trajectory"], rows


def _shares(_: str, said: Said) -> str:
    if said["emerges_at_share"] is None:
        return ABSENT
    low = said["emerges_after_share"]
    return f"{'0 %' if low is None else share(low)} to {share(said['emerges_at_share'])}"


def _ends(_: str, said: Said) -> str:
    if "emerges_at_step_95" in said:
        return " to ".join(number(step) for step in said["emerges_at_step_95"])
    return str(said.get("emerges_at_step_95_reason") or said.get("probabilities_reason") or ABSENT)


def _probability(word: str) -> Callable[[str, Said], str]:
    return lambda _, said: share(said.get("probabilities", {}).get(word))


def _jump(_: str, said: Said) -> str:
    if "jump_share" not in said:
        return "no rise"
    first, last = said["jump_steps"]
    return f"{share(said['jump_share'])}, steps {number(first)} to {number(last)}"


def _highest(name: str, said: Said) -> str:
    q = quantity(name)
    return "; ".join(fixed(q.scale * said[key], q.places, signed=True) for key in ("highest", "last"))


def _beyond(_: str, said: Said) -> str:
    word = {True: "yes", False: "not shown", None: "cannot be told"}[said["beyond_chance"]]
    return f"{word}: {said['against_chance']}"
