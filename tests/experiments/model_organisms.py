"""Suites whose answer is known: how often each detector says yes."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median
from typing import Any

from scipy.stats import binom, binomtest

from headdyn.studies.organisms.detection import ALPHA, QUESTIONS, read_rows
from headdyn.studies.organisms.settings import FINAL_STEP, Organism
from tests.experiments.records import high, judged, low, p_is, percent, read, share, span

SETTINGS = (
    "is planted, 31 of them",
    "in at most 4, and",
    "Of 38 more planted suites, so many that 110 with no further miss show 95 % power",
    "misses at most 1 over the trajectory",
    "Of 12 more diffuse suites, committed before theirs: the studies' rule calls 4 or more",
    "(exact McNemar p < 0.05; with 5 diffuse suites no",
    "strength > 0.5",
    "Clopper–Pearson, 95 %",
)
POWER, FALSE_POSITIVES = 0.95, 0.1
FIRST_PLANTED = 72  # the first of the planted suites that were predicted
SHARED = 5  # suites of smaller numbers share their weights and batches over the kinds
Rows = list[dict[str, Any]]
AT_LAST, RULE = (
    QUESTIONS[name][1] for name in ("even/odd found, last checkpoint", "strength > 0.5, the original studies' rule")
)


def fragments(folder: Path) -> list[str]:
    suites = read_rows(folder)
    planted, others, found = detections(suites)
    at_last = sum(row["found"] for row in planted)
    carrying, halves = [row for row in suites if row["true_onset"]], [row for row in suites if row["half_rank"]]
    organism = Organism(name="planted", organism="planted")
    onset = organism.onset * FINAL_STEP
    assert all(row["true_onset"] == onset for row in carrying)
    ((after, at),) = {(row["onset_after"], row["onset_at"]) for row in carrying if row["onset_off_by"] == 0}
    n = len(others)
    diffuse, null, scattered = (
        [row for row in others if row["kind"] == kind] for kind in ("diffuse", "null", "scattered")
    )
    called = {kind[0]["kind"]: sum(map(by_rule, kind)) for kind in (diffuse, null, scattered)}
    invented = f"{percent(low(called['diffuse'], len(diffuse)))} to {percent(high(called['diffuse'], len(diffuse)))} %"
    assert low(called["diffuse"], len(diffuse)) > ALPHA, "supported"
    new_diffuse = [row for row in diffuse if row["suite"] >= SHARED]
    new_called, new_found = sum(map(by_rule, new_diffuse)), sum(row["found_by_trajectory"] for row in new_diffuse)
    new_planted = [row for row in planted if row["suite"] >= FIRST_PLANTED]
    missed = sum(not row["found_by_trajectory"] for row in new_planted)
    missed_last = sum(not AT_LAST(row) for row in new_planted)
    ranked = {
        kind: [row["half_rank"] == 1 for row in halves if row["kind"] == kind] for kind in ("planted", "scattered")
    }
    assert all(row["heads"] == list(range(organism.num_heads)) for row in diffuse)
    even = {id(row): sum(head % 2 == 0 for head in row["heads"]) for row in scattered}
    clean = [*diffuse, *null]
    rule_alone, null_alone, doubt = errors_compared(clean)
    errs_more = "supported" if doubt < ALPHA and rule_alone > null_alone else "undecided"
    false_null, false_diffuse = (sum(row["found_by_trajectory"] for row in kind) for kind in (null, diffuse))
    assert low(false_diffuse, len(diffuse)) < FALSE_POSITIVES < high(false_diffuse, len(diffuse)), "undecided"
    first_draw = read(folder / "first_draw.json")
    first_diffuse = [row for row in first_draw if row["kind"] == "diffuse"]
    again = [row for row in diffuse if row["suite"] < SHARED]
    assert {(row["kind"], row["suite"]) for row in first_draw} == {
        (row["kind"], row["suite"]) for row in suites if row["suite"] < SHARED
    }
    assert not any(row["all_success"] > row["plain_success"] for row in null), "patching all heads flips no answer"
    (otherwise,) = (row for row in scattered if row["found_by_trajectory"])
    odd = sum(row["found"] and row["strength_nats"] <= 0 for row in null)
    less = ALPHA * 100 / 2
    assert high(false_null, len(null)) <= FALSE_POSITIVES, "supported"
    told = [row["detected_onset_at"] is not None for row in null]
    later = [row for row in null if row["suite"] >= SHARED]
    assert 0.75 < binom.cdf(4, len(later), FALSE_POSITIVES) < 0.85, "four times in five"
    assert sum(row["found_by_trajectory"] for row in later) <= 4 and not any(map(by_rule, later)), "both supported"
    known = [row["detected_onset_off_by"] == 0 for row in planted]
    minutes = median(row["train_seconds"] + row["analysis_cpu_seconds"] for row in suites) / 60
    return [
        f"planted in {at_last} of {len(planted)} suites at their last checkpoint, at least "
        f"{percent(low(at_last, len(planted)))} % of such suites",
        f"over all checkpoints in {found}, {percent(low(found, len(planted)))} % or more",
        f"of {len(diffuse)} in which every head carries the choice it calls {called['diffuse']} specialised ({invented}), the "
        f"exact null {false_diffuse} ({p_is(doubt)})",
        f"from revision {onset:.0f} on",
        f"at {len(organism.series('original_11'))} checkpoints with all {math.comb(organism.num_heads, organism.num_heads // 2)} splits",
        f"true, of {len(suites)}:",
        f"structure in {at_last} of {len(planted)} suites at the last checkpoint and in {found} over the trajectory",
        f"over the trajectory in {false_null} of {len(null)} suites without planting, at most "
        f"{percent(high(false_null, len(null)))} %, in {false_diffuse} of {len(diffuse)} diffuse ones, and in "
        f"{sum(row['found_by_trajectory'] for row in scattered)} of {len(scattered)} scattered ones",
        f"rule calls {called['diffuse']} of {len(diffuse)} diffuse and {called['scattered']} of {len(scattered)} scattered "
        f"suites; that it calls {called['null']} of {len(null)} null ones",
        f"In {share(odd, len(null), ' suites without planting')} p is below {ALPHA:g}",
        f"the null errs in {less:g} % by chance",
        f"hold {span(even.values(), 0)} of the {organism.num_heads // 2} even heads; in the {called['scattered']} that the rule "
        f"calls they hold {span((even[id(row)] for row in scattered if by_rule(row)), 0)}",
        f"checkpoints, {after} to {at}, in {sum(row['onset_off_by'] == 0 for row in carrying)} of {len(carrying)} suites",
        f"and in {sum(known)} of {len(known)} planted ones where",
        f"so the {n} others are {len({row['suite'] for row in others})} draws",
        f"nothing in {len(null) - false_null} without planting, at most {percent(high(false_null, len(null)))} % of such suites",
        f"half first in {share(sum(ranked['planted']), len(ranked['planted']), ' planted suites')} and in "
        f"{sum(ranked['scattered'])} of {len(ranked['scattered'])} scattered ones",
        f"Of the predictions about the {len(new_planted)} further planted suites: the exact null finds "
        f"{len(new_planted) - missed_last} at the last checkpoint, **{judged(missed_last == 0)}**, and misses {missed} over the "
        f"trajectory, **{judged(missed <= 1)}**",
        f"Of those about the {len(new_diffuse)} further diffuse ones: the rule calls {new_called}, **{judged(new_called >= 4)}**; "
        f"the exact null finds {new_found}, **{judged(new_found == 0)}**",
        f"is found in {sum(told)} of {len(told)} suites without planting",
        f"predictions about the {len(later)} suites without planting: in at most 4 the exact null finds something, "
        f"**supported** ({sum(row['found_by_trajectory'] for row in later)} of {len(later)})",
        f"a detector that errs in {percent(FALSE_POSITIVES)} % of suites would pass it four times in five",
        f"diffuse suites, in {invented} of which it does",
        f"exact null is **{errs_more}**: of these {len(clean)} suites {rule_alone} are called so by the rule alone, {null_alone} by the null alone "
        f"(exact McNemar {p_is(doubt)})",
        power("at the last checkpoint", at_last, len(planted), minutes),
        power("over the trajectory", found, len(planted), minutes),
        f"at most {percent(ALPHA)} % of other suites",
        f"By counting, {percent(FALSE_POSITIVES)} % is asked. That is **supported** for suites without planting ({false_null} of "
        f"{len(null)}, at most {percent(high(false_null, len(null)))} %); of {len(diffuse)} diffuse ones it finds "
        f"{false_diffuse}, at most {percent(high(false_diffuse, len(diffuse)))} %, which is **undecided**",
        f"The first {len(first_draw)} suites were made twice",
        f"of the {len(first_diffuse)} diffuse ones the exact null had found "
        f"{sum(row['found_by_trajectory'] for row in first_diffuse)} and the rule had called "
        f"{sum(map(by_rule, first_diffuse))}, now {sum(row['found_by_trajectory'] for row in again)} and "
        f"{sum(map(by_rule, again))}",
        f"with {even[id(otherwise)]} planted even heads of {organism.num_heads // 2}",
        *(line for line in (folder / "table.md").read_text(encoding="utf-8").splitlines() if "/" in line),
    ]


def errors_compared(suites: Rows) -> tuple[int, int, float]:
    """Of suites without even/odd structure those called so by the rule alone, by the null alone, and McNemar's exact p."""
    rule_alone = sum(by_rule(row) and not row["found_by_trajectory"] for row in suites)
    null_alone = sum(row["found_by_trajectory"] and not by_rule(row) for row in suites)
    return rule_alone, null_alone, float(binomtest(rule_alone, rule_alone + null_alone).pvalue)


