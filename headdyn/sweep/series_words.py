"""Sentences about emergence in a series of checkpoints, from its verdict; the answer comes first.

Claims about one series rest on its pairs or sequences; a claim about training needs several trainings.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from headdyn.core.numbers import capital, count, fixed, listed, number, p_is, p_value
from headdyn.sweep.series_record import Series
from headdyn.sweep.words import Statement

SPLITS = "splits.parquet"  # in the folder of a run on prompts: all splits of the heads
STAGES = ("early", "mid", "late", "none")
_ALIKE = 0.5  # the least correlation of two heads' profiles at which one is said to do what the other did


def series_statements(series: Sequence[Series]) -> list[Statement]:
    """Every question that these series' verdicts answer, series by series."""
    statements = []
    for one in series:
        answers = {
            f"Do {' and '.join(halves(one))} heads specialise, and when?": split_answer(one),
            "Did the measures emerge, and when?": other_measures(one),
            "What emerged first?": order(one),
            "Is a head the same head at another checkpoint?": heads(one),
            "Which checkpoints count?": counted(one),
        }
        statements += [statement(one, series, *answer) for answer in answers.items() if answer[1]]
    return statements


def statement(one: Series, series: Sequence[Series], question: str, sentences: Sequence[str]) -> Statement:
    """An answer about one of several series. The question gets its title, unless the series is alone in its group."""
    alone = sum(other.group == one.group for other in series) == 1
    title = f" ({one.title})" if one.title and not (alone and one.group) else ""
    return Statement(question + title, sentences, one.group)


def headline(series: Series) -> str:
    """The most important sentence about a series, and how many checkpoints count unless all do."""
    sentences = split_answer(series) or other_measures(series) or counted(series)
    line = f"{sentences[0].rstrip(':.')}."
    if len(series.verdict["counted"]) < series.verdict["checkpoints"]:
        line += f" {counted(series)[0].rstrip(':')}."
    return line


def halves(series: Series) -> list[str]:
    """The names of the two halves of the heads that the analysis compared."""
    return list(series.split.get("halves", ("even", "odd")))


def split_answer(series: Series) -> list[str]:
    """Whether the split of the heads stands out among all splits, and when its measures emerge; the answer first.

    Empty if no split was measured.
    """
    split, measures = series.split, series.measures
    name = "/".join(halves(series))
    if "reason" in split:
        measured = "measures" in series.verdict and any((job.run.folder / SPLITS).exists() for job in series.complete)
        return [f"No verdict on {name}: {split['reason']}."] if measured else []
    emerged = [measure for measure in series.split_measures if measures[measure]["emerges_at_step"] is not None]
    test = _against_splits(split, name, len(series.counted))
    if not split["found"]:
        lead = f"Not beyond chance: {test}."
        if emerged:
            labels = listed([series.metric(measure).label for measure in emerged])
            lead += (
                f" {capital(labels)} {'does exceed its threshold' if len(emerged) == 1 else 'do exceed theirs'}, as "
                f"some split would; that is no evidence of {name} structure:"
            )
        else:
            lead += f" No emergence of {name} specialisation:"
    elif emerged:
        last = emerged[-1]
        lead = f"Yes: {name} specialisation {_when(measures[last])}, by {series.metric(last).label}."
        lead += f" Against chance: {test}:"
    else:
        lead = f"{capital(name)} is beyond chance ({test}), but no measure of it passes its threshold:"
    return [lead, *_by_criterion(split), _strongest(split, name), *_agreement(series), *_capability(series)]


def other_measures(series: Series) -> list[str]:
    """When each measure emerged, in the order of the configuration, without those of the split of the heads.

    Measures of an original study's procedure are left out; they are in that study's own part of the page.
    """
    if "reason" in series.verdict:
        return [f"No verdict: {series.verdict['reason']}."]
    names = [name for name in series.measures if name not in series.split_measures and not is_original(name)]
    missing = series.verdict.get("unmeasured", [])
    unmeasured = [series.metric(name).label for name in missing if not is_original(name)]
    absent = [f"Not measured at any checkpoint, so not dated: {listed(unmeasured)}."] if unmeasured else []
    if not names:
        return absent
    emerged = [name for name in names if series.measures[name]["emerges_at_step"] is not None]
    parts = [f"{series.metric(name).label} {_when(series.measures[name])}" for name in emerged]
    others = [series.metric(name).label for name in names if name not in emerged]
    parts += [f"no emergence shown of {listed(others)}"] if others else []
    return [f"{capital('; '.join(parts))}.", *absent]


