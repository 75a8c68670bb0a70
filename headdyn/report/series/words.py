"""What a series of checkpoints says about emergence, in sentences from its verdict: the answer first, and none as none.

Units of a claim about one series are its pairs; of a claim about training, series are, so one series proves none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headdyn.core.numbers import count, fixed, listed, number, p_value, quantity
from headdyn.report.series.record import Series
from headdyn.sweep.words import Statement

EVEN_ODD = ("strength", "strength_nats")
_NAMES = {
    "strength": "strength (thresholded: share of pairs right)",
    "strength_nats": "strength of Δ (continuous, nats)",
    "seed_strength": "the study's own strength (one prompt)",
}
_STAGES = ("early", "mid", "late", "none")


def measure_name(name: str) -> str:
    """What a measure is called in a sentence."""
    return _NAMES.get(name) or quantity(name).label


def series_statements(series: Sequence[Series]) -> list[Statement]:
    """Every question that these series' verdicts answer, series by series."""
    found = []
    for each in series:
        alone = sum(other.group == each.group for other in series) == 1  # then the group says which series it is
        of = f" ({each.title})" if each.title and not (alone and each.group) else ""
        answers = [
            (f"Do even and odd heads specialise, and when?{of}", even_odd(each)),
            (f"Did what was measured emerge, and when?{of}", others(each)),
            (f"What becomes of the hypotheses H1 to H5?{of}", hypotheses(each)),
            (f"Is a head the same head at another checkpoint?{of}", heads(each)),
            (f"Which checkpoints count?{of}", counted(each)),
        ]
        found += [Statement(question, sentences, each.group) for question, sentences in answers if sentences]
    return found


def headline(series: Series) -> str:
    """One line for a reader who reads only one."""
    sentences = even_odd(series) or others(series) or counted(series)
    line = sentences[0].rstrip(":") + ("." if sentences[0].endswith(":") else "")
    if len(series.verdict["counted"]) < series.verdict["checkpoints"]:
        line += f" {counted(series)[0].rstrip(':')}."
    return line


def even_odd(series: Series) -> list[str]:
    """Whether even/odd is more than any split is, and when either measure of it emerges."""
    if "reason" in series.verdict:
        return [f"No verdict: {series.verdict['reason']}."] if series.of_prompts else []
    split, said = series.verdict["even_odd"], series.measures
    if "reason" in split:
        return [f"No verdict on even/odd: {split['reason']}."] if series.of_prompts else []
    emerged = [name for name in EVEN_ODD if name in said and said[name]["emerges_at_step"] is not None]
    null = _against_splits(split, len(series.counted))
    if not split["found"]:
        lead = f"Not beyond chance: {null}."
        if emerged:
            lead += (
                f" {listed([measure_name(name) for name in emerged])} does exceed its threshold, as some split would; "
                "that is no evidence of even/odd structure:"
            )
        else:
            lead += " No emergence of even/odd specialisation:"
    elif emerged:
        when = f"even/odd specialisation {_when(said[emerged[-1]])}, by {measure_name(emerged[-1])}"
        lead = f"Yes: {when}; {null}:"
    else:
        lead = f"Even/odd is beyond chance ({null}), but neither measure passes its threshold:"
    sentences = [_measure(name, said[name]) for name in EVEN_ODD if name in said]
    return [lead, *sentences, _strongest(split), *_agreement(series), *_capability(series), *_seed(series)]


def others(series: Series) -> list[str]:
    """Measures beside even/odd that the verdict was told to date, in the order they were asked for."""
    names = [name for name in series.measures if name not in (*EVEN_ODD, "seed_strength")]
    missing = [name for name in series.verdict.get("unmeasured", []) if name != "seed_strength"]
    gone = [f"Not measured at any checkpoint, so not dated: {listed(missing)}."] if missing else []
    if not names:
        return gone if series.verdict.get("reason") is None else []
    yes = [name for name in names if series.measures[name]["emerges_at_step"] is not None]
    no = [name for name in names if name not in yes]
    parts = [f"{measure_name(name)} {_when(series.measures[name])}" for name in yes]
    lead = "; ".join(parts) if parts else ""
    if no:
        lead += f"{'; ' if lead else ''}no emergence shown of {listed([measure_name(name) for name in no])}"
    return [f"{_upper(lead)}:", *(_measure(name, series.measures[name]) for name in names), *gone]


