"""Sentences on what the factors of a sweep do: effects, interactions and contrasts at matched loss.

The units are trainings (seeds); with one seed a sentence gives the value and says that there can be no interval. A
sentence says "effect" if q < 0.05. Otherwise it says that no effect of x or more was detected, and never that there is
none; x is the smallest effect that would be detected in four of five repetitions with as many seeds and this spread.
Where only the interval excludes 0, a sentence says that no effect was found after correction for all outcomes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headdyn.core.numbers import capital, count, fixed, listed, p_is
from headdyn.core.records import Metric
from headdyn.sweep.effects import ALPHA, effect_name
from headdyn.sweep.factors import CHOICES, level_label
from headdyn.sweep.matched_loss import compared

ONE_SEED = "One seed, so no interval can be given: the unit of a claim about a factor is a training."

Row = Mapping[str, Any]
Metrics = Callable[[str], Metric]


def without_warning(sentences: Sequence[str]) -> list[str]:
    """The sentences without ONE_SEED, which stands before them once."""
    return [sentence.replace(f"{ONE_SEED} ", "") for sentence in sentences]


def factor(name: str, effects: Sequence[Row], metric: Metrics) -> list[str]:
    """A factor's own effects, contrast by contrast: a sentence for the first outcome, a list for the others.

    If a choice has control arms, the contrast of its usual pair comes first.
    """
    usual = list(CHOICES[name].pair) if name in CHOICES else []
    by_contrast: dict[str, list[Row]] = {}
    for row in sorted(effects, key=lambda row: row["levels"].get(name) != usual):
        if row["factors"] == [name]:
            by_contrast.setdefault(effect_name(row), []).append(row)
    over_others = ", averaged over the other factors" if any(len(row["factors"]) > 1 for row in effects) else ""
    sentences: list[str] = []
    for contrast, rows in by_contrast.items():
        difference_text = f"the change with {contrast}"
        if not rows[0].get("against"):
            low, high = (level_label(name, level) for level in rows[0]["levels"][name])
            difference_text = f"{high} less {low}"
        answer = _on_outcomes(rows, difference_text, over_others, metric)
        sentences += without_warning(answer) if sentences else answer
    return sentences


def interactions(effects: Sequence[Row], simple: Sequence[Row], metric: Metrics) -> list[str]:
    """The interactions with q < 0.05. For two factors, each one's effect is also given at both levels of the other."""
    rows = [row for row in effects if len(row["factors"]) > 1 and row["value"] is not None]
    if not rows:
        return []
    if all(row["n"] < 2 for row in rows):
        return [f"{ONE_SEED} The values are in the table of effects."]
    clear = [row for row in rows if is_effect(row)]
    outcomes = count(len({row["outcome"] for row in rows}), "outcome")
    head = f"{len(clear)} of {len(rows)} interactions on {outcomes} have q < {ALPHA:g} ({_seeds(rows)})."
    rest = [row for row in rows if not is_effect(row) and row["outcome"] == rows[0]["outcome"]]
    if rest and all(detectable(row, metric(row["outcome"])) for row in rest):
        m = metric(rest[0]["outcome"])
        bound = detectable(max(rest, key=lambda row: row["detectable"]), m)
        head += f" On {m.label} each of {bound} or more would be detected."
    return [head, *(f"{effect_name(row)}: {effect(row, metric)}{_taken_apart(row, simple, metric)}." for row in clear)]


def matched(name: str, pairs: Sequence[Row], pooled: Sequence[Row], metric: Metrics) -> list[str]:
    """The contrast of a factor's pair of levels at equal held-out loss (in earlier records at nearly equal losses)."""
    rows = [row for row in pooled if compared(row) == name and row.get("value") is not None]
    if not rows:
        return []
    loss_gaps = [abs(pair["loss_difference"]) for pair in pairs if compared(pair) == name]
    low, high = (level_label(name, level) for level in CHOICES[name].pair)
    if max(loss_gaps) < 1e-6:
        closest = "One arm of each pair is taken at its end, the other between the two snapshots around that loss."
        contrast = f"{high} less {low} at equal loss"
    else:
        closest = f"The two losses of a pair are {fixed(min(loss_gaps), 3)} to {fixed(max(loss_gaps), 3)} nats apart."
        contrast = f"{high} less {low} at the snapshots nearest in loss"
    return [*_on_outcomes(rows, contrast, ", averaged over pairs", metric), closest]


def is_effect(row: Row) -> bool:
    """Whether a row counts as an effect: by q < 0.05, or in earlier records, which lack q, by an interval without 0."""
    return _excludes_0(row) if row.get("q") is None else bool(row["q"] < ALPHA)


def _excludes_0(row: Row) -> bool:
    return row.get("ci_low") is not None and (row["ci_low"] > 0 or row["ci_high"] < 0)


