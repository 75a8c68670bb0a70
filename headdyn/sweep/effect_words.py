"""What the factors of a sweep do, in sentences: effects, interactions and contrasts at matched loss.

The units are training runs (seeds): with one seed a sentence gives the value and says that there can be no interval.
Where an interval holds 0 it says that no effect was detected, never that there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from headdyn.core.numbers import count, fixed, level, listed, p_value, quantity
from headdyn.sweep.effects import effect_name, simple_effect
from headdyn.sweep.factors import FACTORS
from headdyn.sweep.record import Job

ABOUT_HEADS = ("selectivity", "within_ratio", "probe_accuracy_middle")
ONE_SEED = "One seed, so no interval can be given: the unit of a claim about a factor is a training."
_CONTRASTS = {
    "data_ordering": "Topic-ordered less shuffled training",
    "attention": "GQA less MHA",
    "position_enc": "DroPE less RoPE",
}

Row = Mapping[str, Any]


def factor(name: str, effects: Sequence[Row]) -> list[str]:
    """A factor's main effects on what heads and residual stream know of topics, and on the loss."""
    rows = {
        row["outcome"]: row
        for row in effects
        if row["factors"] == [name] and row["levels"][name] == list(FACTORS[name])
    }
    told = [rows[outcome] for outcome in (*ABOUT_HEADS, "loss_nats") if outcome in rows]
    there = [row for row in told if row["value"] is not None]
    if not told:
        return []
    sentences = _answer(there, f"{_CONTRASTS[name]}, averaged over the other factors")
    reasons: dict[str, list[str]] = {}
    for row in told:
        if row["value"] is None:
            reasons.setdefault(row["reason"], []).append(outcome_name(row["outcome"]))
    sentences += [f"Absent for {listed(names)}: {reason}." for reason, names in reasons.items()]
    if name == "position_enc" and there:
        sentences += _against_control(effects)
    return sentences


def interactions(effects: Sequence[Row], jobs: Sequence[Job]) -> list[str]:
    """Interactions of the factors on topic selectivity, within ratio and probes: those whose interval excludes 0.

    Of two factors that interact, each one's effect is told at both levels of the other: their average is neither's.
    """
    rows = [
        row
        for row in effects
        if len(row["factors"]) > 1
        and row["outcome"] in ABOUT_HEADS
        and row["value"] is not None
        and all(row["levels"][name] == list(FACTORS[name]) for name in row["factors"])
    ]
    if not rows:
        return []
    if all(row["n"] < 2 for row in rows):
        return [f"{ONE_SEED} The values are in the table of effects."]
    clear = [row for row in rows if _excludes_zero(row)]
    outcomes = listed([outcome_name(outcome) for outcome in ABOUT_HEADS if any(r["outcome"] == outcome for r in rows)])
    kept = sum(row.get("q") is not None and row["q"] < 0.05 for row in clear)
    head = (
        f"{len(clear)} of {len(rows)} interactions on {outcomes} have an interval that excludes 0 "
        f"({count(max(row['n'] for row in rows), 'seed')}), {kept} of them with q < 0.05."
    )
    return [head, *(f"{effect_name(row)}, {_effect(row)}{_simple(row, jobs)}." for row in clear)]


def _simple(row: Row, jobs: Sequence[Job]) -> str:
    """`; topic order −0.37 [−0.50, −0.24] points in RoPE runs and …`, for an interaction of two factors."""
    if len(row["factors"]) != 2:
        return ""
    parts = []
    for factor, other in (row["factors"], row["factors"][::-1]):
        for held in FACTORS[other]:
            runs = [job.run for job in jobs if job.factors.get(other) == held]
            found = simple_effect(runs, factor, row["outcome"])
            if found is not None and found["value"] is not None:
                told = difference({**found, "outcome": row["outcome"]})
                parts.append(
                    f"{effect_name({'factors': [factor], 'levels': row['levels']})} {told} in {level(held)} runs"
                )
    return f"; {listed(parts)}" if parts else ""


def matched(pairs: Sequence[Row], pooled: Sequence[Row]) -> list[str]:
    """Topic-ordered against shuffled training at nearly equal held-out loss."""
    told = {row["outcome"]: row for row in pooled}
    rows = [told[outcome] for outcome in ABOUT_HEADS if outcome in told and told[outcome].get("value") is not None]
    if not rows:
        return []
    apart = [abs(pair["loss_difference"]) for pair in pairs]
    sentences = _answer(
        rows, "At the snapshots nearest in loss, topic-ordered less shuffled training, averaged over pairs"
    )
    return [*sentences, f"The two losses of a pair are {fixed(min(apart), 3)} to {fixed(max(apart), 3)} nats apart."]


def _answer(rows: Sequence[Row], contrast: str) -> list[str]:
    """Effects on several outcomes: one sentence where there is one seed, else a verdict and a sentence each."""
    if not rows:
        return []
    seeds = max(row["n"] for row in rows)
    if seeds < 2:
        values = ", ".join(f"{outcome_name(row['outcome'])} {difference(row)}" for row in rows)
        return [f"{ONE_SEED} {contrast}: {values}."]
    return [f"{verdict(rows)} {contrast}, {count(seeds, 'seed')}:", *(f"{_effect(row)}." for row in rows)]


def _against_control(effects: Sequence[Row]) -> list[str]:
    """DroPE against RoPE that trained on for as long, or that this sweep has no such arm."""
    rows = [
        row
        for row in effects
        if row["factors"] == ["position_enc"]
        and row["levels"]["position_enc"] == ["rope_control", "drope"]
        and row["outcome"] in ABOUT_HEADS
        and row["value"] is not None
    ]
    if not rows:
        return [
            "DroPE arms also trained a little longer than RoPE arms; position_enc=rope_control, which is not in this "
            "sweep, would tell the two apart."
        ]
    return [f"Against RoPE with the same extra training, {_effect(row)}." for row in rows]


def verdict(rows: Iterable[Row], names: Mapping[str, str] | None = None) -> str:
    """`The interval excludes 0 for …; no effect detected on …, whose interval holds 0`; `names` of other outcomes."""
    told = [(row, (names or {}).get(row["outcome"]) or outcome_name(row["outcome"])) for row in rows]
    clear = [name for row, name in told if _excludes_zero(row)]
    rest = [name for row, name in told if not _excludes_zero(row)]
    parts = [f"The interval excludes 0 for {listed(clear)}."] if clear else []
    if rest:
        parts.append(f"No effect detected on {listed(rest)}: the interval holds 0.")
    return " ".join(parts)


def _excludes_zero(row: Row) -> bool:
    return row.get("ci_low") is not None and (row["ci_low"] > 0 or row["ci_high"] < 0)


def _effect(row: Row) -> str:
    """`topic selectivity −3.1 [−5.2, −1.0] points (p = 0.02, q = 0.05)`."""
    tests = [_test(name, row[name]) for name in ("p", "q") if row.get(name) is not None]
    return f"{outcome_name(row['outcome'])} {difference(row)}" + (f" ({', '.join(tests)})" if tests else "")


def _test(name: str, value: float) -> str:
    text = p_value(value)
    return f"{name} {text}" if text.startswith("<") else f"{name} = {text}"


def difference(row: Row) -> str:
    """`−0.19 [−0.26, −0.11] points`."""
    q = quantity(row["outcome"])
    return f"{q.spelled(row, signed=True)} {q.of_differences}"


def outcome_name(outcome: str) -> str:
    """What a reader calls it: `topic selectivity`."""
    return quantity(outcome).label