def hypotheses(series: Series) -> list[str]:
    """H1 to H5 by every measure; the details say on what evidence."""
    told = [name for name, said in series.measures.items() if name != "seed_strength" and "hypotheses" in said]
    if not told:
        return []
    leads, details = [], []
    for name in told:
        of = series.measures[name]["hypotheses"]
        leads.append(f"by {measure_name(name)}: " + ", ".join(f"{h} {one['verdict']}" for h, one in of.items()))
        evidence = dict.fromkeys(one["evidence"] for one in of.values())
        details.append(f"{_upper(measure_name(name))}: {'; '.join(evidence)}.")
    lead = _upper("; ".join(leads))
    if "hypotheses" in series.measures.get("seed_strength", ()):
        of = series.measures["seed_strength"]["hypotheses"]
        details.append(
            "By the study's own strength, which has one prompt and no null and decides nothing: "
            + ", ".join(f"{h} {one['verdict']}" for h, one in of.items())
            + "."
        )
    return [f"{lead}.", *details]


def heads(series: Series) -> list[str]:
    """How many heads are most like the head of their own index at the checkpoint before."""
    kept = series.verdict.get("heads", {})
    if "kept_to_next" not in kept:
        return []
    following = list(kept["kept_to_next"].values())
    low, high = fixed(100 * min(following), 0), fixed(100 * max(following), 0)
    span = f"{low} %" if low == high else f"{low} to {high} %"
    return [
        f"From one checkpoint to the next {span} of the heads are most like the head of their own index "
        f"(chance {fixed(100 * kept['chance'], 0)} %); an index names one function only where this is high."
    ]


def counted(series: Series) -> list[str]:
    """How many checkpoints count, and why the others do not."""
    verdict = series.verdict
    left_out = [f"{revision} excluded: {reason}" for revision, reason in verdict["excluded"].items()]
    left_out += [f"{revision} failed: {reason}" for revision, reason in verdict["failed"].items()]
    lead = f"{len(verdict['counted'])} of {count(verdict['checkpoints'], 'checkpoint')} count"
    if not left_out:
        return [f"{lead}; none was excluded and none failed."]
    return [f"{lead}:", *(f"{text}." for text in left_out)]


def interval(said: Mapping[str, Any]) -> str:
    """`(32 000, 64 000]`: the last checkpoint below and the first above; `by the first checkpoint` where none is."""
    if said["emerges_at_step"] is None:
        return "none"
    if said["emerges_after_step"] is None:
        return f"≤ {number(said['emerges_at_step'])}, the first checkpoint"
    return f"({number(said['emerges_after_step'])}, {number(said['emerges_at_step'])}]"


def stage(said: Mapping[str, Any]) -> str:
    """The class, with every other that the same interval allows."""
    others = [word for word in said["possible_classes"] if word != said["class"]]
    return said["class"] + (f", or {listed(others)}: the checkpoints lie too far apart to tell" if others else "")


def share(value: float | None) -> str:
    """A probability or a share in percent, without decimals unless it is small."""
    if value is None:
        return "–"
    return f"{fixed(100 * value, 1 if 0 < value < 0.1 else 0)} %"


def _against_splits(split: Mapping[str, Any], checkpoints: int) -> str:
    kind = f"all {number(split['splits'])}" if split["exact"] else f"{number(split['splits'])} sampled"
    p = p_value(split["p"])
    smallest = split["least_possible_p"]
    least = " (the least that so many splits can give)" if split["p"] <= 1.001 * smallest else ""
    if not least and smallest > 0.01:
        least = f" (so few splits can give no less than {p_value(smallest)})"
    return (
        f"among {kind} balanced splits of layer {split['layer']} even/odd at its most telling moment, step "
        f"{number(split['at_step'])}, has p {'' if p.startswith('<') else '= '}{p}, the maximum over "
        f"{count(checkpoints, 'checkpoint')} counted{least}"
    )


