"""Do early checkpoints tell which heads will have a role at the end? Ranks within layers (science.md §19).

K checkpoints, L layers, H heads; R relabellings or resamples. Ranks within layers leave out differences between layers.
Also which curves of a training move together (science.md §15): S trainings, C changes from checkpoint to checkpoint.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headdyn.core.kept_parts import Part, parts
from headdyn.core.statistics import at_least_as_high, benjamini_hochberg

_FEWEST_CHANGES = 4  # the rank correlation of three changes has only the values ±0.5 and ±1
_MOST_ORDERS = math.factorial(7)  # of trainings: up to this number all orders are taken, beyond it `_RANDOM_ORDERS`
_RANDOM_ORDERS = 4_999


def ranks_in_layers(value_XLH: np.ndarray) -> np.ndarray:
    """The rank of every head in its layer, ties averaged, less the layer's mean; heads without a value rank lowest."""
    value_XLH = np.where(np.isnan(value_XLH), -np.inf, value_XLH)
    below_XLH = (value_XLH[..., :, None] > value_XLH[..., None, :]).sum(-1)
    equal_XLH = (value_XLH[..., :, None] == value_XLH[..., None, :]).sum(-1)
    return below_XLH + (equal_XLH - value_XLH.shape[-1]) / 2


def relabelled(rank_LH: np.ndarray, draws: int, generator: np.random.Generator) -> tuple[np.ndarray, bool]:
    """The ranks under relabellings of the heads within layers, [R, L, H], the first as given.

    All (H!)^L relabellings where they are at most `draws`; else `draws` random ones follow the given ranks (Phipson &
    Smyth 2010). Also returns whether these are all.
    """
    layers, heads = rank_LH.shape
    if math.factorial(heads) ** layers <= draws:
        order_XH = np.array(list(itertools.permutations(range(heads))))
        return np.stack([rank_LH[np.arange(layers)[:, None], order_XH[list(choice_L)]]
                         for choice_L in itertools.product(range(len(order_XH)), repeat=layers)]), True  # fmt: skip
    repeated_RLH = np.broadcast_to(rank_LH, (draws, layers, heads))
    return np.concatenate((rank_LH[None], generator.permuted(repeated_RLH, axis=-1))), False


def correlations(one_XLH: np.ndarray, other_XLH: np.ndarray) -> np.ndarray:
    """Spearman's ρ within layers, [X]: all layers' centred ranks taken together; 0 where all heads of a layer tie."""
    product_X, one_X, other_X = ((a * b).sum((-2, -1)) for a, b in
                                 ((one_XLH, other_XLH), (one_XLH, one_XLH), (other_XLH, other_XLH)))  # fmt: skip
    size_X = np.sqrt(one_X * other_X)
    return np.divide(product_X, size_X, out=np.zeros(np.shape(size_X)), where=size_X > 0)


def interval(
    rank_LH: np.ndarray, last_LH: np.ndarray, draws: int, generator: np.random.Generator
) -> tuple[float, float]:
    """95 % percentile interval of the correlation over heads, resampled within their layers."""
    layers, heads = rank_LH.shape
    picks_RLH = generator.integers(heads, size=(draws, layers, heads))
    resampled = (ranks[np.arange(layers)[:, None], picks_RLH] for ranks in (rank_LH, last_LH))
    centred = (rank_RLH - rank_RLH.mean(-1, keepdims=True) for rank_RLH in resampled)
    low, high = np.quantile(correlations(*centred), (0.025, 0.975))
    return float(low), float(high)


def predictions(
    steps: Sequence[int], excess: Mapping[str, np.ndarray], draws: int, generator: np.random.Generator
) -> list[dict[str, Any]]:
    """Records of the correlation of every measure at every earlier step with every measure at the last step.

    `excess` holds by measure each head's excess over its null, [K, L, H]. p is one-sided: the share of relabellings
    under which the correlation is as high. q is over all records.
    """
    ranks = {name: ranks_in_layers(value_KLH) for name, value_KLH in excess.items()}
    records: list[dict[str, Any]] = []
    earlier = [(early, k) for early in ranks for k in range(len(steps) - 1)]
    for final, last_KLH in ranks.items():
        last_LH = last_KLH[-1]
        dealt_RLH, exact = relabelled(last_LH, draws, generator)

        def correlated(at: slice, last_LH: np.ndarray = last_LH, dealt_RLH: np.ndarray = dealt_RLH) -> Part:
            early, k = earlier[at.start]
            value_R = correlations(ranks[early][k][None], dealt_RLH)
            low, high = interval(ranks[early][k], last_LH, draws, generator)
            values = {"correlation": value_R[0], "ci_low": low, "ci_high": high, "p": at_least_as_high(value_R)}
            return {name: np.array(value) for name, value in values.items()}

        done = parts(
            f"predicting the last ranks of {final}", "correlations", len(earlier), 1, correlated, generator=generator
        )
        for (early, k), (_, part) in zip(earlier, done, strict=True):
            values = {name: value.item() for name, value in part.items()}
            names = {"final": final, "early": early, "step": steps[k]}
            records.append({**names, **values, "exact": exact, "n": last_LH.size})
    return _with_q(records)


