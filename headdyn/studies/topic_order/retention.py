"""How much of the order's effect outlasts the drop of positions, by layer, and whether heads fall into two groups.

The study read a retention from two differences, each of one training, and two groups of heads from a histogram. Here
retention is the interaction of order and drop at every layer, with seeds as units, and two groups are compared with
those of normal values (science.md §5). Letters: L layers, H heads.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from headdyn.core.numbers import count, fixed, listed, p_is, p_value
from headdyn.core.randomness import generator
from headdyn.core.records import Metric
from headdyn.core.statistics import draws_test, effect_over_seeds
from headdyn.report.blocks import Cell, Heading, Section, Table, cell
from headdyn.sweep.effect_words import detectable_size, is_effect, would_be_detected
from headdyn.sweep.effects import ALPHA, unrecovered, with_q
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.words import Statement

_QUESTION = "Does the effect of the order outlast the drop of positions?"
_MEASURES = ("selectivity", "probe_accuracy")
_SHARE = Metric(
    meaning="the share of the heads' variance that the best cut into two explains", scale=100, unit="points"
)
_STUDY_LAYER = 1  # the layer whose heads fell into two groups in the study
_NULL_DRAWS = 9_999
_ABOUT = (
    "The order's effect, topic-ordered less shuffled training, with RoPE and after DroPE, and their difference: the "
    "change by the drop. Averaged over MHA and GQA within a seed; intervals (95 %) and p over seeds, q over all "
    "layers and measures. Arms that have not recovered are left out."
)
_TWO_GROUPS = (
    "Do the heads of layer 1 fall into two groups by within-topic attention? The share of their variance that the best "
    "cut into two explains; p is the fraction of normal samples of as many heads in which a cut explains at least "
    "as much. The study saw two groups before the drop and one after it, without a null."
)


def sections(sweep: SweepRecord) -> list[Section]:
    """One section for all groups of runs that have both orders with and without positions; none without such groups."""
    blocks: list[Any] = []
    for group, complete in sweep.groups.items():
        jobs = [job for job in complete if not unrecovered(job.run)]
        if not (rows := retention(jobs)):
            continue
        blocks.append(Heading(group))
        columns = ["layer", "with RoPE", "after DroPE", "difference", "p", "q", "detectable"]
        for name in _MEASURES:
            metric = sweep.metric(name)
            cells = [_row(row, metric) for row in rows if row["measure"] == name]
            blocks += [Heading(metric.label), Table(columns=columns, rows=cells)] if cells else []
        if groups := two_groups(jobs):
            columns = ["arm", "heads", "share explained", "p"]
            cells = [[g["label"], g["heads"], f"{100 * g['share']:.0f} %", p_value(g["p"])] for g in groups]
            table = Table(columns=columns, rows=cells)
            blocks += [Heading("Two groups of heads"), _TWO_GROUPS, table, collapse(jobs)]
    return [Section("retention", _QUESTION, [_ABOUT, *blocks])] if blocks else []


def headlines(sweep: SweepRecord) -> list[Statement]:
    """At which layers the drop changes the order's effect, group by group; nothing from one seed."""
    statements = []
    for group, jobs in sweep.groups.items():
        rows = retention([job for job in jobs if not unrecovered(job.run)])
        if not any(row["p"] is not None for row in rows):
            continue
        texts = {effect: [_change(row, sweep) for row in rows if is_effect(row) is effect] for effect in (True, False)}
        lead = "No change of the order's effect was detected at any layer when positions were dropped."
        if texts[True]:
            lead = f"Dropping positions changes what topic order does, by {listed(texts[True])} (q < {ALPHA:g})."
        sentences = [lead, *(f"No change detected: {text}." for text in texts[False])]
        statements.append(Statement(_QUESTION, sentences, group))
    return statements


def _change(row: Mapping[str, Any], sweep: SweepRecord) -> str:
    metric = sweep.metric(row["measure"])
    text = f"{metric.label} at layer {row['layer']}, {metric.spelled(row, signed=True)} {metric.of_differences}"
    return text + would_be_detected(row, metric, family="all layers and measures")


