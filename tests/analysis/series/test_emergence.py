"""Series of checkpoints whose answer is known: planted, scattered and null trajectories, damaged and missing points."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import binom

from headdyn.analysis.clusters.all_clusterings import TWO_MEANS
from headdyn.analysis.contract import SeriesFindings
from headdyn.analysis.interventions.specialization import Specialization
from headdyn.analysis.interventions.splits import balanced_splits, rank_test, split_table
from headdyn.analysis.series.emergence import Emergence
from headdyn.analysis.series.emergence_measure import measure_from_rows
from headdyn.analysis.series.head_matching import load_circuits, save_circuits
from headdyn.analysis.series.judgement import Rules, judge
from headdyn.analysis.series.onset import null_band
from headdyn.analysis.series.points import CIRCUITS, SeriesPoint, SplitSummary, read_point
from headdyn.analysis.series.split_trajectory import SplitTrajectory
from headdyn.core.figures import rendered
from headdyn.core.records import HeadTable
from headdyn.core.run_folder import RunFolder, RunRecord
from headdyn.core.settings import build
from headdyn.models.revisions import LISTS, step_of
from tests.analysis.series.test_judgement import ORIGINAL_TIMELINE
from tests.small_models import NEOX, drawn
from tests.small_tokenizer import byte_level, prompts

HEADS, PAIRS = 8, 16
STEPS = [1000, 2000, 4000, 8000, 16000, 32000, 64000, 80000, 100000, 120000, 143000]
EVEN = tuple(range(0, HEADS, 2))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def point(
    step: int,
    effect_H: np.ndarray,
    noise_P: np.ndarray | None = None,
    control_effect_H: np.ndarray | None = None,
    **fields: Any,
) -> SeriesPoint:
    """A checkpoint where patching a head adds its effect to every pair's Δ, which is −2 nats unpatched."""
    splits = balanced_splits(len(effect_H), rng())
    noise_P = np.zeros(PAIRS) if noise_P is None else noise_P
    delta_SP = -2 + (splits.half_SH @ effect_H)[:, None] + noise_P
    pairs = [f"{i}.8/{i}.11" for i in range(len(noise_P))]
    controls = None
    if control_effect_H is not None:
        control_SC = np.tile(2 + (splits.half_SH @ control_effect_H)[:, None], 6)
        controls = split_table(splits, {6: control_SC}, [f"{i}.2/{i}.35" for i in range(6)])
    summary = SplitSummary.of(split_table(splits, {6: delta_SP}, pairs), controls=controls)
    even_P, odd_P = summary.even_P, summary.odd_P
    rows = [
        {"metric": "even_success", "value": float((even_P > 0).mean()), "n": PAIRS, "unit": "pair"},
        {"metric": "odd_success", "value": float((odd_P > 0).mean()), "n": PAIRS, "unit": "pair"},
        {"metric": "strength_nats", "value": float((even_P - odd_P).mean()), "null": 0.0, "n": PAIRS, "unit": "pair"},
    ]
    fields = {"table": HeadTable.from_rows(rows), "splits": summary, "state_hash": f"hash of {step}", **fields}
    return SeriesPoint(revision=f"step{step}", step=step, **fields)


def planted(step: int, onset: int, heads: tuple[int, ...] = EVEN, seed: int = 0) -> SeriesPoint:
    """From the onset on, these heads together add 4 nats, which repairs; all heads carry a little noise."""
    draws = rng(seed * 1000 + STEPS.index(step))
    effect_H = 0.02 * draws.normal(size=HEADS)
    if step >= onset:
        effect_H[list(heads)] += 4 / len(heads)
    return point(step, effect_H, 0.3 * draws.normal(size=PAIRS))


def findings_of(points: list[SeriesPoint], seed: int = 0, **settings: Any) -> SeriesFindings:
    findings = Emergence(**{"bootstrap_draws": 200, **settings})(points, rng(seed))
    verdict = dict(findings.verdict)
    assert json.loads(json.dumps(verdict, allow_nan=False)) == verdict, "plain values for verdict.json"
    assert set(findings.table.table["metric"].to_pylist()) <= set(Emergence.metrics)
    return findings


