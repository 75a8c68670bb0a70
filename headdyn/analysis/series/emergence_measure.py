"""The verdict on a series of checkpoints: which checkpoints count, a judgement on each measure, which head is which.

Letters as in onset.py.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import norm

from headdyn.analysis.clusters import LEAST_SILHOUETTE, SILHOUETTES
from headdyn.analysis.clusters.divergence import cluster_divergence
from headdyn.analysis.contract import SeriesFindings
from headdyn.analysis.head_profiles import of_layer, profile_correlations
from headdyn.analysis.series.emergence import Emergence
from headdyn.analysis.series.head_matching import Matches, head_cosines, kept_by_chance, match_series, match_table
from headdyn.analysis.series.judgement import Judgements, Measure, judge
from headdyn.analysis.series.onset import crossings
from headdyn.analysis.series.points import SUCCESSES, TASK_METRICS, SeriesPoint, excluded_from, in_order, with_metric
from headdyn.analysis.series.prediction import moving_together
from headdyn.analysis.series.split_trajectory import SplitTrajectory
from headdyn.analysis.series.timeline import series_figures, timeline_table
from headdyn.core.kept_parts import Part, parts
from headdyn.core.records import HeadTable

_NOT_MATCHED = "no two checkpoints that count have what heads are matched by"
EVEN_ODD = ("strength", "strength_nats")


def measure(settings: Emergence, points: Sequence[SeriesPoint], generator: np.random.Generator) -> SeriesFindings:
    """Everything that `Emergence` says of a series under these settings."""
    points = in_order(points)
    total = settings.total_steps or max((p.step for p in points if p.step is not None), default=0) or 1
    excluded, duplicates = excluded_from(points, settings.final)
    counted = [p for p in points if p.error is None and p.revision not in excluded]
    steps = [p.step for p in counted if p.step is not None]
    verdict: dict[str, Any] = {
        "checkpoints": len(points),
        "counted": [p.revision for p in counted],
        "excluded": excluded,
        "duplicates": duplicates,
        "failed": {p.revision: p.error for p in points if p.error is not None},
        "unmeasured": [*settings.thresholded, *settings.continuous],
        "unhashed": [p.revision for p in points if p.error is None and p.state_hash is None],
        "total_steps": total,
    }
    if len(counted) < 2:
        verdict["reason"] = f"{len(counted)} checkpoints that count are no series"
        tables = {"timeline": timeline_table(points, excluded, total, {})}
        return SeriesFindings(table=HeadTable.concat([]), tables=tables, verdict=verdict)
    trajectory = SplitTrajectory.of(counted)
    measures = _measures(settings, counted, steps, trajectory)
    judgements = {}
    for course in measures:
        judgement = judge(course, total, settings, generator, settings.bootstrap_draws)
        judgements[course.name] = judgement | settings.hypotheses(judgement)
    circuits = {p.step: p.circuits for p in counted if p.circuits is not None and p.step is not None}
    profiles = {
        p.step: of_layer(p.profiles, settings.layer) for p in counted if p.profiles is not None and p.step is not None
    }
    by_weights, by_behaviour = match_series(circuits, head_cosines), match_series(profiles, profile_correlations)
    divergence = _divergence(counted, settings.relabellings, generator)
    no_splits = {"reason": "no splits were measured at every checkpoint"}
    after, at = max(pairwise(steps), key=lambda pair: pair[1] - pair[0])
    verdict |= {
        "widest_interval": {"steps": [after, at], "training_share": (at - after) / total},
        "split": no_splits if trajectory is None else trajectory.verdict(steps, settings.alpha),
        "measures": judgements,
        "unmeasured": [name for name in verdict["unmeasured"] if name not in judgements],
        "agreement": _agreement(judgements),
        "order": _order(judgements),
        "capability": _capability(counted, settings.threshold),
        "heads": _kept(by_weights, "the checkpoints' circuits were not kept")
        | {"by_behaviour": _followed(by_behaviour, settings.relabellings, generator)},
        "moving_together": moving_together(_courses(counted, measures)),
    }
    columns = {} if trajectory is None else trajectory.columns()
    tables = {"timeline": timeline_table(points, excluded, total, columns)}
    kinds = {"weights": by_weights, "behaviour": by_behaviour}
    if matched := [match_table(by, matches) for by, matches in kinds.items() if matches]:
        tables["head_matches"] = pa.concat_tables(matched)
    if len(divergence):
        tables["cluster_divergence"] = divergence.table
    return SeriesFindings(
        table=HeadTable.concat(_rows(judgements, trajectory, by_weights, by_behaviour)),
        figures=series_figures(counted, measures, judgements, by_weights, divergence),
        tables=tables,
        verdict=verdict,
    )


def _measures(
    settings: Emergence, counted: Sequence[SeriesPoint], steps: Sequence[int], trajectory: SplitTrajectory | None
) -> list[Measure]:
    """Even/odd's two measures (by pair if splits were measured), then those of the settings that were measured."""
    least_nats = settings.least.get("strength_nats", 0.0)
    measures = [] if trajectory is None else trajectory.measures(steps, settings.threshold, settings.alpha, least_nats)
    names = dict.fromkeys((*EVEN_ODD, *settings.thresholded, *settings.continuous))
    by_pair = {measure.name for measure in measures}
    for name in [name for name in names if name not in by_pair]:
        rows = with_metric(counted, name)
        if len(rows) > 1:
            relative = name in settings.continuous or name == "strength_nats"
            threshold, least = None if relative else settings.threshold, settings.least.get(name, 0.0)
            measures.append(measure_from_rows(name, rows, threshold, settings.alpha, least))
    return measures


