"""When do heads specialise? What a series of checkpoints says, by the thresholded and by the continuous measure.

Emergence over checkpoints, science.md §15. Letters as in onset.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from scipy.stats import norm

from headdyn.analysis.clusters.divergence import cluster_divergence
from headdyn.analysis.series.head_matching import Match, match_series, match_table
from headdyn.analysis.series.judgement import Measure, Rules, judge
from headdyn.analysis.series.onset import crossings
from headdyn.analysis.series.points import SeriesPoint, excluded_from, in_order
from headdyn.analysis.series.split_trajectory import SplitTrajectory
from headdyn.analysis.series.timeline import (
    SUCCESSES,
    detail_figure,
    divergence_figure,
    heads_figure,
    layers_figure,
    log_odds_figure,
    strength_figure,
    success_figure,
    timeline_table,
)
from headdyn.core.records import Findings, HeadTable, Metric

_MEASURES = ("strength", "strength_nats")


@dataclass(frozen=True, kw_only=True)
class SeriesFindings(Findings):
    """Findings of a whole series; `verdict` holds plain values for verdict.json, `tables["timeline"]` the timeline."""

    verdict: Mapping[str, Any]


class SeriesAnalysis(Protocol):
    """An analysis of a whole series, whose `needs` holds "series"; called when the sweep's runs have ended."""

    metrics: ClassVar[Mapping[str, Metric]]

    def __call__(self, points: Sequence[SeriesPoint], generator: np.random.Generator, /) -> SeriesFindings: ...