# -- known answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("onset", STEPS[1::2])
def test_a_planted_onset_is_dated(onset: int) -> None:
    verdict = findings_of([planted(step, onset) for step in STEPS]).verdict
    assert verdict["split"]["found"] and verdict["split"]["p"] == verdict["split"]["least_possible_p"] == 2 / 70
    assert verdict["split"]["strongest_split"] == list(EVEN) and verdict["split"]["is_strongest"]
    for name in ("strength", "strength_nats"):
        said = verdict["measures"][name]
        assert said["emerges_at_step"] == onset
        assert said["emerges_after_step"] == STEPS[STEPS.index(onset) - 1]
        width = (onset - said["emerges_after_step"]) / STEPS[-1]
        pace = "sudden" if width <= 0.1 else "undecided"  # never gradual, and sudden where the checkpoints can tell
        assert said["pace"] == pace and said["probabilities"][pace] == 1
        assert said["probabilities"][said["class"]] == 1 and said["emerges_at_step_95"] == [onset, onset]
        assert said["reversals"] == 0 and said["monotone"] and said["beyond_chance"]
    assert verdict["agreement"] == {"class": True, "pace": True, "emerges_at_step": True}


def test_a_scattered_half_is_not_even_and_odd_but_is_named() -> None:
    half = (0, 1, 4, 5)
    verdict = findings_of([planted(step, 64000, half) for step in STEPS]).verdict
    assert not verdict["split"]["found"] and verdict["split"]["p"] > 0.5
    assert verdict["split"]["strongest_split"] == list(half) and not verdict["split"]["is_strongest"]
    assert verdict["measures"]["strength_nats"]["class"] == "none"
    assert verdict["measures"]["strength_nats"]["none_reason"].startswith("not shown to be beyond chance: p = ")
    assert verdict["measures"]["strength"]["beyond_chance"] is False


def test_odd_heads_that_repair_are_no_emergence_of_even_ones() -> None:
    """Even/odd is the most extreme split then, downwards; a bit of noise upwards must not be dated."""
    verdict = findings_of([planted(step, 64000, (1, 3, 5, 7)) for step in STEPS]).verdict
    assert verdict["split"]["strongest_split"] == [1, 3, 5, 7]
    assert not verdict["split"]["found"] and verdict["measures"]["strength_nats"]["class"] == "none"


@pytest.mark.parametrize(("share", "is_repair"), [(0.0, True), (1.0, True), (-1.0, False)])
def test_a_preference_for_short_decimals_is_no_repair(share: float, *, is_repair: bool) -> None:
    """Even heads add 4 nats to the right answer of bug pairs, the shorter number, from step 64,000 on; controls, whose
    right answer is the longer one, gain nothing, gain as much, or lose as much."""
    points = []
    for step in STEPS:
        # The noise is the same for both kinds, with opposite signs: with share −1 the balanced strength is 0 to the bit.
        noise_H = 0.02 * rng(step).normal(size=HEADS)
        planted_H = np.where(np.isin(np.arange(HEADS), EVEN), 1.0, 0.0) * (step >= 64000)
        points.append(
            point(
                step,
                noise_H + planted_H,
                control_effect_H=share * planted_H - noise_H + 0.01 * rng(step + 1).normal(size=HEADS),
            )
        )
    split = findings_of(points).verdict["split"]
    assert split["found"] == is_repair
    by_criterion = split["p_by_criterion"]
    assert split["p"] == max(by_criterion.values()) if is_repair else split["p"] > 0.05
    assert set(by_criterion) == {"bug pairs", "both kinds of pairs"}
    bugs_alone = [dataclasses.replace(p, splits=dataclasses.replace(p.splits, balanced_S=None)) for p in points]
    assert findings_of(bugs_alone).verdict["split"]["found"]  # what the verdict was before it knew of controls


def null_series(seed: int) -> list[SeriesPoint]:
    """Head effects that grow and drift over training, with no regard to parity; one shared by all pairs."""
    draws = rng(seed)
    drift_KH = np.cumsum(draws.normal(size=(6, HEADS)), axis=0)
    return [
        point(step, effect_H, draws.normal(size=PAIRS)) for step, effect_H in zip(STEPS[::2], drift_KH, strict=True)
    ]


