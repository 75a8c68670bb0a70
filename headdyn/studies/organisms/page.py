"""Checks of a suite's verdict against the truth that is known by construction."""

from headdyn.core.numbers import count, listed, number, p_value, spelled
from headdyn.report.sections.quality import Check
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_record import Series, read_series
from headdyn.sweep.series_words import halves


def checks(sweep: SweepRecord) -> list[Check]:
    """Whether the planted structure is found, and dated where planting began."""
    results = []
    for each in read_series(sweep):
        if each.truth:
            title = f" ({each.title})" if each.title else ""
            results += [Check(c.question + title, c.verdict, c.facts) for c in (_final(each), *_onset(each))]
    return results


def _final(series: Series) -> Check:
    question, truth, split = "Does the final checkpoint show the known result?", series.truth, series.split
    end = [row for row in series.rows if row["step"] is not None][-1]
    if not end["counts"]:
        return Check(question, "note", f"the last checkpoint, {end['revision']}, does not count: {end['reason']}")
    if "found" not in split:
        return Check(question, "note", f"no verdict: {split['reason']}")
    is_planted, detected, name = truth["organism"] == "planted", split["found"], "/".join(halves(series))
    planted = "nothing is planted"
    if truth["heads"]:
        heads = listed([str(head) for head in truth["heads"]])
        planted = f"the choice is planted into heads {heads} of layer {truth['layer']}"
    strength = spelled(series.complete[-1].scalar("strength"), signed=True)
    facts = (
        f"organism {truth['organism']}: {planted}, so {name} must {'' if is_planted else 'not '}be found; it was "
        f"{'' if detected else 'not '}found (p {p_value(split['p'])}), and {end['revision']} has strength {strength}"
    )
    return Check(question, "ok" if detected == is_planted else "fails", facts)


def _onset(series: Series) -> list[Check]:
    """Whether emergence was dated within one checkpoint interval of the step at which planting began."""
    onset = series.truth.get("onset")
    if not onset or series.truth["organism"] != "planted":
        return []
    question = "Is the onset dated where planting began?"
    judgement = series.measures.get("strength_nats", {})
    known = f"planting began at step {number(round(onset['step']))}"
    steps = [row["step"] for row in series.counted]
    if not steps or steps[-1] <= onset["step"]:
        return [Check(question, "note", f"{known}; no checkpoint after it counts")]
    if judgement.get("emerges_at_step") is None:
        return [Check(question, "fails", f"{known}; no emergence was found")]
    true_place, dated_place = sum(step <= onset["step"] for step in steps), steps.index(judgement["emerges_at_step"])
    after = judgement["emerges_after_step"]
    facts = (
        f"{known}; strength of Δ emerges in ({'' if after is None else number(after)}, "
        f"{number(judgement['emerges_at_step'])}], {count(abs(dated_place - true_place), 'checkpoint interval')} off"
    )
    return [Check(question, "ok" if abs(dated_place - true_place) <= 1 else "fails", facts)]
