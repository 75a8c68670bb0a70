"""Reordering a layer's heads changes only which index each head has: the model's function stays the same.

Weight permutation, science.md §14. Heads are reordered in q, k and v (weights and biases) and in the columns of W_O.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, get_args

from pydantic import Field

from headdyn.analysis.contract import measured_in
from headdyn.analysis.interventions.patch import Dtype, Layer
from headdyn.analysis.metrics import BootstrapDraws, nats, share
from headdyn.core.records import Metric
from headdyn.core.settings import settings

DTYPES: tuple[Dtype, ...] = get_args(Dtype)
ORDERS = ("identity", "swap", "within_parity", "random", "reverse")
CONTROL = "mismatched"  # q, k and v reversed, W_O left as it is, which must change the function


def _metrics() -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}

    def change(name: str, label: str, against: str) -> None:
        metrics[f"{name}_logit_change"] = Metric(
            label=f"largest change of a logit, {label}", meaning=f"max |Δlogit|, {against}", low=0, unit="logits"
        )
        metrics[f"{name}_answers_changed"] = share(f"answers changed, {label}", f"share of pairs, {against}")

    for dtype in DTYPES:
        for order in (*ORDERS, CONTROL):
            change(
                f"{order}_{dtype}",
                f"{order.replace('_', ' ')} order, {dtype}",
                f"{order} order against none, both {dtype}",
            )
        change(dtype, dtype, f"{dtype} against the first dtype, heads in place")
        metrics[f"{dtype}_repetition"] = share(f"repetition, {dtype}", f"repeated trigrams in greedy texts, {dtype}")
    for order in ORDERS:
        metrics[f"{order}_strength_nats"] = nats(
            f"strength of Δ, {order.replace('_', ' ')} order",
            f"Δ patching heads at even places − at odd places, {order} order",
        )
    return metrics


@settings
class HeadPermutation:
    """Permutes the weights of one layer's heads and compares logits, answers and greedy texts, in every dtype.

    An order is compared with heads in place in the same dtype, and each dtype, heads in place, with the first: logits
    where the answer begins, answers of all pairs, and `tokens` greedy tokens behind `texts` of the corrupted prompts.
    The `mismatched` control leaves W_O as it is and must change the function. `strength_nats` is the even/odd contrast
    on bug pairs (`Patch()`, in float32) with heads labelled by each order: the only thing that an order can change.

    Table `orders`: one row per dtype and order.
    Raises ValueError for a layer out of range, or prompts without bug pairs.
    """

    layer: Layer = None
    dtypes: Annotated[tuple[Dtype, ...], Field(min_length=1)] = DTYPES
    texts: Annotated[int, Field(ge=1)] = 8
    tokens: Annotated[int, Field(ge=3)] = 20  # repetition counts trigrams
    bootstrap_draws: BootstrapDraws = 2_000

    needs: ClassVar[frozenset[str]] = frozenset({"prompts"})
    metrics: ClassVar[Mapping[str, Metric]] = _metrics()

    def __post_init__(self) -> None:
        if len(set(self.dtypes)) < len(self.dtypes):
            raise ValueError(f"analysis.permutation.dtypes={self.dtypes} must be distinct")

    __call__ = measured_in("headdyn.analysis.interventions.permutation_measure")