def test_without_structure_little_is_found() -> None:
    """p over the trajectory holds its level, and nothing is dated without it; checkpoint by checkpoint, false findings
    pile up. Measured over 1,000 series: 0.015, the 1/70 that 8 heads allow, against 0.12."""
    hits, dated, naive = [], [], []
    for seed in range(300):
        trajectory = SplitTrajectory.of(null_series(seed))
        assert trajectory is not None
        _, p = trajectory.best
        hits.append(p <= 0.05)
        measure = trajectory.measures(STEPS[::2], 0.5, 0.05)[1]
        dated.append(judge(measure, 143_000, Rules(), rng(), draws=100)["class"] != "none")
        even = trajectory.splits.reference
        naive.append(min(rank_test(s_S, even).p_two_sided for s_S in trajectory.strength_KS) <= 0.05)
    assert np.mean(hits) <= 0.05 and sum(dated) <= sum(hits)
    assert np.mean(naive) > 0.07


# -- the study of even and odd heads ---------------------------------------------------------------------------------------------------------


def original_points() -> list[SeriesPoint]:
    """The study's table as rows of tables without splits: one prompt, greedy, so one unit."""
    points = []
    for step, even, odd in ORIGINAL_TIMELINE:
        values = {"even_success": even, "odd_success": odd, "strength": even - odd}
        rows = [{"metric": metric, "value": float(v), "n": 1, "unit": "prompt"} for metric, v in values.items()]
        points.append(
            SeriesPoint(revision=f"step{step}", step=step, table=HeadTable.from_rows(rows), state_hash=f"{step}")
        )
    return points


def test_the_parity_study_from_its_own_table() -> None:
    assert [p.revision for p in original_points()] == list(LISTS["original_11"])
    findings = findings_of(
        original_points(), total_steps=143_000, judge="headdyn.studies.even_odd_emergence.hypotheses"
    )
    verdict = findings.verdict
    said = verdict["measures"]["strength"]
    assert (said["emerges_after_step"], said["emerges_at_step"], said["class"]) == (120000, 143000, "late")
    judged = {name: hypothesis["verdict"] for name, hypothesis in said["hypotheses"].items()}
    assert judged == {"H1": "rejected", "H2": "rejected", "H3": "supported", "H4": "rejected", "H5": "undecided"}
    # "Capabilities appear, disappear, then reappear with specialization."
    assert verdict["capability"]["even_success"] == {"appearances": 2, "disappearances": 1, "last": 1.0}
    assert verdict["capability"]["odd_success"] == {"appearances": 1, "disappearances": 1, "last": 0.0}
    # What the study's table cannot say is absent, with its reason.
    assert verdict["split"] == {"reason": "no splits were measured at every checkpoint"}
    assert "reason" in verdict["agreement"] and "probabilities" not in said and said["p"] is None
    assert verdict["widest_interval"]["steps"] == [32000, 64000]
    assert set(findings.figures) == {"detail"}


# -- checkpoints that do not count ------------------------------------------------------------------------------------


