"""QK and OV circuits from the weights alone: spectra, copying, and head similarity free of gauge (science.md §8)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from headdyn.analysis.contract import measured_in
from headdyn.core.records import Metric
from headdyn.core.settings import Count, settings


def _circuit_metrics(name: str, title: str) -> dict[str, Metric]:
    cosines = {
        "similarity": ("within the layer", "mean cosine with the layer's other heads"),
        "nearest": ("to the nearest head", "largest cosine with any other head of the model"),
    }
    return {
        f"{name}_effective_rank": Metric(
            label=f"effective rank of {title}",
            meaning=f"exp of the entropy of W_{title}'s singular values: how many directions it uses",
            low=1,
            unit="dimensions",
            digits=2,
            outcome=True,
        ),
        **{
            f"{name}_{kind}": Metric(
                label=f"similarity of {title} {label}",
                meaning=f"{meaning}, of W_{title} as a matrix",
                low=-1,
                high=1,
                unit="cosine",
                outcome=True,
            )
            for kind, (label, meaning) in cosines.items()
        },
    }


@settings
class Circuits:
    """What every head's weights can do, against random heads of the same shape and grouping.

    Whole random models are drawn until there are at least `null_draws` random heads. The null column is their mean, and
    p is the share of random heads at least as far from that mean. A head's weights are one unit and carry no interval;
    model rows are means over heads with an interval over heads. `offsets` are the relative positions, in tokens, at
    which QK similarity is repeated with RoPE's rotation. Tables: `spectra`, one row per singular value;
    `head_similarity`, one per pair of heads; `readouts`, one per token among the `tokens` furthest along the top
    `directions` of a head.
    """

    null_draws: Annotated[int, Field(ge=100)] = 200
    offsets: tuple[Count, ...] = (1, 8)
    directions: Count = 3
    tokens: Count = 8

    needs: ClassVar[frozenset[str]] = frozenset()
    metrics: ClassVar[Mapping[str, Metric]] = {
        "copying_score": Metric(
            label="copying score",
            meaning="Σλ / Σ|λ| over the eigenvalues of W_E W_OV W_U: 1 where every token raises its own logit",
            low=-1,
            high=1,
            outcome=True,
        ),
        **_circuit_metrics("qk", "QK"),
        **_circuit_metrics("ov", "OV"),
    }

    __call__ = measured_in("headdyn.analysis.circuits_measure")
