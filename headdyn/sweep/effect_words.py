"""What the factors of a sweep do, in sentences: effects, interactions and contrasts at matched loss.

The units are training runs (seeds): with one seed a sentence gives the value and says that there can be no interval.
A sentence says "effect" where q < 0.05, else that no effect of so much or more was detected, never that there is none;
so much is what as many seeds with this spread would reveal in four of five repetitions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headdyn.core.numbers import count, fixed, listed, p_value
from headdyn.core.records import Metric
from headdyn.sweep.effects import SLOPE, effect_name
from headdyn.sweep.factors import CHOICES, level_label

ALPHA = 0.05
ONE_SEED = "One seed, so no interval can be given: the unit of a claim about a factor is a training."

Row = Mapping[str, Any]
Metrics = Callable[[str], Metric]


def factor(name: str, effects: Sequence[Row], metric: Metrics) -> list[str]:
    """A factor's own effects: a sentence for each of its contrasts on the first outcome, then one for the others.

    Of a choice with control arms the contrast of its usual pair comes first.
    """
    rows = [row for row in effects if row["factors"] == [name]]
    pair = list(CHOICES[name].pair) if name in CHOICES else []
    names = {effect_name(row): row["levels"][name] == pair for row in rows}
    sentences: list[str] = []
    for contrast in sorted(names, key=lambda contrast: not names[contrast]):
        asked = [row for row in rows if effect_name(row) == contrast]
        averaged = any(len(row["factors"]) > 1 for row in effects)
        sentences += _on_outcomes(asked, _spelled_out(asked[0], name, averaged), metric, with_warning=not sentences)
    return sentences


def interactions(effects: Sequence[Row], simple: Sequence[Row], metric: Metrics) -> list[str]:
    """Interactions with q < 0.05. Of two factors each one's effect is told at both levels of the other."""
    rows = [row for row in effects if len(row["factors"]) > 1 and row["value"] is not None]
    if not rows:
        return []
    if all(row["n"] < 2 for row in rows):
        return [f"{ONE_SEED} The values are in the table of effects."]
    clear = [row for row in rows if is_effect(row)]
    outcomes = count(len({row["outcome"] for row in rows}), "outcome")
    head = f"{len(clear)} of {len(rows)} interactions on {outcomes} have q < {ALPHA:g} ({_seeds(rows)})."
    return [head, *(f"{effect_name(row)}: {effect(row, metric)}{_taken_apart(row, simple, metric)}." for row in clear)]


def matched(pairs: Sequence[Row], pooled: Sequence[Row], metric: Metrics) -> list[str]:
    """Topic-ordered against shuffled training at nearly equal held-out loss."""
    rows = [row for row in pooled if row.get("value") is not None]
    if not rows:
        return []
    apart = [abs(pair["loss_difference"]) for pair in pairs]
    contrast = "topic-ordered less shuffled training at the snapshots nearest in loss, averaged over pairs"
    return [
        *_on_outcomes(rows, contrast, metric),
        f"The two losses of a pair are {fixed(min(apart), 3)} to {fixed(max(apart), 3)} nats apart.",
    ]


def is_effect(row: Row) -> bool:
    """Whether a row counts as an effect. Rows of records made before every test had a q count by their interval."""
    if row.get("q") is not None:
        return bool(row["q"] < ALPHA)
    return row.get("ci_low") is not None and (row["ci_low"] > 0 or row["ci_high"] < 0)


def verdict(row: Row, metric: Metrics) -> str:
    """`Effect on topic selectivity: +3.1 [1.0, 5.2] points (…)`, or that none of so much or more was detected."""
    if is_effect(row):
        return f"Effect on {effect(row, metric)}"
    if row.get("detectable") is None:
        return f"No effect detected on {effect(row, metric)}"
    return f"No effect of {_detectable(row, metric)} or more detected on {effect(row, metric)}"