def test_copies_failures_and_main_do_not_count() -> None:
    """A revision that serves the last weights would date emergence at step 2000."""
    points = [planted(step, 100000) for step in STEPS]
    last = points[-1]
    copy = dataclasses.replace(last, revision="step2000", step=2000)
    main = dataclasses.replace(last, revision="main", step=None)
    failed = SeriesPoint(revision="step32000", step=32000, error="ValueError: truncated")
    broken = [copy if p.step == 2000 else failed if p.step == 32000 else p for p in points]
    findings = findings_of([main, *broken[::-1]])
    verdict = findings.verdict
    assert verdict["excluded"]["step2000"] == "its weights are those of step143000, the end of training"
    assert set(verdict["excluded"]) == {"step2000", "main"} and verdict["failed"] == {
        "step32000": "ValueError: truncated"
    }
    assert ["step2000", "step143000", "main"] in verdict["duplicates"]
    assert len(verdict["counted"]) == 9 and verdict["checkpoints"] == 12
    assert verdict["measures"]["strength"]["emerges_at_step"] == 100000
    timeline = {row["revision"]: row for row in findings.tables["timeline"].to_pylist()}
    assert len(timeline) == 12 and list(timeline)[-1] == "main"
    assert timeline["step32000"]["reason"] == "ValueError: truncated" and not timeline["step32000"]["counts"]
    assert timeline["step2000"]["strength_nats"] == pytest.approx(timeline["step143000"]["strength_nats"])
    assert timeline["step2000"]["trajectory_p"] is None and timeline["step143000"]["trajectory_p"] == 2 / 70
    trusting = findings_of([dataclasses.replace(p, state_hash=None) for p in broken])  # the mutant: names are believed
    assert trusting.verdict["measures"]["strength"]["emerges_at_step"] == 2000
    assert "step2000" in trusting.verdict["unhashed"]


def test_too_few_checkpoints() -> None:
    points = [planted(1000, 5), SeriesPoint(revision="step2000", step=2000, error="OSError: gone")]
    verdict = findings_of(points).verdict
    assert verdict["reason"] == "1 checkpoints that count are no series" and "measures" not in verdict
    assert findings_of([]).tables["timeline"].num_rows == 0


def test_an_untrained_checkpoint_alone_is_no_series() -> None:
    assert findings_of([point(0, np.zeros(HEADS))]).verdict["reason"] == "1 checkpoints that count are no series"


def test_checkpoints_must_be_comparable() -> None:
    points = [planted(step, 64000) for step in STEPS]
    other = point(2000, np.zeros(HEADS), np.zeros(PAIRS - 1))
    with pytest.raises(ValueError, match="step2000 measured other splits, pairs or another layer than step1000"):
        findings_of([points[0], other, *points[2:]])
    without = dataclasses.replace(points[3], splits=None)
    assert findings_of([*points[:3], without, *points[4:]]).verdict["split"] == {
        "reason": "no splits were measured at every checkpoint"
    }


# -- other metrics ----------------------------------------------------------------------------------------------------


def test_any_metric_can_be_followed() -> None:
    """The cluster study's query silhouettes above 0.5, and above half of their highest excess over random heads."""
    rows = [(1000, 0.02), (5000, 0.06), (10000, 0.05), (80000, 0.05), (120000, 0.65), (143000, 0.61)]
    points = []
    for step, value in rows:
        row = {"metric": "qk_silhouette", "value": value, "null": 0.05, "p": 0.004 if value > 0.5 else 0.4, "n": 12}
        table = HeadTable.from_rows([row | {"unit": "head"}])
        points.append(SeriesPoint(revision=f"step{step}", step=step, table=table, state_hash=f"{step}"))
    for settings in ({"thresholded": ("qk_silhouette",)}, {"continuous": ("qk_silhouette",)}):
        said = findings_of(points, **settings).verdict["measures"]["qk_silhouette"]
        assert (said["emerges_after_step"], said["emerges_at_step"], said["pace"]) == (80000, 120000, "undecided")
    assert said["p"] == pytest.approx(6 * 0.004) and said["highest"] == pytest.approx(0.6)
    weak = [
        dataclasses.replace(p, table=HeadTable.from_rows([row | {"p": 0.02}]))
        for p, row in ((p, p.table.rows()[0]) for p in points)
    ]
    assert findings_of(weak, continuous=("qk_silhouette",)).verdict["measures"]["qk_silhouette"]["class"] == "none"


def silhouettes(heights: list[float], metric: str = "behaviour_best_silhouette") -> list[SeriesPoint]:
    """Silhouettes against a null of 0.05, of which every one has the least p there is."""
    rows = [
        {"metric": metric, "value": height, "null": 0.05, "p": 0.001, "n": 12, "unit": "head"} for height in heights
    ]
    return [
        SeriesPoint(revision=f"step{step}", step=step, table=HeadTable.from_rows([row]), state_hash=f"{step}")
        for step, row in zip(STEPS, rows, strict=False)
    ]


