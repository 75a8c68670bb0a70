"""How far does silencing heads move the output, one by one and in groups, compared with random groups of that size?

Mechanistic checks, science.md §13.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from headdyn.analysis.clusters import CIRCUITS
from headdyn.analysis.contract import measured_in
from headdyn.analysis.interventions.patch import Dtype, Layer
from headdyn.analysis.metrics import BootstrapDraws, nats
from headdyn.core.records import Metric
from headdyn.core.settings import settings

Kind = Literal["zero", "mean", "resample"]
KINDS: Mapping[Kind, str] = {
    "zero": "z set to 0",
    "mean": "z set to its mean over texts",
    "resample": "z taken from another text",
}
GROUPS: Mapping[str, str] = {
    "even": "the even heads",
    "odd": "the odd heads",
    **{f"{c}_cluster": f"the smaller of two k-means clusters of {c.upper()} circuits" for c in CIRCUITS},
    **{f"only_{c}_cluster": f"all heads but the smaller cluster of {c.upper()} circuits" for c in CIRCUITS},
}


def _metrics() -> dict[str, Metric]:
    kl = partial(nats, low=0)
    law = "KL of the next token's law"
    metrics = {
        "only_kl_nats": kl(
            "KL, this head alone left", f"{law}, this head alone left in its layer, the others' z set to their means"
        )
    }
    for kind, how in KINDS.items():
        metrics[f"{kind}_kl_nats"] = kl(f"KL, {kind}-ablation of this head", f"{law}, this head's {how}")
        metrics[f"layer_{kind}_kl_nats"] = kl(
            f"KL, {kind}-ablation of the layer", f"{law}, all heads of the layer with {how}"
        )
        for group, words in GROUPS.items():
            metrics[f"{group}_{kind}_kl_nats"] = kl(
                f"KL, {kind}-ablation of {words}", f"{law}, {words} with {how}", outcome=group in ("even", "odd")
            )
    for circuit in CIRCUITS:
        metrics[f"{circuit}_parity_energy"] = Metric(
            label=f"energy distance of even and odd {circuit.upper()} circuits",
            meaning=f"energy distance of even and odd heads by {circuit.upper()} circuits: twice the mean distance "
            "between less those within; p over splits of the heads",
            low=0,
        )
    return metrics


@settings
class Ablation:
    """Silences every head, every layer's heads together, and groups of heads of `layer`.

    The measure is KL(plain ‖ silenced) in nats of the next token's law: for prompts at the token where the answers
    part, averaged over pairs; for a corpus at every token, averaged over sequences. At most `texts` pairs or sequences
    are read; "resample" averages over `donors` other texts. Intervals (95 %, BCa) take pairs or sequences as units. A
    group's null is `random_groups` groups of its size, or all there are; one head's null is the mean over its layer's
    heads, without a p, since it could only be compared with the other heads tested. q-values run over the model's rows,
    which are those of `layer`, and the energy distances of all layers (p over `splits` splits of the heads).

    Table `groups`: one row per group and way of silencing it; `ablation_profiles`: every unit's KL by head, by which
    heads of two checkpoints are matched (head_profiles.py).
    Raises ValueError for a layer out of range, fewer than 4 heads a layer, or a text whose length no other text has.
    """

    layer: Layer = None
    dtype: Dtype = "float32"
    texts: Annotated[int, Field(ge=2)] = 32
    donors: Annotated[int, Field(ge=1)] = 2
    random_groups: Annotated[int, Field(ge=20)] = 199
    splits: Annotated[int, Field(ge=100)] = 1_000
    bootstrap_draws: BootstrapDraws = 2_000

    needs: ClassVar[frozenset[str]] = frozenset()
    metrics: ClassVar[Mapping[str, Metric]] = _metrics()

    __call__ = measured_in("headdyn.analysis.interventions.ablation_measure")
