"""How often the detectors find the truth about suites whose answer is known.

Every suite is trained, analysed at the eleven checkpoints of the emergence study, and then recorded in a file of its
own. So the same command continues where it stopped, and more suites can be added to the record. The suite is the unit
of every statistic (science.md §16). Shape suffixes as in analysis/interventions/splits.py.
"""

import csv
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markdown import Markdown

from headdyn.analysis.interventions.specialization import Specialization
from headdyn.analysis.interventions.splits import rank_test
from headdyn.analysis.series.emergence import Emergence
from headdyn.analysis.series.onset import first_above
from headdyn.analysis.series.points import SeriesPoint, SplitSummary
from headdyn.core.figures import Figure, Interval, interval_plot
from headdyn.core.json_files import read_json, write_json
from headdyn.core.randomness import generator
from headdyn.core.settings import build
from headdyn.core.source_code import provenance
from headdyn.core.statistics import binomial_interval
from headdyn.core.store import Store, recipe_key
from headdyn.data.comparisons import Comparisons
from headdyn.models.checkpoints import load
from headdyn.studies.organisms.settings import KINDS, Organism
from headdyn.studies.organisms.text import FORMATS
from headdyn.training.progress_line import progress_line

log = logging.getLogger(__name__)

SCHEMA = 1  # raised when a row's meaning changes
SERIES = "original_11"
ALPHA = 0.05
MANIFEST = "manifest"  # the entry of a suite's file with its date, code revision and package versions
THRESHOLD = 0.5  # a planted effect counts as present above this success, as in Emergence
LEARNT = 0.9  # least share of bug pairs right in the plain wording and wrong after "Q:", for a suite to be informative
FLIPPED = 0.9  # least share of answers that patching all heads must flip

Row = dict[str, Any]

# The kinds in which finding even/odd structure is a false positive.
NOT_EVEN = "not planted in the even heads"
GROUPS: Mapping[str, Sequence[str]] = {**{kind: (kind,) for kind in KINDS}, NOT_EVEN: KINDS[1:]}

# By question: the groups of kinds for which it is asked, and a function from a suite's row to its answer (None where
# the row has none). A split in which even heads do less than odd ones is no detection.
QUESTIONS: Mapping[str, tuple[Sequence[str], Callable[[Row], bool | None]]] = {
    "task learnt": (KINDS, lambda row: row["learnt"]),
    "even/odd found, last checkpoint": (tuple(GROUPS), lambda row: row["found"] and row["strength_nats"] > 0),
    "even/odd found, trajectory": (tuple(GROUPS), lambda row: row["found_by_trajectory"]),
    "strength > 0.5, the original studies' rule": (
        tuple(GROUPS),
        lambda row: row["even_success"] - row["odd_success"] > 0.5,
    ),
    "planted half ranked first": (("planted", "scattered"), lambda row: row["half_rank"] == 1),
    "all heads flip ≥ 90 %": (KINDS, lambda row: row["all_flips"]),
    "onset in its interval": (("planted", "scattered", "diffuse"), lambda row: row["onset_off_by"] == 0),
    "onset in its interval, heads not known": (
        ("planted", "scattered", "diffuse"),
        lambda row: row["detected_onset_off_by"] == 0 if "detected_onset_off_by" in row else None,
    ),
    "an onset is found, heads not known": (
        KINDS,
        lambda row: row["detected_onset_at"] is not None if "detected_onset_at" in row else None,
    ),
}


def default_settings(kind: str, suite: int) -> Organism:
    """The suite that `model=organism_KIND seed=SUITE` trains."""
    return build(Organism, {"name": f"organism_{kind}", "organism": kind, "suite": suite}, "model")


def study(
    out: Path,
    *,
    kinds: Sequence[str],
    suites: int,
    store: Store,
    settings: Callable[[str, int], Organism] = default_settings,
    analysis: Specialization | None = None,
) -> list[Row]:
    """Do the suites that are not yet on record in `out`, and write the study's record over all suites there.

    `settings(kind, suite)` makes a suite's settings, by default those of conf/model/organism_*. Returns the rows.
    Raises ValueError where `out` holds a suite that was done with other settings.
    """
    analysis = analysis or Specialization()
    (out / "suites").mkdir(parents=True, exist_ok=True)
    # One suite of every kind, then the next ones, so that an interrupted study can still compare kinds.
    for organism in (settings(kind, suite) for suite in range(suites) for kind in kinds):
        path = out / "suites" / f"{organism.organism}_{organism.suite:03d}.json"
        key = record_key(organism, analysis)
        if path.exists():
            if read_json(path)["key"] != key:
                raise ValueError(f"{path} was done with other settings; choose another --out, or remove it")
            continue
        row = {"key": key, MANIFEST: provenance(), **examine(organism, store, analysis)}
        write_json(path, row)
        write_record(out)
        log.info("%s %d: %s", organism.organism, organism.suite, _in_words(row))
    rows = write_record(out)
    Console().print(Markdown(f"Suites whose answer is yes (Clopper–Pearson, 95 %)\n\n{markdown(summarise(rows))}"))
    return rows