@dataclass(frozen=True, kw_only=True)
class Emergence:
    """Dates the emergence of even/odd specialisation over a series of checkpoints, and judges the seed's H1 to H5.

    `strength` (the thresholded measure) emerges where it first exceeds `threshold`; `strength_nats` (the continuous
    one) where it first exceeds half of its highest value, if even/odd is beyond chance: among all splits, by the
    maximum over the trajectory, p ≤ `alpha` where even exceeds odd. A jump of the first need not be one of the second.
    The emergence point is an interval, (last below, first above]. Probabilities are those of bootstrap draws of the
    pairs. Further model metrics can be followed: `thresholded` above `threshold`, `continuous` above half of their
    highest excess over the null (over the first checkpoint where rows have no null), if that is beyond chance by its
    p (times the number of checkpoints) or, without one, by its interval, widened for as many looks.

    Heads are matched between checkpoints where these kept their circuits, clusters compared where HeadClusters ran.
    `final` is the revision that is known to be the end of training, `total_steps` when that was; both default to the
    last checkpoint. Revisions with the weights of another are excluded (`headdyn.models.integrity`), failed ones are
    passed over, both with their reason.
    Raises ValueError for impossible settings and for checkpoints that did not measure the same splits and pairs.
    """

    threshold: float = 0.5
    early: float = 0.25
    late: float = 0.75
    first: float = 0.10
    sudden: float = 0.5
    turn: float = 0.1
    alpha: float = 0.05
    final: str | None = None
    total_steps: int | None = None
    thresholded: tuple[str, ...] = ("seed_strength",)
    continuous: tuple[str, ...] = ()
    bootstrap_draws: int = 2_000
    relabellings: int = 999

    rows: ClassVar[Literal["model"]] = "model"
    needs: ClassVar[frozenset[str]] = frozenset({"series"})
    metrics: ClassVar[Mapping[str, Metric]] = {
        "trajectory_strength_nats": Metric(
            meaning="strength_nats where even/odd stands out most; p over all splits and checkpoints", unit="nats"
        ),
        "heads_kept": Metric(
            meaning="share of heads most like the head of their own index one checkpoint before", low=0, high=1
        ),
        "strength_emerges_at": Metric(meaning="first step at which strength has emerged", low=0, unit="steps"),
        "strength_emerges_after": Metric(meaning="last step before strength emerged", low=0, unit="steps"),
        "strength_largest_jump": Metric(meaning="share of strength's rise in its steepest interval", low=0, high=1),
        "strength_reversals": Metric(meaning="changes of strength's direction, none of them noise", low=0),
        "strength_nats_emerges_at": Metric(
            meaning="first step at which strength_nats has emerged", low=0, unit="steps"
        ),
        "strength_nats_emerges_after": Metric(meaning="last step before strength_nats emerged", low=0, unit="steps"),
        "strength_nats_largest_jump": Metric(
            meaning="share of strength_nats' rise in its steepest interval", low=0, high=1
        ),
        "strength_nats_reversals": Metric(meaning="changes of strength_nats' direction, none of them noise", low=0),
    }

    def __post_init__(self) -> None:
        for name in ("threshold", "early", "late", "first", "sudden", "turn", "alpha"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"analysis.emergence.{name}={getattr(self, name)} must lie between 0 and 1")
        if not self.early < self.late:
            raise ValueError(f"analysis.emergence.early={self.early} must be below late={self.late}")
        for name, least in (("bootstrap_draws", 100), ("relabellings", 99)):
            if getattr(self, name) < least:
                raise ValueError(f"analysis.emergence.{name}={getattr(self, name)} must be at least {least}")
        if self.total_steps is not None and self.total_steps < 1:
            raise ValueError(f"analysis.emergence.total_steps={self.total_steps} must be at least 1")

    def __call__(self, points: Sequence[SeriesPoint], generator: np.random.Generator) -> SeriesFindings:
        """The verdict, model rows, the timeline's figures and the tables it knows: `timeline`, and where the
        checkpoints kept what they need, `head_matches` and `cluster_divergence`."""
        points = in_order(points)
        total = self.total_steps or max((p.step for p in points if p.step is not None), default=1)
        excluded, duplicates = excluded_from(points, self.final)
        counted = [p for p in points if p.error is None and p.revision not in excluded]
        steps = [p.step for p in counted if p.step is not None]
        verdict: dict[str, Any] = {
            "checkpoints": len(points),
            "counted": [p.revision for p in counted],
            "excluded": excluded,
            "duplicates": duplicates,
            "failed": {p.revision: p.error for p in points if p.error is not None},
            "unmeasured": [*self.thresholded, *self.continuous],  # unless what follows finds them
            "unhashed": [p.revision for p in points if p.error is None and p.state_hash is None],
            "total_steps": total,
        }
        if len(counted) < 2:
            verdict["reason"] = f"{len(counted)} checkpoints that count are no series"
            tables = {"timeline": timeline_table(points, excluded, total, {})}
            return SeriesFindings(table=HeadTable.concat([]), tables=tables, verdict=verdict)
        trajectory = SplitTrajectory.of(counted)
        measures = self._measures(counted, steps, trajectory)
        rules = Rules(early=self.early, late=self.late, first=self.first, sudden=self.sudden, turn=self.turn)
        said = {m.name: judge(m, total, rules, generator, self.bootstrap_draws) for m in measures}
        matches = match_series({p.step: p.circuits for p in counted if p.circuits is not None and p.step is not None})
        divergence = self._divergence(counted, generator)
        no_splits = {"reason": "no splits were measured at every checkpoint"}
        verdict |= {
            "widest_interval": _widest(steps, total),
            "even_odd": no_splits if trajectory is None else trajectory.verdict(steps, self.alpha),
            "measures": said,
            "unmeasured": [name for name in verdict["unmeasured"] if name not in said],
            "agreement": _agreement(said),
            "capability": _capability(counted, self.threshold),
            "heads": _kept(matches),
        }
        columns = {} if trajectory is None else trajectory.columns()
        tables = {"timeline": timeline_table(points, excluded, total, columns)}
        if matches:
            tables["head_matches"] = match_table(matches)
        if len(divergence):
            tables["cluster_divergence"] = divergence.table
        figures = {
            **{
                name: strength_figure(counted, name, unit, said[name], columns.get(f"{name}_band"))
                for name, unit in (("strength", "share of bug pairs"), ("strength_nats", "nats"))
                if name in said
            },
            "success": success_figure(counted),
            "log_odds": log_odds_figure(counted),
            "layers": layers_figure(counted),
            "detail": detail_figure(steps, {m.name: m.value_K for m in measures if m.steps == tuple(steps)}, said),
            "heads": heads_figure(matches),
            "cluster_divergence": divergence_figure(divergence),
        }
        return SeriesFindings(
            table=HeadTable.from_rows(_rows(said, trajectory, matches)),
            figures={name: figure for name, figure in figures.items() if figure is not None},
            tables=tables,
            verdict=verdict,
        )

    def _measures(
        self, counted: Sequence[SeriesPoint], steps: Sequence[int], trajectory: SplitTrajectory | None
    ) -> list[Measure]:
        """Even/odd's two measures, by pair where there are splits, then those asked for, where tables hold them."""
        found = [] if trajectory is None else trajectory.measures(steps, self.threshold, self.alpha)
        known = {measure.name for measure in found}
        for name in dict.fromkeys((*_MEASURES, *self.thresholded, *self.continuous)):
            rows = {p.step: p.summary().get(name, {}) for p in counted if p.step is not None}
            there = {step: row for step, row in rows.items() if "value" in row}
            if len(there) > 1 and name not in known:
                relative = name in self.continuous or name == "strength_nats"
                found.append(_from_rows(name, there, None if relative else self.threshold, self.alpha))
        return found

    def _divergence(self, counted: Sequence[SeriesPoint], generator: np.random.Generator) -> HeadTable:
        """Rows of every checkpoint that kept its clusters against the one before that did, under its own step."""
        kept = [point for point in counted if point.clusters is not None]
        tables = []
        for before, after in pairwise(kept):
            assert before.clusters is not None and after.clusters is not None
            table = cluster_divergence(before.clusters, after.clusters, generator, relabellings=self.relabellings)
            tables.append(table.labelled(step=after.step))
        return HeadTable.concat(tables)


