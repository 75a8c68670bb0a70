"""Suites whose answer is known: how often each detector says yes."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median
from typing import Any

from scipy.stats import binomtest

from headdyn.studies.organisms.settings import FINAL_STEP, Organism
from tests.experiments.records import high, low, p_is, percent, read

SETTINGS = ("strength > 0.5", "Clopper–Pearson, 95 %")
POWER, FALSE_POSITIVES = 0.95, 0.1
Rows = list[dict[str, Any]]


def fragments(folder: Path) -> list[str]:
    suites = [read(path) for path in sorted((folder / "suites").glob("*.json"))]
    planted, others, found, false, rule = detections(suites)
    carrying, halves = [row for row in suites if row["true_onset"]], [row for row in suites if row["half_rank"]]
    organism = Organism(name="planted", organism="planted")
    onset = organism.onset * FINAL_STEP
    assert all(row["true_onset"] == onset for row in carrying)
    ((after, at),) = {(row["onset_after"], row["onset_at"]) for row in carrying if row["onset_off_by"] == 0}
    n, first = len(others), sum(row["half_rank"] == 1 for row in halves)
    both = sum(row["found_by_trajectory"] and row["even_success"] - row["odd_success"] > 0.5 for row in others)
    rule_alone, null_alone = rule - both, false - both
    needed, others_needed = (math.ceil(math.log(0.025) / math.log(share)) for share in (POWER, 1 - FALSE_POSITIVES))
    known = [row["detected_onset_off_by"] == 0 for row in planted if "detected_onset_off_by" in row]
    minutes = median(row["train_seconds"] + row["analysis_cpu_seconds"] for row in suites) / 60
    return [
        f"from revision {onset:.0f} on",
        f"at {len(organism.series('original_11'))} checkpoints with all {math.comb(organism.num_heads, organism.num_heads // 2)} splits",
        f"true, of {len(suites)}:",
        f"structure in {found} of {len(planted)} suites, at least {percent(low(found, len(planted)))} % of such suites",
        f"trajectory in {false} of {n} others, at most {percent(high(false, n))} %",
        f"rule in {rule} of {n}, {percent(low(rule, n))} to {percent(high(rule, n))} %",
        f"checkpoints, {after} to {at}, in {sum(row['onset_off_by'] == 0 for row in carrying)} of {len(carrying)} suites",
        f"and in {sum(known)} of {len(known)} planted ones where",
        f"so the {n} others are",
        f"half first in {first} of {len(halves)} suites",
        f"calls {rule} suites specialised",
        f"undecided**: {rule_alone} suites are called so by the rule alone, {null_alone} by the null alone (exact McNemar "
        f"{p_is(binomtest(rule_alone, rule_alone + null_alone).pvalue)})",
        f"far as {percent(low(found, len(planted)))} % power; a power of {percent(POWER)} % is",
        f"takes {needed} planted suites of which all are found ({needed - len(planted)} more: a suite takes {minutes:.1f} min",
        f"at most {percent(FALSE_POSITIVES)} % of other suites",
        f"takes {others_needed} of which none",
        *(line for line in (folder / "table.md").read_text(encoding="utf-8").splitlines() if "/" in line),
    ]


def detections(suites: Rows) -> tuple[Rows, Rows, int, int, int]:
    """Planted suites and others; how many of each the exact null finds; and of the others, how many the studies' rule does."""
    planted = [row for row in suites if row["kind"] == "planted"]
    others = [row for row in suites if row["kind"] != "planted"]
    rule = sum(row["even_success"] - row["odd_success"] > 0.5 for row in others)
    found, false = (sum(row["found_by_trajectory"] for row in part) for part in (planted, others))
    return planted, others, found, false, rule