def measure_from_rows(
    name: str, rows: Mapping[int, Mapping[str, Any]], threshold: float | None, alpha: float, least: float = 0.0
) -> Measure:
    """A metric's trajectory from its rows by step; without a threshold, its excess over the null or first checkpoint.

    At a checkpoint where that excess is below `least` nothing has emerged, whatever its p. A silhouette must reach 0.25
    instead, below which there are no groups. `alpha` is the level of the test against chance.
    """
    steps, value_K = tuple(rows), np.array([row["value"] for row in rows.values()])
    base_K, low_K, p_K = (
        np.array([row.get(column, missing) for row in rows.values()])
        for column, missing in (("null", value_K[0]), ("ci_low", np.nan), ("p", np.nan))
    )
    first = rows[steps[0]]
    # Without a null the first checkpoint takes its place, with its own uncertainty.
    chance_K = base_K if "null" in first else base_K + (first.get("ci_high", value_K[0]) - value_K[0])
    half_width_K = value_K - low_K if np.isfinite(low_K).all() else None
    band_K = None
    if half_width_K is not None:
        band_K = chance_K + half_width_K
    elif np.isfinite(p_K).all():
        band_K = np.where((p_K <= 0.05) & (value_K > base_K), -np.inf, np.inf)
    size_K, size_name, bound_name = value_K - base_K, "excess", "the least that counts"
    if name in SILHOUETTES:
        size_K, size_name, bound_name, least = value_K, "value", "too small for groups", LEAST_SILHOUETTE
    too_small_K = size_K < least if least else None
    common: dict[str, Any] = {"name": name, "steps": steps, "half_width_K": half_width_K, "too_small_K": too_small_K}
    if threshold is not None:
        return Measure(value_K=value_K, threshold=threshold, band_K=band_K, **common)
    highest, test = int((value_K - base_K).argmax()), dict[str, Any]()
    if np.isfinite(p_K[highest]):
        p = min(1.0, len(steps) * p_K[highest].item())
        test = {
            "p": p,
            "beyond_chance": p <= alpha,
            "against_chance": f"p = {p:.3g}, its highest value's times the checkpoints",
        }
    elif np.isfinite(low_K[highest]):
        # The highest of K values was selected: its interval is widened to 1 − alpha/K, as a normal one would be.
        wider = norm.ppf(1 - alpha / (2 * len(steps))) / norm.ppf(0.975)
        low = value_K[highest] - wider * (value_K[highest] - low_K[highest])
        against = base_K[highest] + wider * (chance_K[highest] - base_K[highest])
        comparison = (
            f"the interval of its highest of {len(steps)} values begins at {low:.3g}, chance gives {against:.3g}"
        )
        test = {"beyond_chance": bool(low > against), "against_chance": comparison}
    if too_small_K is not None and too_small_K.all():
        words = f"its highest {size_name}, {size_K.max():.2g}, is below {least:g}, {bound_name}"
        test |= {"beyond_chance": False, "against_chance": words}
    band_K = None if band_K is None else band_K - base_K
    return Measure(value_K=value_K - base_K, band_K=band_K, **common, **test)


def _courses(counted: Sequence[SeriesPoint], measures: Sequence[Measure]) -> dict[str, dict[int, float]]:
    """The values by step of every measure, and of the metrics that say how well the model does its task."""
    courses = {m.name: dict(zip(m.steps, m.value_K.tolist(), strict=True)) for m in measures}
    for metric in TASK_METRICS:
        rows = with_metric(counted, metric)
        courses |= {metric: {step: row["value"] for step, row in rows.items()}} if rows else {}
    return courses


def _order(judgements: Judgements) -> dict[str, dict[str, Any]]:
    """The measures in order of their onset by each criterion, and the pairs in this order whose intervals are apart."""
    order = {}
    for criterion in ("first_departure", "half_height"):
        dates = {name: judgement["onsets"].get(criterion, {}) for name, judgement in judgements.items()}
        intervals = {name: [date["after_step"], date["at_step"]] for name, date in dates.items() if "at_step" in date}
        by_date = sorted(intervals, key=lambda name: intervals[name][1])
        sure = [
            [one, other]
            for one, other in permutations(by_date, 2)
            if intervals[other][0] is not None and intervals[one][1] <= intervals[other][0]
        ]
        order[criterion] = {"intervals": {name: intervals[name] for name in by_date}, "surely_before": sure}
    return order


