"""How much has to be patched: answers against the number of heads, and against the share of the source's value.

Thresholds such as "8 or more even heads" and "60 % of the source" (science.md §11). Letters as in patching.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from headdyn.analysis.interventions.pair_rows import succeeds
from headdyn.analysis.interventions.patching import PromptPatching, heads_as_weights
from headdyn.analysis.interventions.splits import head_groups
from headdyn.core.figures import Curve, Figure, curves
from headdyn.core.statistics import bootstrap_interval


@dataclass(frozen=True, kw_only=True)
class Dose:
    """One curve: Δ (nats) of every pair in C patched cells, each with its dose. Cells may share a dose."""

    name: str  # the pool that the cells' heads are drawn from
    heads: tuple[tuple[int, ...], ...]
    dose_C: np.ndarray  # float: the number of heads, or a fraction 0..1
    delta_CP: np.ndarray

    @property
    def success_C(self) -> np.ndarray:
        """Share of pairs with Δ > 0."""
        return succeeds(self.delta_CP).mean(1)

    def threshold(self) -> float | None:
        """The smallest dose from which on every cell succeeds on more than half of the pairs, or None."""
        threshold = self._thresholds(self.success_C[None])[0].item()
        return None if math.isinf(threshold) else threshold

    def threshold_interval(self, generator: np.random.Generator, draws: int) -> tuple[float, float]:
        """95 % interval of the threshold over pairs (percentile bootstrap).

        Resamples in which no dose suffices count as the largest one, so an interval that ends at the largest dose is
        open: the true threshold may be higher, or there may be none.
        """
        pairs = self.delta_CP.shape[1]
        counts_RP = generator.multinomial(pairs, np.full(pairs, 1 / pairs), size=draws)
        thresholds_R = self._thresholds(counts_RP @ succeeds(self.delta_CP).T / pairs)
        low, high = np.quantile(np.minimum(thresholds_R, self.dose_C.max()), (0.025, 0.975), method="nearest")
        return low.item(), high.item()

    def _thresholds(self, success_RC: np.ndarray) -> np.ndarray:
        """The threshold for each of R rows of success; infinite where no dose suffices."""
        last_failed_R = np.where(success_RC <= 0.5, self.dose_C, -math.inf).max(1)
        doses = np.append(np.unique(self.dose_C), math.inf)
        return doses[np.searchsorted(doses, last_failed_R, side="right")]


def by_group_size(
    patching: PromptPatching,
    layer: int,
    pools: Mapping[str, Sequence[int]],
    num_heads: int,
    groups_per_size: int,
    generator: np.random.Generator,
) -> list[Dose]:
    """Patch groups of 0, 1, 2, … heads from each pool: all groups of a size, or a sample of `groups_per_size`."""
    doses = []
    for name, pool in pools.items():
        groups = [
            group for size in range(len(pool) + 1) for group in head_groups(pool, size, groups_per_size, generator)
        ]
        delta_CP = patching.deltas({layer: heads_as_weights(groups, num_heads)})[layer]
        sizes_C = np.array([len(group) for group in groups], dtype=float)
        doses.append(Dose(name=name, heads=tuple(groups), dose_C=sizes_C, delta_CP=delta_CP))
    return doses


def by_fraction(
    patching: PromptPatching, layer: int, pools: Mapping[str, Sequence[int]], num_heads: int, fractions: Sequence[float]
) -> list[Dose]:
    """Patch all heads of a pool with f · source + (1 − f) · own value, for each fraction f in 0..1."""
    fraction_C = np.array(sorted(fractions))
    doses = []
    for name, pool in pools.items():
        cells_CH = fraction_C[:, None] * heads_as_weights([pool], num_heads)
        delta_CP = patching.deltas({layer: cells_CH})[layer]
        doses.append(Dose(name=name, heads=(tuple(pool),) * len(cells_CH), dose_C=fraction_C, delta_CP=delta_CP))
    return doses


def dose_table(doses: Sequence[Dose]) -> pa.Table:
    """One row per cell: pool, heads, dose, success (share of pairs), mean Δ in nats."""
    return pa.table(
        {
            "pool": [dose.name for dose in doses for _ in dose.heads],
            "heads": pa.array([heads for dose in doses for heads in dose.heads], type=pa.list_(pa.int32())),
            "dose": np.concatenate([dose.dose_C for dose in doses]).astype(float),
            "success": np.concatenate([dose.success_C for dose in doses]),
            "delta_nats": np.concatenate([dose.delta_CP.mean(1) for dose in doses]),
        }
    )


def size_figure(doses: Sequence[Dose]) -> Figure:
    """Success against group size: the mean over groups, with a band from the worst group to the best."""
    lines = []
    for dose in doses:
        sizes = np.unique(dose.dose_C)
        parts = [dose.success_C[dose.dose_C == size] for size in sizes]
        lines.append(
            Curve(
                label=f"{dose.name} heads",
                x=sizes,
                y=[part.mean() for part in parts],
                low=[part.min() for part in parts],
                high=[part.max() for part in parts],
            )
        )
    return curves(
        lines,
        xlabel="heads patched",
        ylabel="share of pairs answered rightly",
        title="Group size (band: worst to best group)",
        references={"half": 0.5},
        whole_x=True,
        caption="Groups of heads patched together, by size. If even heads are special, their curve rises first.",
    )


def fraction_figure(doses: Sequence[Dose], generator: np.random.Generator, draws: int) -> Figure:
    """Mean Δ against the fraction of the source's value, with 95 % intervals over pairs."""
    lines = []
    for dose in doses:
        low, high = bootstrap_interval(dose.delta_CP.T, generator, draws=draws)
        lines.append(Curve(label=f"{dose.name} heads", x=dose.dose_C, y=dose.delta_CP.mean(1), low=low, high=high))
    return curves(
        lines,
        xlabel="fraction of the source's value",
        ylabel="answer log-odds Δ (nats)",
        title="Interpolation (band: 95 % interval over pairs)",
        references={"undecided": 0.0},
        caption="All heads of a kind get a mixture of their own value and the source's: 0 is unpatched, 1 patched.",
    )