def retention(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """For every measure and layer, the order's effect with RoPE, after DroPE, and their difference with p and q."""
    rows = []
    for measure in _MEASURES:
        values = _by_cell(jobs, measure)
        kinds = {kind for kind, *_ in values}
        if len({len(layers) for layers in values.values()}) > 1:
            continue  # models of different depths: their layers do not correspond
        per_seed = []
        for seed in sorted({seed for *_, seed in values}, key=str):
            if all(key in values for key in product(kinds, ("topic", "shuffled"), ("rope", "drope"), (seed,))):
                per_seed.append(
                    [
                        np.mean([values[k, "topic", p, seed] - values[k, "shuffled", p, seed] for k in kinds], axis=0)
                        for p in ("rope", "drope")
                    ]
                )
        for layer, (rope_N, drope_N) in enumerate(np.array(per_seed).transpose(2, 1, 0) if per_seed else ()):
            arms = {"rope": vars(effect_over_seeds(rope_N)), "drope": vars(effect_over_seeds(drope_N))}
            rows.append({"measure": measure, "layer": layer, **arms, **vars(effect_over_seeds(drope_N - rope_N))})
    return with_q(rows)


def two_groups(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """For every arm with enough heads, the share of variance that the best cut explains, and p against normals."""
    shares = []
    for job in jobs:
        values = _heads_of_layer(job)
        if values is not None:
            share = best_cut(values)
            p = float(draws_test(np.array(share), null_shares(len(values)), alternative="greater"))
            shares.append({"label": job.label, "heads": len(values), "share": share, "p": p})
    return shares


def collapse(jobs: Sequence[Job]) -> str:
    """A sentence on whether dropping positions lowers the share that the best cut explains, with seeds as units."""
    shares: dict[tuple[str, Any], dict[str, float]] = {}
    for job in jobs:
        values = _heads_of_layer(job)
        if values is not None:
            key = job.training, job.factors.get("seed")
            shares.setdefault(key, {})[str(job.factors.get("position_enc"))] = best_cut(values)
    by_seed: dict[Any, list[float]] = {}
    for (_, seed), arms in shares.items():
        if {"rope", "drope"} <= set(arms):
            by_seed.setdefault(seed, []).append(arms["drope"] - arms["rope"])
    effect = effect_over_seeds(np.array([np.mean(each) for each in by_seed.values()]))
    if effect.value is None:
        return "No training has both arms with enough heads, so that no collapse can be judged."
    numbers = (effect.value, effect.ci_low, effect.ci_high)
    change, *ends = (fixed(100 * number, 0, signed=True) for number in numbers if number is not None)
    interval = f" [{', '.join(ends)}]" if ends else ""
    tested = "no interval from one seed" if effect.p is None else f"{p_is(effect.p)}, {count(effect.n, 'seed')}"
    (row,) = with_q([vars(effect)])  # a family of one
    tested += would_be_detected(row, _SHARE, "; {}", decimals=0)
    return f"The drop changes the share explained by {change}{interval} points ({tested})."


def best_cut(values_H: np.ndarray) -> float:
    """The largest share of the values' variance that a cut into lower and upper ones explains; 0 if all are equal.

    Each group has at least two values, so there must be four or more.
    """
    values_H = np.sort(values_H - values_H.mean())
    total = (values_H**2).sum()
    if total == 0:
        return 0.0
    cuts = np.arange(2, len(values_H) - 1)
    below = values_H.cumsum()[cuts - 1]  # sums of the lower groups; those of the upper groups are their negatives
    return float((below**2 * (1 / cuts + 1 / (len(values_H) - cuts))).max() / total)


@cache
def null_shares(heads: int) -> np.ndarray:
    """`best_cut` of normal samples, the same for every arm of as many heads."""
    draws = generator(0, f"two groups/{heads}").standard_normal((_NULL_DRAWS, heads))
    return np.array([best_cut(draw) for draw in draws])


def _heads_of_layer(job: Job) -> np.ndarray | None:
    """Within-topic attention of the heads of the study's layer; None for fewer than four heads (no cut into pairs)."""
    within = job.heads.where(metric="within_ratio", layer=_STUDY_LAYER)
    values = [row["value"] for row in within.rows() if row["head"] is not None and row["value"] is not None]
    return np.array(values) if len(values) >= 4 else None


def _by_cell(jobs: Sequence[Job], measure: str) -> dict[tuple[Any, ...], np.ndarray]:
    """The measure at every layer (mean over heads), by (all other factors, order, positions, seed)."""
    cells = {}
    for job in jobs:
        layers: dict[int, list[float]] = {}
        for row in job.heads.where(metric=measure).rows():
            if row["layer"] is not None and row["value"] is not None:
                layers.setdefault(row["layer"], []).append(row["value"])
        if layers:
            axes = ("data_ordering", "position_enc", "seed")
            others = str(sorted((name, str(level)) for name, level in job.factors.items() if name not in axes))
            cell_of_job = (others, *(job.factors.get(name) for name in axes))
            cells[cell_of_job] = np.array([np.mean(layers[layer]) for layer in sorted(layers)])
    return cells


def _row(row: Mapping[str, Any], metric: Metric) -> list[Cell | str]:
    cells = [cell(part, metric, signed=True) for part in (row["rope"], row["drope"], row)]
    p, q = ("" if row[name] is None else p_value(row[name]) for name in ("p", "q"))
    return [str(row["layer"]), *cells, p, q, detectable_size(row, metric)]