def _divergence(counted: Sequence[SeriesPoint], relabellings: int, generator: np.random.Generator) -> HeadTable:
    """Rows, labelled by step, that compare every checkpoint with clusters with the one before it that has clusters."""
    clusters = [(point.step, point.clusters) for point in counted if point.clusters is not None]

    def compared(at: slice) -> Part:
        (_, before), (_, after) = clusters[at.start : at.start + 2]
        table = cluster_divergence(before, after, generator, relabellings=relabellings).table
        return {"rows": np.array(json.dumps(table.to_pylist()))}

    done = parts("comparing clusters", "checkpoints", len(clusters) - 1, 1, compared, generator=generator)
    return HeadTable.concat(
        HeadTable.from_rows(json.loads(str(part["rows"]))).labelled(step=step)
        for (step, _), (_, part) in zip(clusters[1:], done, strict=True)
    )


def _agreement(judgements: Judgements) -> dict[str, Any]:
    """Whether the thresholded and the continuous measure agree; the former may jump where the latter rises slowly."""
    missing = [name for name in EVEN_ODD if name not in judgements]
    if missing:
        return {"reason": f"{' and '.join(missing)} was not measured"}
    thresholded, continuous = (judgements[name] for name in EVEN_ODD)
    return {key: thresholded[key] == continuous[key] for key in ("class", "pace", "emerges_at_step")}


def _capability(counted: Sequence[SeriesPoint], threshold: float) -> dict[str, dict[str, Any]]:
    """How often each success rate rises above the threshold and falls again."""
    rates = {metric: [row["value"] for row in with_metric(counted, metric).values()] for metric in SUCCESSES}
    changes = {metric: crossings(np.array(values), threshold) for metric, values in rates.items() if values}
    return {
        metric: {"appearances": appears, "disappearances": disappears, "last": rates[metric][-1]}
        for metric, (appears, disappears) in changes.items()
    }


def _kept(matches: Matches, lacking: str) -> dict[str, Any]:
    """Share of heads most like the earlier head of their own index, at the next checkpoint and at the last."""
    if not matches:
        return {"reason": lacking}
    steps = sorted({step for pair in matches for step in pair})
    return {
        "kept_to_next": {f"{a}-{b}": matches[a, b].own_index_share for a, b in pairwise(steps)},
        "kept_to_last": {str(step): matches[step, steps[-1]].own_index_share for step in steps[:-1]},
        "chance": 1 / len(next(iter(matches.values())).best_J),
    }


def _followed(matches: Matches, relabellings: int, generator: np.random.Generator) -> dict[str, Any]:
    """The shares of `_kept` for matches by behaviour, whether chance explains them, and which heads moved.

    `p_own_index` holds for every two matched checkpoints the p over random assignments of heads to indices.
    `moved_by_last` lists by earlier step the heads that are paired with another index at the last checkpoint, each as
    [index at the last, index at the earlier, correlation].
    """
    shares = _kept(matches, "the checkpoints did not keep what heads do on every sequence or pair")
    if not matches:
        return shares
    last = max(later for _, later in matches)
    p = {f"{a}-{b}": kept_by_chance(match, relabellings, generator) for (a, b), match in matches.items()}
    moved = {
        str(a): [[j, h, match.cosine_HJ[h, j].item()] for j, h in enumerate(match.assigned_J.tolist()) if j != h]
        for (a, b), match in matches.items()
        if b == last
    }
    return shares | {"p_own_index": p, "moved_by_last": moved}


def _rows(
    judgements: Judgements, trajectory: SplitTrajectory | None, by_weights: Matches, by_behaviour: Matches
) -> list[HeadTable]:
    rows = [row for name in EVEN_ODD if name in judgements for row in _dates(name, judgements[name])]
    if trajectory is not None:
        (at, p), nats_KP = trajectory.best, trajectory.nats_KP
        columns: dict[str, Any] = {"null": 0.0, "p": p, "n": nats_KP.shape[1], "unit": "pair"}
        rows.append(HeadTable.whole("trajectory_strength_nats", nats_KP[at].mean(), **columns))
    for metric, matches in (("heads_kept", by_weights), ("heads_kept_by_behaviour", by_behaviour)):
        if matches:
            shares, heads = _kept(matches, "")["kept_to_next"], len(next(iter(matches.values())).best_J)
            mean = float(np.mean(list(shares.values())))
            rows.append(HeadTable.whole(metric, mean, null=1 / heads, n=heads, unit="head"))
        else:
            rows.append(HeadTable.whole(metric, None, reason=_NOT_MATCHED))
    return rows


def _dates(name: str, judgement: Mapping[str, Any]) -> list[HeadTable]:
    at, ends = judgement["emerges_at_step"], judgement.get("emerges_at_step_95")
    low, high = (np.nan, np.nan) if at is None or ends is None else ends
    reason = judgement.get("none_reason") or "it is there from the first checkpoint on"
    row = partial(HeadTable.whole, reason=reason, n=judgement["n"] or 1, unit="pair")
    return [
        row(f"{name}_emerges_at", at, ci_low=float(low), ci_high=float(high)),
        row(f"{name}_emerges_after", judgement["emerges_after_step"]),
        row(f"{name}_largest_jump", judgement.get("jump_share") if judgement["pace"] else None),
        row(f"{name}_reversals", judgement["reversals"]),
    ]