def test_a_departure_by_p_is_upwards() -> None:
    """Where heads are the unit, p tells what is beyond chance; below the null it is no departure, however small p is."""
    rows = {1: (0.01, 0.05), 2: (0.01, 0.05), 3: (0.4, 0.05), 4: (0.5, 0.05)}
    measure = measure_from_rows("m", {k: {"value": v, "null": n, "p": 0.001} for k, (v, n) in rows.items()}, None, 0.05)
    judgement = judge(measure, 4, Rules(), rng())
    assert judgement["onsets"]["first_departure"]["at_step"] == 3


def test_no_groups_emerge_below_a_silhouette_of_a_quarter() -> None:
    """However small its p; and where higher ones follow, the first of a quarter or more is the emergence."""
    name = "behaviour_best_silhouette"
    low = findings_of(silhouettes([0.06, 0.1, 0.2, 0.24]), continuous=(name,)).verdict["measures"][name]
    assert low["class"] == "none" and low["none_reason"].endswith("0.24, is below 0.25, too small for groups")
    high = findings_of(silhouettes([0.06, 0.2, 0.24, 0.26]), continuous=(name,)).verdict["measures"][name]
    assert (high["emerges_after_step"], high["emerges_at_step"]) == (4000, 8000)
    assert high["onsets"]["half_height"]["at_step"] == 8000
    other = findings_of(silhouettes([0.06, 0.1, 0.2, 0.24], "share"), continuous=("share",)).verdict["measures"][
        "share"
    ]
    assert other["emerges_at_step"] == 4000  # the mutant: the floor left out


def test_an_excess_below_the_least_is_no_emergence_however_small_its_p() -> None:
    """Excesses of 0.01, 0.11, 0.15 and 0.19 over 0.05, half of the highest 0.095: none reaches 0.2; the third is the first of 0.12."""
    points = silhouettes([0.06, 0.16, 0.2, 0.24], "share")
    low, high = (
        findings_of(points, continuous=("share",), least={"share": least}).verdict["measures"]["share"]
        for least in (0.2, 0.12)
    )
    assert low["class"] == "none" and low["none_reason"].endswith("0.19, is below 0.2, the least that counts")
    assert (high["emerges_after_step"], high["emerges_at_step"]) == (2000, 4000)
    with pytest.raises(
        ValueError, match=r"least has other, which is neither strength_nats nor in analysis.emergence.continuous"
    ):
        Emergence(continuous=("share",), least={"other": 0.1})


def test_the_order_of_emergence_by_one_criterion_for_all() -> None:
    """Even/odd by its threshold at step 64000; a measure that leaves chance at 4000 and is at half height by 100000."""
    rises = dict(zip(STEPS, (0, 0, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.6, 0.8, 1.0), strict=True))
    points = []
    for p in (planted(step, 64000) for step in STEPS):
        assert p.step is not None and p.table is not None
        value = rises[p.step]
        row = {"metric": "other", "value": value, "ci_low": value - 0.1, "ci_high": value + 0.1, "null": 0.0}
        table = HeadTable.concat([p.table, HeadTable.from_rows([{**row, "n": 9, "unit": "sequence"}])])
        points.append(dataclasses.replace(p, table=table))
    order = findings_of(points, continuous=("other",)).verdict["order"]
    assert order["first_departure"]["intervals"]["other"] == [2000, 4000]
    assert ["other", "strength_nats"] in order["first_departure"]["surely_before"]
    assert order["first_departure"]["intervals"]["strength_nats"] == [32000, 64000]
    assert order["half_height"]["intervals"] == {
        "strength": [32000, 64000], "strength_nats": [32000, 64000], "other": [80000, 100000]
    }  # fmt: skip
    assert order["half_height"]["surely_before"] == [["strength", "other"], ["strength_nats", "other"]]


def growing() -> list[SeriesPoint]:
    """Four checkpoints at which even heads add 0, 0, 1 and 4 nats."""
    points = []
    for step, nats in zip(STEPS, (0, 0, 1, 4), strict=False):
        effect_H = 0.01 * rng(step).normal(size=HEADS)
        effect_H[list(EVEN)] += nats / len(EVEN)
        points.append(point(step, effect_H))
    return points