def effect(row: Row, metric: Metrics) -> str:
    """`topic selectivity −3.1 [−5.2, −1.0] points (p = 0.02, q = 0.05)`."""
    tests = [_test(name, row[name]) for name in ("p", "q") if row.get(name) is not None]
    label = metric(row["outcome"]).label
    return f"{label} {difference(row, metric)}" + (f" ({', '.join(tests)})" if tests else "")


def difference(row: Row, metric: Metrics) -> str:
    """`−0.19 [−0.26, −0.11] points`."""
    m = metric(row["outcome"])
    return f"{m.spelled(row, signed=True)} {m.of_differences}".rstrip()


def _on_outcomes(rows: Sequence[Row], contrast: str, metric: Metrics, *, with_warning: bool = True) -> list[str]:
    """One contrast on every outcome: a verdict on the first, the others listed by whether there is an effect."""
    present = [row for row in rows if row["value"] is not None]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["value"] is None:
            reasons.setdefault(row["reason"], []).append(metric(row["outcome"]).label)
    absent = [f"Absent for {listed(labels)}: {reason}." for reason, labels in reasons.items()]
    if not present:
        return absent
    if max(row["n"] for row in present) < 2:
        values = [f"{metric(row['outcome']).label} {difference(row, metric)}" for row in present]
        lead = f"{f'{ONE_SEED} ' if with_warning else ''}{_capital(contrast)}: {values[0]}."
        return [lead, *([f"Also {listed(values[1:])}."] if values[1:] else []), *absent]
    first, *others = present
    sentences = [f"{verdict(first, metric)}: {contrast}, {_seeds(present)}."]
    clear = [effect(row, metric) for row in others if is_effect(row)]
    if clear:
        sentences.append(f"Also an effect on {listed(clear)}.")
    rest = [f"{metric(row['outcome']).label} ({_missed(row, metric)})" for row in others if not is_effect(row)]
    if rest:
        sentences.append(f"No effect detected on {listed(rest)}.")
    return [*sentences, *absent]


def _missed(row: Row, metric: Metrics) -> str:
    """What an effect that was not detected came to, and what would have been detected."""
    limit = "" if row.get("detectable") is None else f"; {_detectable(row, metric)} would be detected"
    return f"{difference(row, metric)}{limit}"


def _detectable(row: Row, metric: Metrics) -> str:
    m = metric(row["outcome"])
    two_digits = float(f"{m.scale * row['detectable']:.2g}")
    return f"{two_digits:g} {m.of_differences}".rstrip()


def _taken_apart(row: Row, simple: Sequence[Row], metric: Metrics) -> str:
    """`; topic order −0.37 [−0.50, −0.24] points (…) in RoPE runs and …`, for an interaction of two factors."""
    if len(row["factors"]) != 2:
        return ""
    parts = []
    for name, other in (row["factors"], row["factors"][::-1]):
        for candidate in simple:
            held = candidate["held"].get(other)
            if (
                (candidate["group"], candidate["outcome"]) == (row["group"], row["outcome"])
                and candidate["levels"] == {name: row["levels"][name]}
                and held in row["levels"][other]
                and candidate["value"] is not None
            ):
                q = "" if candidate.get("q") is None else f" ({_test('q', candidate['q'])})"
                what = effect_name({**candidate, "held": {}})
                parts.append(f"{what} {difference(candidate, metric)}{q} in {level_label(other, held)} runs")
    return f"; {listed(parts)}" if parts else ""


def _spelled_out(row: Row, name: str, averaged: bool) -> str:
    """What is compared: `DroPE less RoPE, averaged over the other factors`."""
    if row.get("kind") == SLOPE:
        contrast = f"change with {effect_name(row)}"
    else:
        low, high = (level_label(name, level) for level in row["levels"][name])
        contrast = f"{high} less {low}"
    return f"{contrast}, averaged over the other factors" if averaged else contrast


def _seeds(rows: Sequence[Row]) -> str:
    return count(max(row["n"] for row in rows), "seed")


def _test(name: str, value: float) -> str:
    text = p_value(value)
    return f"{name} {text}" if text.startswith("<") else f"{name} = {text}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