def record_key(organism: Organism, analysis: Specialization) -> str:
    """A hash of everything that a suite's row depends on."""
    return recipe_key("organism_study", {"schema": SCHEMA, "suite": organism.recipe(), "by": repr(analysis)})


def read_suites(out: Path) -> list[Row]:
    """All suites on record in `out`: their rows, with their manifests (headdyn.core.source_code.provenance)."""
    return [read_json(path) for path in sorted((out / "suites").glob("*.json"))]


def read_rows(out: Path) -> list[Row]:
    """The rows of all suites on record in `out`, without their manifests."""
    return [{name: value for name, value in row.items() if name != MANIFEST} for row in read_suites(out)]


def write_record(out: Path) -> list[Row]:
    """study.json, study.csv, table.md and detections.svg over all suites on record in `out`; returns their rows."""
    rows = read_rows(out)
    summary = summarise(rows)
    write_json(out / "study.json", {"alpha": ALPHA, "series": SERIES, "summary": summary, "suites": rows})
    with (out / "study.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()})
    (out / "table.md").write_text(markdown(summary), encoding="utf-8")
    figure(summary).save(out / "detections.svg")
    return rows


# -- one suite --------------------------------------------------------------------------------------------------------


def examine(organism: Organism, store: Store, analysis: Specialization) -> Row:
    """Train a suite, unless the store has it, and return a row with the detectors' results beside the truth."""

    def train(folder: Path) -> None:
        with progress_line(f"{organism.name} {organism.suite}") as line:
            organism.build(folder, observer=line)

    entry = store.get(organism.stage, organism.recipe(), train, resumable=True)
    began = time.process_time()
    points = [_point(organism, entry.path, revision, store, analysis) for revision in organism.series(SERIES)]
    verdict = Emergence()(points, generator(organism.suite, "analysis/emergence")).verdict
    truth = organism.truth()
    emerges = {
        name: [verdict["measures"][name][end] for end in ("emerges_after_step", "emerges_at_step")]
        for name in ("strength", "strength_nats")
    }
    return {
        "kind": organism.organism,
        "suite": organism.suite,
        "layer": organism.planted_layer,
        "heads": truth["heads"],
        "train_seconds": entry.build_seconds,
        "analysis_cpu_seconds": time.process_time() - began,
        **_final(points[-1], truth["heads"]),
        "excluded": verdict["excluded"],
        "found_by_trajectory": verdict["split"]["found"],
        "trajectory_p": verdict["split"]["p"],
        **_onset(points, truth),
        **_detected_onset(points, truth),
        "even_odd_emerges": emerges["strength"],
        "even_odd_nats_emerge": emerges["strength_nats"],
    }


def _point(organism: Organism, folder: Path, revision: str, store: Store, analysis: Specialization) -> SeriesPoint:
    loaded = load(folder, revision, store=store)
    assert loaded.tokenizer is not None
    seed = organism.suite
    if organism.stream != "organism":
        seed = int(generator(organism.suite, f"{organism.stream}/prompts").integers(2**31))
    prompts = Comparisons(formats=FORMATS, seed=seed).prompts(loaded.tokenizer)
    findings = analysis(loaded.decoder, prompts, generator(organism.suite, "analysis/specialization"))
    splits = SplitSummary.of(findings.tables["splits"], controls=findings.tables.get("control_splits"))
    return SeriesPoint(
        revision=revision, step=loaded.step, table=findings.table, splits=splits, state_hash=loaded.state_hash
    )


def _values(point: SeriesPoint) -> dict[str, float]:
    return {name: row["value"] for name, row in point.table.summary().items() if "value" in row}


def _final(point: SeriesPoint, heads: Sequence[int]) -> Row:
    """Results at the last checkpoint. `half_rank` is the planted half's rank among all splits."""
    assert point.splits is not None
    values, splits, strength_S = _values(point), point.splits.splits, point.splits.strength_S
    test, half = rank_test(strength_S, splits.reference), _half(point.splits, heads)
    names = ("plain_success", "source_success", "even_success", "odd_success", "all_success", "strength_nats")
    return {
        **{name: values[name] for name in names},
        "learnt": values["source_success"] >= LEARNT and values["plain_success"] <= 1 - LEARNT,
        "p_two_sided": test.p_two_sided,
        "found": test.p_two_sided < ALPHA,
        "all_flips": values["all_success"] >= FLIPPED,
        "half_rank": None if half is None else rank_test(strength_S, half).rank,
        "strongest_half": list(splits.heads(int(strength_S.argmax()))),
    }


def _half(summary: SplitSummary, heads: Sequence[int]) -> int | None:
    """The index of the split whose first half is the planted heads; None where they are not half of all heads."""
    planted_H = np.isin(np.arange(summary.splits.half_SH.shape[1]), heads)
    return next(iter(np.flatnonzero((summary.splits.half_SH == planted_H).all(1)).tolist()), None)


def _onset(points: Sequence[SeriesPoint], truth: Mapping[str, Any]) -> Row:
    """The onset with known heads: the interval in which the planted effect passes the threshold, and the true onset.

    The effect is the planted half's success less the other half's; where all heads carry the choice, the success with
    all patched less that with nothing patched (an untrained model answers half of the pairs rightly). `onset_off_by`
    counts the checkpoints between the measured interval and the true one; None where the effect never shows.
    """
    row: Row = {"true_onset": None, "onset_after": None, "onset_at": None, "onset_off_by": None}
    if truth["onset"] is None:
        return row
    assert points[0].splits is not None
    dated = _dated(points, _half(points[0].splits, truth["heads"]), truth["onset"]["step"])
    return row | {"true_onset": truth["onset"]["step"]} | {f"onset_{name}": value for name, value in dated.items()}


def _detected_onset(points: Sequence[SeriesPoint], truth: Mapping[str, Any]) -> Row:
    """The onset from the checkpoints alone: that of the split with the largest strength (nats) at any checkpoint.

    Where that split's success never passes the threshold, it is the onset of all heads together.
    """
    true_onset = (truth["onset"] or {}).get("step")
    strength_KS = np.stack([point.splits.strength_S for point in points if point.splits is not None])
    dated = _dated(points, int(strength_KS.max(0).argmax()), true_onset)
    dated = _dated(points, None, true_onset) if dated["at"] is None else dated
    return {f"detected_onset_{name}": value for name, value in dated.items()}


def _dated(points: Sequence[SeriesPoint], half: int | None, true_onset: float | None) -> Row:
    """The checkpoints between which the effect of split `half`, or of all heads (None), passes the threshold."""
    effects = []
    for point in points:
        values = _values(point)
        assert point.splits is not None
        whole = values["all_success"] - values["plain_success"]
        effects.append(whole if half is None else point.splits.success_S[half])
    steps = [point.step for point in points if point.step is not None]
    first = int(first_above(np.array(effects), THRESHOLD))
    if first == len(steps):
        return {"after": None, "at": None, "off_by": None}
    off_by = None
    if true_onset is not None:
        off_by = first - next(i for i, step in enumerate(steps) if step > true_onset)
    return {"after": steps[first - 1] if first else None, "at": steps[first], "off_by": off_by}


# -- all suites -------------------------------------------------------------------------------------------------------


def summarise(rows: Sequence[Row]) -> list[Row]:
    """For each group of kinds and question: how many suites say yes, of how many, and the share's interval.

    Intervals are Clopper–Pearson, 95 %; each end alone is exact at 97.5 %. For `planted` the lower end bounds a
    detector's power; for the kinds without planted even heads the upper end bounds its rate of false positives.
    """
    summary = []
    for group, kinds in GROUPS.items():
        suites = [row for row in rows if row["kind"] in kinds]
        for question, (groups, _) in QUESTIONS.items():
            if group in groups and (share := share_of(question, suites)):
                summary.append({"kind": group, "question": question, **share})
    return summary


def share_of(question: str, suites: Sequence[Row]) -> Row:
    """How many suites answer a question with yes, how many answer it at all, and the share with its interval.

    Empty where no suite has an answer.
    """
    answers = [answer for row in suites if (answer := QUESTIONS[question][1](row)) is not None]
    if not answers:
        return {}
    yes, count = sum(answers), len(answers)
    low, high = map(float, binomial_interval(yes, count))
    return {"yes": yes, "suites": count, "share": yes / count, "ci_low": low, "ci_high": high}


def in_percent(share: Row) -> dict[str, float]:
    """A share of `share_of` with its interval, as `Interval` takes it."""
    return {"value": 100 * share["share"], "low": 100 * share["ci_low"], "high": 100 * share["ci_high"]}


def markdown(summary: Sequence[Row]) -> str:
    """The summary as a table: one line per question, one column per group of kinds, a dash for questions not asked."""
    cells = {
        (row["question"], row["kind"]): f"{row['yes']}/{row['suites']} ({row['ci_low']:.2f}–{row['ci_high']:.2f})"
        for row in summary
    }
    questions = [question for question in QUESTIONS if any(question == row["question"] for row in summary)]
    lines = [[question, *(cells.get((question, group), "–") for group in GROUPS)] for question in questions]
    return "".join("| " + " | ".join(line) + " |\n" for line in [["", *GROUPS], ["---"] * (len(GROUPS) + 1), *lines])


def figure(summary: Sequence[Row]) -> Figure:
    """How often each detector of even/odd structure says yes, by the kind of suite."""
    intervals = [
        Interval(label=question, group=line["kind"], **in_percent(line))
        for question, (groups, _) in QUESTIONS.items()
        for line in summary
        if line["question"] == question and NOT_EVEN in groups and line["kind"] != NOT_EVEN
    ]
    return interval_plot(intervals, xlabel="suites in which it is found (%)")


def _in_words(row: Row) -> str:
    onset = ""
    if row["true_onset"] is not None:
        onset = f", onset {row['onset_after']}–{row['onset_at']} (true {row['true_onset']:g})"
    return (
        f"even {row['even_success']:.2f} odd {row['odd_success']:.2f} all {row['all_success']:.2f}, "
        f"p {row['p_two_sided']:.3g}, over the trajectory {row['trajectory_p']:.3g}{onset}"
    )