def test_a_split_departs_from_the_splits_of_its_own_checkpoint() -> None:
    """Even heads add 1 nat and later 4: the first is beyond 95 % of all splits then, if not beyond those that come."""
    points = growing()
    trajectory = SplitTrajectory.of(points)
    assert trajectory is not None
    measure = trajectory.measures(STEPS[:4], 0.5, 0.05)[1]
    assert measure.band_K is not None and (measure.value_K > measure.band_K)[2:].all()
    for strength_S, band in zip(trajectory.strength_KS, measure.band_K, strict=True):
        assert np.mean([abs(strength) > band for strength in strength_S]) == pytest.approx(
            0.05, abs=1 / len(strength_S)
        )
    later = null_band(trajectory.strength_KS)  # the mutant: the band of the whole trajectory
    assert later is not None and (measure.value_K > later).tolist() == [False, False, False, True]


def test_a_strength_of_delta_below_the_least_is_no_emergence_however_small_its_p() -> None:
    points = growing()
    enough, little = (
        findings_of(points, alpha=2 / 70, least={"strength_nats": least}).verdict["measures"]["strength_nats"]
        for least in (1.0, 40.0)
    )
    assert enough["class"] != "none"
    assert little["class"] == "none" and little["none_reason"].endswith("is below 40, the least that counts")


def measured_rows(trend_K: np.ndarray, seed: int, *, null: bool) -> dict[int, dict[str, Any]]:
    """Rows of a metric without p: 64 units of unit variance at every checkpoint, their mean and its 95 % interval."""
    unit_KN = trend_K[:, None] + rng(seed).normal(size=(len(trend_K), 64))
    mean_K, half_K = unit_KN.mean(1), 1.96 * unit_KN.std(1, ddof=1) / 8
    rows = {
        step: {"metric": "m", "value": mean, "ci_low": mean - half, "ci_high": mean + half, "n": 64, "unit": "unit"}
        for step, mean, half in zip(range(1000, 13000, 1000), mean_K.tolist(), half_K.tolist(), strict=True)
    }
    return {step: row | ({"null": 0.0} if null else {}) for step, row in rows.items()}


def test_the_highest_of_many_intervals_is_beyond_chance_no_more_often_than_alpha() -> None:
    """400 trajectories of 12 checkpoints without a trend. Measured: 13 with a null and 1 without one are called beyond
    chance; by intervals as they are 108, with the first checkpoint taken for exact 40."""
    alpha, series = 0.05, 400

    def hits(rule: Callable[[dict[int, dict[str, Any]]], bool], *, null: bool) -> int:
        return sum(rule(measured_rows(np.zeros(12), seed, null=null)) for seed in range(series))

    def widened(rows: dict[int, dict[str, Any]]) -> bool:
        return bool(measure_from_rows("m", rows, None, alpha).beyond_chance)

    def as_they_are(rows: dict[int, dict[str, Any]]) -> bool:  # mutant: each interval's own 95 %
        return bool(measure_from_rows("m", rows, None, 12 * alpha).beyond_chance)

    def first_is_exact(rows: dict[int, dict[str, Any]]) -> bool:  # mutant: the first checkpoint taken for the null
        base = rows[min(rows)]["value"]
        return widened({step: row | {"null": base} for step, row in rows.items()})

    most = binom.ppf(0.99, series, alpha)  # 31
    assert hits(widened, null=True) <= most < hits(as_they_are, null=True)
    assert hits(widened, null=False) <= most < hits(first_is_exact, null=False)


@pytest.mark.parametrize("null", [True, False])
def test_a_rise_is_found_by_its_intervals(null: bool) -> None:
    trend_K = np.where(np.arange(12) < 7, 0.0, 1.0)  # eight standard errors of a mean, from step 8000 on
    points = [
        SeriesPoint(revision=f"step{step}", step=step, table=HeadTable.from_rows([row]), state_hash=f"{step}")
        for step, row in measured_rows(trend_K, 0, null=null).items()
    ]
    said = findings_of(points, continuous=("m",)).verdict["measures"]["m"]
    assert said["beyond_chance"] and "interval of its highest of 12 values" in said["against_chance"]
    assert (said["emerges_after_step"], said["emerges_at_step"]) == (7000, 8000)