def by_rule(row: dict[str, Any]) -> bool:
    """Whether the studies' rule calls a suite specialised."""
    return bool(RULE(row))


def power(where: str, found: int, n: int, minutes: float) -> str:
    """The verdict on the exact null's power, whatever the number of planted suites."""
    claim, sure = f"That the exact null finds what is there {where} is", low(found, n)
    if sure >= POWER:
        return f"{claim} **supported**: at least {percent(sure)} % of such suites."
    if high(found, n) < POWER:
        return f"{claim} **not supported** with a power of {percent(POWER)} %: at most {percent(high(found, n))} %."
    needed = next(k for k in range(n, 10_000) if low(k - (n - found), k) >= POWER)
    return (
        f"{claim} **supported** as far as {percent(sure)} % power; a power of {percent(POWER)} % is **undecided**, and takes "
        f"{needed} planted suites with no further miss ({needed - n} more: a suite takes {minutes:.1f} min, median of those "
        "on record)."
    )


def detections(suites: Rows) -> tuple[Rows, Rows, int]:
    """Planted suites and others, and how many of the planted ones the exact null finds over the trajectory."""
    planted = [row for row in suites if row["kind"] == "planted"]
    others = [row for row in suites if row["kind"] != "planted"]
    return planted, others, sum(row["found_by_trajectory"] for row in planted)