def _when(said: Mapping[str, Any]) -> str:
    low, high = said["emerges_after_share"], said["emerges_at_share"]
    since = (
        f"is there at the first checkpoint, step {number(said['emerges_at_step'])}"
        if said["emerges_after_step"] is None
        else f"emerges after step {number(said['emerges_after_step'])} and by step {number(said['emerges_at_step'])}"
    )
    return f"{since} ({'' if low is None else f'{share(low)} to '}{share(high)} of training: {stage(said)})"


def _measure(name: str, said: Mapping[str, Any]) -> str:
    """One measure's whole story: when, how surely, how suddenly, how steadily."""
    q = quantity(name)
    if said["emerges_at_step"] is None:
        last = fixed(q.scale * said["last"], q.places, signed=True)
        reason = said["none_reason"].replace("it never rises", "never")
        if name not in _NAMES:
            last += f" {q.of_differences} above chance"  # what is dated is the excess over the null
        return f"{_upper(measure_name(name))}: none, {reason}; at the last checkpoint {last}{_odds(said)}."
    text = f"{_upper(measure_name(name))}, {said['rule']}: {_when(said)}"
    if "emerges_at_step_95" in said:
        first, last = said["emerges_at_step_95"]
        text += f"; 95 % of bootstrap draws of the {count(said['n'], 'pair')} have the first step above within "
        text += f"{number(first)} to {number(last)}"
    text += _odds(said)
    if said["pace"] is not None:
        a, b = said["jump_steps"]
        sure = said.get("probabilities", {}).get(said["pace"])
        text += (
            f". {_upper(said['pace'])}{'' if sure is None else f' (probability {share(sure)})'}: steps {number(a)} to "
            f"{number(b)}, {share(said['jump_width_share'])} of training, hold {share(said['jump_share'])} of the rise"
        )
    turns = count(said["reversals"], "reversal")
    text += f"; {'monotone' if said['monotone'] else f'not monotone, {turns} beyond noise'}"
    if name not in EVEN_ODD and said["beyond_chance"]:
        text += f"; beyond chance, as {said['against_chance']}"
    if said.get("disappearances"):
        text += f"; falls below again {count(said['disappearances'], 'time')}"
    return text + "."


def _odds(said: Mapping[str, Any]) -> str:
    if "probabilities" not in said:
        return ""
    told = ", ".join(f"{word} {share(said['probabilities'][word])}" for word in _STAGES)
    return f". Class over bootstrap draws: {told}"


def _strongest(split: Mapping[str, Any]) -> str:
    if split["even_odd_is_strongest"]:
        return "A scan over all splits ranks even/odd first."
    heads = listed([str(head) for head in split["strongest_split"]])
    return f"A scan over the splits ranks heads {heads} first, not the even ones."


def _agreement(series: Series) -> list[str]:
    told = series.verdict.get("agreement", {})
    if "class" not in told or all(told.values()):
        return []
    differ = [
        {"class": "class", "pace": "pace", "emerges_at_step": "step"}[word] for word, same in told.items() if not same
    ]
    return [
        f"The two measures differ in {listed(differ)}: a jump of a thresholded score need not be one of Δ, and the "
        "continuous one is the safer guide."
    ]


def _capability(series: Series) -> list[str]:
    lost = [
        f"{quantity(metric).label} ({count(facts['disappearances'], 'time')})"
        for metric, facts in series.verdict.get("capability", {}).items()
        if facts["disappearances"]
    ]
    return [f"Right answers of over half the pairs come and go again: {listed(lost)}."] if lost else []


def _seed(series: Series) -> list[str]:
    said = series.measures.get("seed_strength")
    if said is None:
        return []
    where = "never exceeds 0.5" if said["emerges_at_step"] is None else f"exceeds 0.5 in {interval(said)}"
    return [f"Judged as the study did it, on one prompt and without a null, strength {where}."]


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