def test_noise_makes_no_rise_gradual() -> None:
    """200 steps from 0 to 8 standard errors at once, read at 12 checkpoints with their noise: measured, 3 of them are
    called gradual; by bounds without regard to noise 17."""
    trend_K = np.where(np.arange(12) < 7, 0.0, 1.0)
    gradual = without = 0
    for seed in range(200):
        measure = measure_from_rows("m", measured_rows(trend_K, seed, null=True), None, 0.05)
        exact = dataclasses.replace(measure, half_width_K=None)  # the mutant
        paces = [judge(each, 12_000, Rules(), rng())["pace"] for each in (measure, exact)]
        gradual, without = gradual + (paces[0] == "gradual"), without + (paces[1] == "gradual")
    assert gradual <= 10 < without


# -- from decoders to the verdict -------------------------------------------------------------------------------------


def test_runs_of_real_checkpoints_make_a_series(tmp_path: Path) -> None:
    """Three small models as revisions, each in a run's folder; then read back, matched, drawn."""
    family = prompts(bug_pairs=6, control_pairs=0)
    config = dataclasses.replace(NEOX, d_model=24, vocab_size=len(byte_level()))
    quick = {"groups_per_size": 3, "fractions": (0.0, 1.0), "sign_flips": 999, "bootstrap_draws": 100}
    decoder = drawn(config, dtype=torch.float32)
    for number, revision in enumerate(("step1000", "step2000", "step143000")):
        facts = {
            "name": revision,
            "factors": {},
            "machine": {},
            "config": {},
            "checkpoint": {"state_hash": f"{number}"},
        }
        with RunFolder(tmp_path / revision, facts) as record:
            if revision == "step2000":
                with torch.no_grad():
                    decoder = decoder.permuted(1, (2, 1, 0, 3))
                    for parameter in decoder.parameters():
                        parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            record.add("specialization", Specialization(**quick)(decoder, family, rng()), step=step_of(revision))
            save_circuits(decoder, 1, record.path / CIRCUITS)
    points = [
        read_point(RunRecord.read(folder), folder.name, step_of(folder.name)) for folder in sorted(tmp_path.iterdir())
    ]
    points.append(read_point(RunRecord.read(tmp_path / "step4000"), "step4000", 4000))
    findings = findings_of(points)
    assert findings.verdict["failed"] == {"step4000": "run absent"}
    assert findings.verdict["counted"] == ["step1000", "step2000", "step143000"]
    assert findings.verdict["split"]["splits"] == 6 and findings.verdict["split"]["least_possible_p"] == 2 / 6
    assert findings.verdict["measures"]["strength"]["against_chance"].endswith("cannot give less than 0.33")
    heads = findings.verdict["heads"]
    assert heads["kept_to_next"] == {"1000-2000": 0.5, "2000-143000": 1.0} and heads["chance"] == 0.25
    matched = findings.tables["head_matches"].to_pylist()
    assert [r["assigned"] for r in matched if (r["earlier_step"], r["later_step"]) == (1000, 2000)] == [2, 1, 0, 3]
    assert findings.table.summary()["heads_kept"]["value"] == 0.75
    timeline = findings.tables["timeline"].to_pylist()
    for row, p in zip(timeline, (points[0], points[2], points[3], points[1]), strict=True):
        if p.error is None:
            assert row["strength_nats"] == p.table.summary()["strength_nats"]["value"]
            assert row["strength_nats_ci_low"] == p.table.summary()["strength_nats"]["ci_low"]
    assert {"log_odds", "layers", "heads"} <= set(findings.figures)
    assert all(rendered(figure.spec(), "svg").startswith(b"<svg") for figure in findings.figures.values())
    with torch.no_grad():
        assert set(load_circuits(tmp_path / "step1000" / CIRCUITS)) == {"qk", "ov"}


