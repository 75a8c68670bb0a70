"""How much each prompt token, each head and each MLP adds to an answer: TensorLens on prompts (science.md §9)."""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from headdyn.analysis.contract import measured_in
from headdyn.analysis.metrics import BootstrapDraws, nats, share
from headdyn.core.records import Metric
from headdyn.core.settings import settings

# Δ is a sum in two ways, over parts of the model and over kinds of tokens: the label and the meaning of each term.
PARTS = {
    "embedding": ("the embedding", "that the last token's embedding holds by itself"),
    "heads": ("the heads", "that all heads write for the output itself"),
    "mlps": ("the MLPs", "that all MLPs write for the output itself"),
    "biases": ("the biases", "that biases add by any path, those of the final norm included"),
}
PLACES = {
    "block": ("common to both wordings", "put there by the block common to both wordings, which holds the numbers"),
    "wording": ("rest of the prompt", "put there by the prompt's other tokens"),
    "prefix": ("of the answer", "put there by the answer's tokens before it is read"),
}


@settings
class AnswerLens:
    """Δ = logit(right) − logit(wrong) where the answers first differ, split into exact summands, on the bug pairs.

    The model is frozen at each prompt (models/frozen.py), which makes Δ linear, so that it is a sum in two ways. With g
    the gradient of Δ at the last layer's output, input token j adds ⟨T_tjᵀ g, x_j⟩; or else the embedding, every head
    and every MLP add ⟨g, write⟩ for what they write at the position where Δ is read. The biases' part is the same in
    both sums. A head's `carried` share, ⟨frozen gradient at z, z⟩, counts the paths through later layers too; a path
    crosses several heads, so these shares have no meaningful sum. Of answers of several tokens only the first differing
    one counts: later ones are not linear in one output.

    The null is the mean Δ of the same prompt for the answers of the other pairs: a head that writes for one-digit
    answers, whatever the numbers are, adds as much to them. Control pairs are no null: their right answer is the long
    one, so that the same head has the opposite sign there. `excess` rows are values less null. Their p (sign flips) and
    all intervals (95 %, BCa) take pairs as units, and q-values run over all p of the table.

    `wording` names the prompts that are read, `dtype` is the model's while frozen, `branch` the factor of a gated MLP
    that stays linear. Raises ValueError for fewer than two bug pairs and for a model with an operation that cannot be
    frozen.
    """

    wording: Literal["clean", "corrupted"] = "corrupted"
    branch: Literal["up", "gate"] = "up"
    dtype: Literal["float64", "float32"] = "float32"
    sign_flips: Annotated[int, Field(ge=999)] = 9_999
    bootstrap_draws: BootstrapDraws = 2_000

    needs: ClassVar[frozenset[str]] = frozenset({"prompts"})
    metrics: ClassVar[Mapping[str, Metric]] = {
        "answer_direct_nats": nats(
            "Δ written by a head", "Δ written by a head for the output itself; null: other pairs' answers"
        ),
        "answer_carried_nats": nats(
            "Δ carried by a head",
            "Δ that runs through a head, to the output and through later layers; null: other pairs' answers",
        ),
        "answer_direct_excess_nats": nats(
            "Δ written by a head, beyond other answers'", "answer_direct_nats less its null"
        ),
        "answer_carried_excess_nats": nats(
            "Δ carried by a head, beyond other answers'", "answer_carried_nats less its null"
        ),
        "layer_heads_answer_nats": nats("Δ written by a layer's heads", "answer_direct_nats of all heads of the layer"),
        "layer_mlp_answer_nats": nats(
            "Δ written by a layer's MLP", "Δ written by the layer's MLP for the output itself"
        ),
        "answer_nats": nats(
            "Δ, right less wrong answer", "mean Δ over bug pairs; null: mean Δ of other pairs' answers", outcome=True
        ),
        **{
            f"answer_{name}_nats": nats(f"Δ of {label}", f"Δ {meaning}", outcome=True)
            for name, (label, meaning) in PARTS.items()
        },
        **{
            f"answer_{name}_share": share(
                f"share of Δ of {label}",
                f"answer_{name}_nats over answer_nats; the shares of the four parts sum to 1",
                low=-math.inf,
                high=math.inf,
            )
            for name, (label, _) in PARTS.items()
        },
        **{
            f"answer_{name}_nats": nats(f"Δ of tokens: {label}", f"Δ {meaning}")
            for name, (label, meaning) in PLACES.items()
        },
        "answer_lens_error": Metric(
            label="relative error of the sums",
            meaning="largest |tokens or parts + biases − Δ| over the largest |Δ|; null: gradient × input as tokens",
            low=0,
            high=1e-2,
            digits=7,
        ),
    }

    __call__ = measured_in("headdyn.analysis.answer_lens_measure")