def _from_rows(name: str, rows: Mapping[int, Mapping[str, Any]], threshold: float | None, alpha: float) -> Measure:
    """A metric's trajectory from its rows; without a threshold, its excess over the null or the first checkpoint."""
    steps, value_K = tuple(rows), np.array([row["value"] for row in rows.values()])
    if threshold is not None:
        return Measure(name=name, steps=steps, value_K=value_K, threshold=threshold)
    base_K = np.array([row.get("null", value_K[0]) for row in rows.values()])
    highest = int((value_K - base_K).argmax())
    row, told = rows[steps[highest]], {}
    if "p" in row:
        p = min(1.0, len(steps) * row["p"])
        told = {
            "p": p,
            "beyond_chance": bool(p <= alpha),
            "against_chance": f"p = {p:.3g}, its highest value's times the checkpoints",
        }
    elif "ci_low" in row:
        # The highest of K checkpoints is looked for: its interval is widened to 1 − alpha/K, as a normal one would be.
        wider = norm.ppf(1 - alpha / (2 * len(steps))) / norm.ppf(0.975)
        low = row["value"] - wider * (row["value"] - row["ci_low"])
        first, against = rows[steps[0]], base_K[highest]
        if "null" not in row:  # the first checkpoint is no exact base either
            against = first["value"] + wider * (first.get("ci_high", first["value"]) - first["value"])
        why = f"the interval of its highest of {len(steps)} values begins at {low:.3g}, chance gives {against:.3g}"
        told = {"beyond_chance": bool(low > against), "against_chance": why}
    return Measure(name=name, steps=steps, value_K=value_K - base_K, **told)


def _widest(steps: Sequence[int], total: int) -> dict[str, Any]:
    after, at = max(pairwise(steps), key=lambda pair: pair[1] - pair[0])
    return {"steps": [after, at], "training_share": (at - after) / total}


def _agreement(said: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Whether the thresholded and the continuous measure tell one story: a score that jumps may ride on a slow rise."""
    if not all(name in said for name in _MEASURES):
        return {"reason": f"{' and '.join(name for name in _MEASURES if name not in said)} was not measured"}
    one, other = (said[name] for name in _MEASURES)
    return {word: one[word] == other[word] for word in ("class", "pace", "emerges_at_step")}


def _capability(counted: Sequence[SeriesPoint], threshold: float) -> dict[str, dict[str, Any]]:
    """How often each success rate rises above the threshold and falls again: what is learnt may be lost."""
    found = {}
    for metric in SUCCESSES:
        values = [row["value"] for p in counted if "value" in (row := p.summary().get(metric, {}))]
        if values:
            appears, disappears = crossings(np.array(values), threshold)
            found[metric] = {"appearances": appears, "disappearances": disappears, "last": values[-1]}
    return found


def _kept(matches: Mapping[tuple[int, int], Match]) -> dict[str, Any]:
    if not matches:
        return {"reason": "the checkpoints' circuits were not kept"}
    steps = sorted({step for pair in matches for step in pair})
    last = {str(step): matches[step, steps[-1]].kept for step in steps[:-1]}
    following = {f"{a}-{b}": matches[a, b].kept for a, b in pairwise(steps)}
    return {"kept_to_next": following, "kept_to_last": last, "chance": 1 / len(next(iter(matches.values())).best_J)}


def _rows(
    said: Mapping[str, Mapping[str, Any]], trajectory: SplitTrajectory | None, matches: Mapping[tuple[int, int], Match]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in _MEASURES:
        if name in said:
            rows += _measure_rows(name, said[name])
    if trajectory is not None:
        at, p = trajectory.best
        value, pairs = trajectory.nats_KP[at].mean().item(), trajectory.nats_KP.shape[1]
        rows.append(
            {"metric": "trajectory_strength_nats", "value": value, "null": 0.0, "p": p, "n": pairs, "unit": "pair"}
        )
    if matches:
        steps = sorted({step for pair in matches for step in pair})
        kept = [matches[pair].kept for pair in pairwise(steps)]
        heads = len(next(iter(matches.values())).best_J)
        row = {"metric": "heads_kept", "value": float(np.mean(kept)), "null": 1 / heads}
        rows.append(row | {"n": heads, "unit": "head"})
    return rows


def _measure_rows(name: str, said: Mapping[str, Any]) -> list[dict[str, Any]]:
    count: dict[str, Any] = {"n": said["n"] or 1, "unit": "pair"}
    ends = said.get("emerges_at_step_95")
    interval = {} if ends is None else {"ci_low": float(ends[0]), "ci_high": float(ends[1])}
    none = said.get("none_reason") or "it is there from the first checkpoint on"

    def row(kind: str, value: float | None, **columns: Any) -> dict[str, Any]:
        there = {"reason": none} if value is None else {"value": float(value), **columns}
        return {"metric": f"{name}_{kind}", **there, **count}

    return [
        row("emerges_at", said["emerges_at_step"], **interval),
        row("emerges_after", said["emerges_after_step"]),
        row("largest_jump", said.get("jump_share") if said["pace"] else None),
        row("reversals", said["reversals"]),
    ]