def test_the_splits_of_one_layer() -> None:
    splits = balanced_splits(4, rng())
    delta_SP = rng(2).normal(size=(6, 2))
    summary = SplitSummary.of(split_table(splits, {1: delta_SP}, ["a", "b"]))
    assert summary.pairs == ("a", "b") and summary.layer == 1
    np.testing.assert_allclose(
        summary.even_P - summary.odd_P, delta_SP[splits.reference] - delta_SP[5 - splits.reference]
    )
    strength = np.mean(summary.even_P > 0) - np.mean(summary.odd_P > 0)
    assert summary.success_S[splits.reference] == strength
    with pytest.raises(
        ValueError, match=r"of layers \[0, 1\], .* set analysis.specialization.null_at_every_layer=false"
    ):
        SplitSummary.of(split_table(splits, {0: delta_SP, 1: delta_SP}, ["a", "b"]))


def test_equally_likely_answers_are_no_success() -> None:
    """Δ = 0 where even heads are patched and below it where odd ones are: neither half repairs."""
    level = planted(1000, 1000)
    assert level.splits is not None
    splits = balanced_splits(HEADS, rng())
    delta_SP = np.full((len(splits), 3), -1.0)
    delta_SP[splits.reference] = 0
    summary = SplitSummary.of(split_table(splits, {6: delta_SP}, ["a", "b", "c"]))
    assert summary.success_S[splits.reference] == 0 and summary.strength_S[splits.reference] == 1
    trajectory = SplitTrajectory.of([dataclasses.replace(level, splits=summary)])
    assert trajectory is not None and (trajectory.success_KP == 0).all()


def test_it_is_deterministic() -> None:
    points = [planted(step, 64000) for step in STEPS]
    one, other = findings_of(points, seed=3), findings_of(points[::-1], seed=3)
    assert one.verdict == other.verdict and one.table.rows() == other.table.rows()
    assert one.tables["timeline"].equals(other.tables["timeline"])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"threshold": 1.5}, "analysis.emergence.threshold=1.5 must be below 1"),
        ({"early": 0.8}, "analysis.emergence.early=0.8 must be below late=0.75"),
        ({"bootstrap_draws": 10}, "analysis.emergence.bootstrap_draws=10 must be at least 100"),
        ({"total_steps": 0}, "analysis.emergence.total_steps=0"),
        (
            {"judge": "headdyn.nowhere"},
            "analysis.emergence.judge=headdyn.nowhere names no module with a function judge",
        ),
        (
            {"judge": "headdyn.analysis"},
            "analysis.emergence.judge=headdyn.analysis names no module with a function judge",
        ),
    ],
)
def test_impossible_settings(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        build(Emergence, settings, "analysis.emergence")


def clusters(labels: list[int]) -> dict[str, pa.Table]:
    """What HeadClusters leaves of one layer: heads of one cluster are near each other."""
    method, parameter = TWO_MEANS
    place = {"layer": 6, "kind": "qk"}
    distances = [
        {**place, "head_a": a, "head_b": b, "distance": 0.1 if labels[a] == labels[b] else 1.0}
        for a, b in itertools.combinations(range(len(labels)), 2)
    ]
    rows = [{**place, "method": method, "parameter": float(parameter), "labels": labels}]
    return {"clusterings": pa.Table.from_pylist(rows), "distances": pa.Table.from_pylist(distances)}


def test_clusters_are_compared_from_one_checkpoint_to_the_next() -> None:
    """The same, then across: no two heads that were together still are, which is an adjusted Rand index of −1/2."""
    labels = {1000: [0, 0, 1, 1], 2000: [1, 1, 0, 0], 16000: [0, 1, 0, 1]}
    points = [planted(step, 64000) for step in STEPS[:5]]
    points = [dataclasses.replace(p, clusters=clusters(labels[p.step]) if p.step in labels else None) for p in points]
    findings = findings_of(points)
    rows = HeadTable(findings.tables["cluster_divergence"]).where(metric="qk_label_divergence").rows()
    assert [(row["step"], row["value"]) for row in rows] == [(2000, 0.0), (16000, pytest.approx(1.5))]
    assert "cluster_divergence" in findings.figures