def is_original(metric: str) -> bool:
    """Whether the metric is one of an analysis that repeats a study's procedure (`protocol.companions`)."""
    return metric.startswith("original_")


def heads(series: Series) -> list[str]:
    """How many heads are most like the head of their own index at the checkpoint before."""
    matches = series.verdict.get("heads", {})
    if "kept_to_next" not in matches:
        return []
    chance = f"(chance {fixed(100 * matches['chance'], 0)} %)"
    sentences = [
        f"By weights, from one checkpoint to the next {_range(matches)} of the heads are most like the head of their "
        f"own index {chance}. Heads with similar weights need not have the same function."
    ]
    behaviour = matches.get("by_behaviour", {})
    if "kept_to_next" in behaviour:
        moved = [pair for pair in next(iter(behaviour["moved_by_last"].values())) if pair[2] >= _ALIKE]
        exchanged = listed([f"head {last} does what head {first} did" for last, first, _ in moved])
        sentences.append(
            f"By what they do, {_range(behaviour)} {chance}. From the first checkpoint to the last, "
            f"{exchanged or 'no head has taken the place of another'} (correlation of {_ALIKE} or more)."
        )
    return sentences


def _range(matches: Mapping[str, Any]) -> str:
    """The smallest and the largest share of heads that keep their index from one checkpoint to the next."""
    shares = list(matches["kept_to_next"].values())
    low, high = fixed(100 * min(shares), 0), fixed(100 * max(shares), 0)
    return f"{low} %" if low == high else f"{low} to {high} %"


def counted(series: Series) -> list[str]:
    """How many checkpoints count, and why the others do not."""
    verdict = series.verdict
    left_out = [f"{revision} excluded: {reason}" for revision, reason in verdict["excluded"].items()]
    left_out += [f"{revision} failed: {reason}" for revision, reason in verdict["failed"].items()]
    lead = f"{len(verdict['counted'])} of {count(verdict['checkpoints'], 'checkpoint')} count"
    if not left_out:
        return [f"{lead}; none was excluded and none failed."]
    return [f"{lead}:", *(f"{text}." for text in left_out)]


def interval(judgement: Mapping[str, Any]) -> str:
    """`(32 000, 64 000]`: the steps of the last checkpoint below the threshold and of the first above it."""
    at, after = judgement["emerges_at_step"], judgement["emerges_after_step"]
    if at is None:
        return "none"
    return _span(after, at) + (", the first checkpoint" if after is None else "")


def stage(judgement: Mapping[str, Any]) -> str:
    """The class of an emergence (early, mid, late), with the other classes that its interval allows."""
    others = [word for word in judgement["possible_classes"] if word != judgement["class"]]
    return judgement["class"] + (f", or {listed(others)}: the checkpoints lie too far apart to tell" if others else "")


def share(value: float | None) -> str:
    """A probability or a share in percent, with one decimal below 10 %, else none; a dash for None."""
    return "–" if value is None else f"{fixed(100 * value, 1 if 0 < value < 0.1 else 0)} %"


def _against_splits(split: Mapping[str, Any], name: str, checkpoints: int) -> str:
    """The test of the split against all splits, as a clause."""
    splits = f"all {number(split['splits'])}" if split["exact"] else f"{number(split['splits'])} sampled"
    smallest = split["least_possible_p"]
    bound = " (the least that so many splits can give)" if split["p"] <= 1.001 * smallest else ""
    if not bound and smallest > 0.01:
        bound = f" (so few splits can give no less than {p_value(smallest)})"
    return (
        f"among {splits} balanced splits of layer {split['layer']}, {name} has its smallest p at step "
        f"{number(split['at_step'])}, {p_is(split['p'])}{bound}; by the maximum statistic, p accounts for all "
        f"{count(checkpoints, 'counted checkpoint')}"
    )