def moving_together(courses: Mapping[str, Mapping[int, float]]) -> list[dict[str, Any]]:
    """For every two curves of one training the rank correlation of their changes from checkpoint to checkpoint.

    `courses` are values by step. The correlation, −1 to 1, is a description without p, because one training has no
    valid null (science.md §15). Pairs with fewer than four changes, and curves that never change, are left out.
    """
    records = []
    for one, other in itertools.combinations(courses, 2):
        rank_2SC = _ranks_of_changes([courses], one, other)
        if rank_2SC is not None:
            correlation = _between_trainings(rank_2SC).item()
            records.append({"one": one, "other": other, "correlation": correlation, "changes": rank_2SC.shape[-1]})
    return records


def moving_together_over_trainings(
    trainings: Sequence[Mapping[str, Mapping[int, float]]], generator: np.random.Generator
) -> list[dict[str, Any]]:
    """For every two curves whether their changes correlate more within a training than between trainings.

    `trainings` holds for each of S ≥ 2 trainings, which differ in their random seed alone, its curves as values by
    step; curves that some training lacks are left out, and steps at which some training has no value. A record holds
    `within` and `across`, the mean rank correlations (−1 to 1) of the two curves' changes in one training and in
    different ones, and p, the share of orders of the second curve's trainings in which the mean is at least as far from
    0 as `within` (science.md §15): of all S! orders where they are at most 5040 (`exact`), else of the given one and
    4999 random ones. `least_p` is the least that p can be; q is over all pairs. In a training in which a curve never
    changes its correlations count as 0.
    """
    count = len(trainings)
    draws = _MOST_ORDERS if math.factorial(count) <= _MOST_ORDERS else _RANDOM_ORDERS
    order_R1S, exact = relabelled(np.arange(count)[None], draws, generator)
    names = [name for name in trainings[0] if all(name in courses for courses in trainings)]
    records: list[dict[str, Any]] = []
    for one, other in itertools.combinations(names, 2):
        rank_2SC = _ranks_of_changes(trainings, one, other)
        if rank_2SC is None:
            continue
        correlation_SS = _between_trainings(rank_2SC)
        within_R = correlation_SS[np.arange(count), order_R1S[:, 0]].mean(1)
        across = (correlation_SS.sum() - correlation_SS.trace()) / (count * (count - 1))
        record = {"one": one, "other": other, "within": float(within_R[0]), "across": float(across)}
        record |= {"p": at_least_as_high(np.abs(within_R)), "exact": exact, "least_p": 1 / len(order_R1S)}
        records.append(record | {"changes": rank_2SC.shape[-1], "n": count})
    return _with_q(records)


def _ranks_of_changes(
    trainings: Sequence[Mapping[str, Mapping[int, float]]], one: str, other: str
) -> np.ndarray | None:
    """The centred ranks of two curves' changes, [2, S, C], at the steps at which all trainings have both curves.

    None with fewer than four changes, or where one of the curves never changes in any training.
    """
    steps = sorted(set.intersection(*(set(courses[name]) for courses in trainings for name in (one, other))))
    if len(steps) <= _FEWEST_CHANGES:
        return None
    change_2SC = np.diff([[[courses[name][step] for step in steps] for courses in trainings] for name in (one, other)])
    return ranks_in_layers(change_2SC) if change_2SC.any((1, 2)).all() else None


def _between_trainings(rank_2SC: np.ndarray) -> np.ndarray:
    """The rank correlation of the first curve's changes in each training with the second curve's in each, [S, S]."""
    return correlations(rank_2SC[0][:, None, None], rank_2SC[1][None, :, None])


def _with_q(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    q_X = benjamini_hochberg(np.array([record["p"] for record in records]))
    return [record | {"q": float(q)} for record, q in zip(records, q_X, strict=True)]


def predicted_from(records: Sequence[Mapping[str, Any]], final: str, alpha: float) -> tuple[int, str] | None:
    """The first step from which on one measure always predicts the ranks of `final` (q ≤ `alpha`), and that measure.

    None if no measure predicts them at the last of the earlier steps.
    """
    firsts = []
    for early in dict.fromkeys(record["early"] for record in records):
        course = [record for record in records if (record["final"], record["early"]) == (final, early)]
        significant = list(itertools.takewhile(lambda record: record["q"] <= alpha, reversed(course)))
        firsts += [(significant[-1]["step"], early)] if significant else []
    return min(firsts, key=lambda first: (first[0], first[1] != final)) if firsts else None


def formed_by(steps: Sequence[int], holds_KLH: np.ndarray) -> int | None:
    """The first step by which half of the heads with the role at the end have had the role; None without such heads."""
    last_LH = holds_KLH[-1]
    if not last_LH.any():
        return None
    share_K = np.logical_or.accumulate(holds_KLH, axis=0)[:, last_LH].mean(1)
    return steps[int((share_K >= 0.5).argmax())]
