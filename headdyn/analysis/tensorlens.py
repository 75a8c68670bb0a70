"""The whole model's effective attention by TensorLens, beside raw attention and attention rollout (science.md §9)."""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from headdyn.analysis.contract import measured_in
from headdyn.analysis.metrics import LabelSwapSettings, nats, share, share_difference
from headdyn.core.records import Metric
from headdyn.core.settings import settings

_INSTRUMENTS = {
    "tensorlens": (
        "TensorLens'",
        "‖T_ij x_j‖ on keys of the query's topic, share of the row, less its label-swap null",
    ),
    "rollout": ("attention rollout's", "topic selectivity of attention rollout"),
    "raw": ("raw attention's", "topic selectivity of the heads' mean attention"),
}


@settings
class TensorLens(LabelSwapSettings):
    """Topic selectivity of the whole model's effective attention, on `sequences` of the validation split.

    Three instruments map tokens to tokens, for the stack up to each layer and for the whole model. The maps' rows sum
    to 1; selectivity, its label-swap null and the control variates are those of science.md §6, and 0 is the null of
    every selectivity. `tensorlens`: ‖T_ij x_j‖ over its row's sum, where Σ_j T_ij x_j plus the biases' part is exactly
    the model's output for its input x. `rollout`: the product of ½ (mean attention of a layer's heads) + ½ (identity),
    Abnar & Zuidema 2020. `raw`: the mean attention of a layer's heads; for the model, of all heads.
    TensorLens and rollout contain the residual stream, raw attention does not. So compare them without the self key,
    as the two differences between instruments do, sequence by sequence.

    At `targets` positions of each sequence the next token's logit (less the mean logit) is taken apart, in nats: how
    much of it keys of the query's topic add beyond the label-swap null, through the whole model and through each head.
    The shares come from gradients of the frozen map and are exact: over the input tokens, with the biases' part, they
    sum to the logit. Heads' shares do not, since paths cross several heads. A head also writes to logits of tokens that
    do not follow, so the null of `head_logit_nats` is its share for the tokens that the `label_swaps` other sequences
    have next. Intervals (95 %, BCa) and p (sign flips) take sequences as units.

    `tokens` cuts every sequence. `branch` is the factor of a gated MLP that stays linear while the other is frozen.
    Where the corpus confines attention to documents, topic statistics are absent. Raises ValueError for a model with an
    operation that cannot be frozen.
    """

    branch: Literal["up", "gate"] = "up"
    sequences: int = 48
    tokens: Annotated[int, Field(ge=8)] = 256
    targets: Annotated[int, Field(ge=1)] = 8

    name: ClassVar[str] = "tensorlens"
    metrics: ClassVar[Mapping[str, Metric]] = {
        **{
            f"{name}_selectivity{suffix}": share_difference(
                f"{label} topic selectivity{left_out}", f"{meaning}{left_out}", outcome=True
            )
            for name, (label, meaning) in _INSTRUMENTS.items()
            for suffix, left_out in (("", ""), ("_no_self", ", self left out"))
        },
        **{
            f"tensorlens_less_{name}_no_self": share_difference(
                f"TensorLens less {label}, self left out",
                f"tensorlens_selectivity_no_self less {name}_selectivity_no_self, on the same sequences",
                low=-2,
                high=2,
                outcome=True,
            )
            for name, label in (("raw", "raw attention"), ("rollout", "attention rollout"))
        },
        "tensorlens_aligned_selectivity": share_difference(
            "TensorLens' topic selectivity along the output",
            "selectivity of ⟨T_ij x_j, y_i⟩/‖y_i‖², signed shares of the output that sum to 1 with the biases'",
            low=-math.inf,
            high=math.inf,
            outcome=True,
        ),
        "head_written_selectivity": share_difference(
            "topic selectivity of writes", "selectivity of ‖A_ij a_j M_h x_j‖: attention by how much is written for it"
        ),
        "tensorlens_self": share("TensorLens on the token itself", "‖T_ii x_i‖ over its row's sum, mean over queries"),
        "tensorlens_topic_nats": nats(
            "logit from the query's topic",
            "next token's logit put there by input tokens of the query's topic, beyond label swap",
            outcome=True,
        ),
        "head_topic_nats": nats(
            "logit by way of a head from the query's topic",
            "next token's logit carried by a head from keys of the query's topic, beyond label swap",
        ),
        "head_logit_nats": nats(
            "logit carried by a head",
            "next token's logit carried by a head, ⟨frozen gradient at z, z⟩; null: of other sequences' tokens",
        ),
        "head_logit_excess_nats": nats(
            "logit carried, beyond other tokens'",
            "head_logit_nats less its null: what a head writes for the token that follows here",
        ),
        "tensorlens_error": Metric(
            label="TensorLens' relative error",
            meaning="|Σ T_ij x_j + c_i − y_i| over largest |y_i|, largest of all sequences; null: the Jacobian as T",
            low=0,
            high=1e-3,
            digits=7,
        ),
    }

    __call__ = measured_in("headdyn.analysis.tensorlens_measure")