def _by_criterion(split: Mapping[str, Any]) -> list[str]:
    """The p on each kind of pairs that the verdict uses; empty for earlier records, which used no control pairs."""
    p = [f"{p_is(value)} on {name}" for name, value in split.get("p_by_criterion", {}).items()]
    if len(p) == 1:
        return ["No control pairs were read, so that a mere preference for one form of answer would count as repair."]
    rule = "the verdict takes the larger p, so that a mere preference for one form of answer does not count as repair"
    return [f"At that step {listed(p)}, each kind with equal weight; {rule}."] if p else []


def _when(judgement: Mapping[str, Any]) -> str:
    at, after = number(judgement["emerges_at_step"]), judgement["emerges_after_step"]
    if after is None:
        since, span = f"is there at the first checkpoint, step {at}", ""
    else:
        since = f"emerges after step {number(after)} and by step {at}"
        span = f"{share(judgement['emerges_after_share'])} to "
    return f"{since} ({span}{share(judgement['emerges_at_share'])} of training: {stage(judgement)})"


def duration(judgement: Mapping[str, Any]) -> str:
    """How long the rise from 10 to 90 % took; for earlier records, which lack it, its steepest interval."""
    if "rise_10_to_90_shares" in judgement:
        (a, b), (fewest, most) = judgement["rise_10_to_90_steps"], judgement["rise_10_to_90_shares"]
        return (
            f"from 10 to 90 % in {share(fewest)} to {share(most)} of training, within steps {number(a)} to {number(b)}"
        )
    a, b = judgement["jump_steps"]
    return (
        f"steps {number(a)} to {number(b)}, {share(judgement['jump_width_share'])} of training, hold "
        f"{share(judgement['jump_share'])} of the rise"
    )


def order(series: Series) -> list[str]:
    """Which measures rose before which others, by the two criteria that are the same for all measures."""
    sentences = []
    criteria = {"first_departure": "lasting departure from chance", "half_height": "half height"}
    for criterion, title in criteria.items():
        dates = series.verdict.get("order", {}).get(criterion, {"intervals": {}})
        labels = {name: series.metric(name).label for name in dates["intervals"] if not is_original(name)}
        if len(labels) < 2:
            continue
        spans = [f"{label} {_span(*dates['intervals'][name])}" for name, label in labels.items()]
        pairs = [(labels[a], labels[b]) for a, b in dates["surely_before"] if a in labels and b in labels]
        before = listed([f"{a} came before {b}" for a, b in pairs])
        sure = f"So {before}" if pairs else "These intervals overlap, so that no order is certain"
        sentences.append(f"By {title}, in steps: {', '.join(spans)}. {sure}.")
    return sentences


def _span(after: int | None, at: int) -> str:
    return f"≤ {number(at)}" if after is None else f"({number(after)}, {number(at)}]"


def _strongest(split: Mapping[str, Any], name: str) -> str:
    if split["is_strongest"]:
        return f"A scan over all splits ranks {name} first."
    strongest = listed([str(head) for head in split["strongest_split"]])
    return f"A scan over the splits ranks heads {strongest} first, not the {name.partition('/')[0]} ones."


def _agreement(series: Series) -> list[str]:
    agreement = series.verdict.get("agreement", {})
    if "class" not in agreement or all(agreement.values()):
        return []
    names = {"class": "class", "pace": "pace", "emerges_at_step": "step"}
    differ = [names[key] for key, agree in agreement.items() if not agree]
    return [
        f"The two measures differ in {listed(differ)}: a thresholded score may jump where the continuous measure "
        "beneath it does not. The continuous one is the safer guide."
    ]


def _capability(series: Series) -> list[str]:
    lost = [
        f"{series.metric(name).label} ({count(facts['disappearances'], 'time')})"
        for name, facts in series.verdict.get("capability", {}).items()
        if facts["disappearances"]
    ]
    return [f"Shares of right answers that fell below the threshold again: {listed(lost)}."] if lost else []