def verdict(row: Row, metric: Metrics) -> str:
    """`Effect on topic selectivity`, or `No effect of 5 points or more on topic selectivity detected`."""
    m = metric(row["outcome"])
    if is_effect(row):
        return f"Effect on {m.label}"
    bound = detectable(row, m)
    limit = f" of {bound} or more" if bound else ""
    end = "found after correction for all outcomes" if _excludes_0(row) else "detected"
    return f"No effect{limit} on {m.label} {end}"


def effect(row: Row, metric: Metrics) -> str:
    """`topic selectivity −3.1 [−5.2, −1.0] points (p = 0.02, q = 0.05)`."""
    return f"{metric(row['outcome']).label} {_tested(row, metric)}"


def _tested(row: Row, metric: Metrics) -> str:
    tests = ", ".join(p_is(row[name], name) for name in ("p", "q") if row.get(name) is not None)
    return difference(row, metric) + (f" ({tests})" if tests else "")


def difference(row: Row, metric: Metrics) -> str:
    """`−0.19 [−0.26, −0.11] points`."""
    m = metric(row["outcome"])
    return f"{m.spelled(row, signed=True)} {m.of_differences}".rstrip()


def _on_outcomes(rows: Sequence[Row], contrast: str, averaged: str, metric: Metrics) -> list[str]:
    """Sentences on one contrast: a verdict on the first outcome, then lists of the others with and without effects."""
    present = [row for row in rows if row["value"] is not None]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["value"] is None:
            reasons.setdefault(row["reason"], []).append(metric(row["outcome"]).label)
    absent = [
        f"{capital(contrast)}{averaged}{',' if averaged else ''} is absent for "
        f"{'every outcome' if len(labels) == len(rows) > 1 else listed(labels)}: {reason}."
        for reason, labels in reasons.items()
    ]
    if not present:
        return absent
    first, *others = present
    if max(row["n"] for row in present) < 2:
        lead = f"{ONE_SEED} {capital(contrast)}{averaged}: {effect(first, metric)}."
        return [lead, *([f"Also {listed([effect(row, metric) for row in others])}."] if others else []), *absent]
    sentences = [f"{verdict(first, metric)}: {contrast} is {_tested(first, metric)}{averaged}, {_seeds(present)}."]
    if clear := [effect(row, metric) for row in others if is_effect(row)]:
        sentences.append(f"Also an effect on {listed(clear)}.")
    if rest := [_undetected(row, metric) for row in others if not is_effect(row)]:
        sentences.append(f"No effect detected on {listed(rest)}.")
    return [*sentences, *absent]


def _undetected(row: Row, metric: Metrics) -> str:
    """`held-out loss (+0.01 [−0.02, +0.04] nats; 0.05 nats would be detected)`."""
    m = metric(row["outcome"])
    return f"{m.label} ({difference(row, metric)}{would_be_detected(row, m, '; {}')})"


def detectable(row: Row, m: Metric, decimals: int | None = None) -> str:
    """`0.5 points`: `detectable_size` with its unit, or ""."""
    size = detectable_size(row, m, decimals)
    return f"{size} {m.of_differences}".rstrip() if size else ""


def detectable_size(row: Row, m: Metric, decimals: int | None = None) -> str:
    """`0.5`: the smallest effect that would be found in four of five repetitions (sweep/effects.py, with_q).

    It has two significant digits, or `decimals` decimals. Empty if the row is an effect, or if there is only one seed.
    """
    if row.get("detectable") is None or is_effect(row):
        return ""
    smallest = m.scale * row["detectable"]
    return f"{float(f'{smallest:.2g}'):g}" if decimals is None else fixed(smallest, decimals)


def would_be_detected(
    row: Row, m: Metric, form: str = " ({})", decimals: int | None = None, family: str = "all outcomes"
) -> str:
    """` (0.5 points would be detected)`, to follow the name of what was not detected; "" where `detectable` is empty.

    Where only the interval excludes 0, ` (not found after correction for all outcomes; 0.5 points would be detected)`.
    """
    bound = detectable(row, m, decimals)
    corrected = f"not found after correction for {family}; " if _excludes_0(row) else ""
    return form.format(f"{corrected}{bound} would be detected") if bound else ""


def _taken_apart(row: Row, simple: Sequence[Row], metric: Metrics) -> str:
    """`; topic order in RoPE runs −0.37 [−0.50, −0.24] points (q = 0.01) and …`, for an interaction of two factors."""
    m = metric(row["outcome"])
    parts = [
        f"{effect_name(part)} {difference(part, metric)}"
        + (f" ({p_is(part['q'], 'q')}{would_be_detected(part, m, '; {}')})" if part["q"] is not None else "")
        for part in simple
        if len(row["factors"]) == 2
        and part["value"] is not None
        and all(part[key] == row[key] for key in ("group", "outcome"))
        and all(row["levels"].get(name) == levels for name, levels in part["levels"].items())
        and all(level in row["levels"].get(name, ()) for name, level in part["held"].items())
    ]
    return f"; {listed(parts)}" if parts else ""


def _seeds(rows: Sequence[Row]) -> str:
    return count(max(row["n"] for row in rows), "seed")
