"""Do the even heads of a layer repair an answer that the odd ones do not, and is that more than any split does?

Specialisation of head groups, science.md §11. Letters as in patching.py and splits.py; Δ is the answers' log-odds in
nats, and a pair succeeds where Δ, averaged over the pair's prompts, is above 0.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, ClassVar

from pydantic import Field

from headdyn.analysis.contract import measured_in
from headdyn.analysis.interventions.patch import Direction, Layer, PatchSettings
from headdyn.analysis.metrics import nats, share
from headdyn.core.records import Metric
from headdyn.core.settings import settings


def _metrics() -> dict[str, Metric]:
    on_bugs, on_controls = "share of bug pairs answered rightly", "share of control pairs answered rightly"
    patched = {"plain": "nothing patched", "even": "even heads patched", "odd": "odd heads patched"}
    right = partial(share, unit="% right")
    even_minus_odd = partial(Metric, unit="even − odd, nats", outcome=True)
    heads = partial(Metric, low=0, unit="heads", digits=0)
    return {
        "strength_nats": even_minus_odd(
            label="strength of Δ",
            meaning="mean Δ with even heads patched − with odd; p: two-sided rank among balanced splits",
        ),
        **{
            f"{name}_success": right(words, f"{on_bugs}, {words}", outcome=True)
            for name, words in (patched | {"all": "all heads patched", "source": "the source prompts"}).items()
        },
        "strength": Metric(
            label="strength",
            meaning="even_success − odd_success; its mean over all splits is 0",
            low=-1,
            high=1,
            unit="even − odd, share of pairs",
            digits=2,
            outcome=True,
        ),
        "control_strength_nats": even_minus_odd(
            label="strength of Δ on controls", meaning="strength_nats on control pairs"
        ),
        "balanced_strength_nats": even_minus_odd(
            label="strength of Δ on both kinds of pairs",
            meaning="average of strength_nats on bug pairs and on control pairs; p: two-sided rank among balanced "
            "splits. A preference for one form of answer, such as the shorter number, gives 0",
        ),
        "plain_nats": nats("Δ, nothing patched", "mean Δ over bug pairs, nothing patched", outcome=True),
        "source_nats": nats("Δ of the source prompts", "mean Δ of the prompts that the values come from", outcome=True),
        **{
            f"{name}_recovered": Metric(
                label=f"share of the way to the source, {name} heads",
                meaning=f"(Δ_{name} − Δ_plain) / (Δ_source − Δ_plain)",
            )
            for name in ("even", "odd", "all")
        },
        "strength_rank": Metric(
            label="rank of even/odd among the splits",
            meaning="rank of even/odd's strength_nats among labelled splits; p one-sided",
            low=1,
            digits=0,
        ),
        "best_split_nats": nats(
            "strength of the strongest split",
            "strength_nats of the strongest split; null: 95th percentile of |strength_nats|",
            low=0,
        ),
        **{
            f"{name}_size_threshold": heads(
                label=label,
                meaning=f"number of heads from which on every group of {of} drawn repairs over half the pairs",
            )
            for name, label, of in (("even", "even heads needed", "even heads"), ("any", "heads needed", "heads"))
        },
        "even_fraction_threshold": share(
            "share of the source needed",
            "share of the source in all even heads from which on over half the pairs succeed",
        ),
        "head_effect_nats": nats("effect of one head", "change of mean Δ when this head alone is patched"),
        "head_success": right("this head patched", f"{on_bugs}, this head alone patched"),
        **{
            f"control_{name}_success": right(f"{words} on controls", f"{on_controls}, {words}")
            for name, words in patched.items()
        },
    }


@settings
class Specialization(PatchSettings):
    """Patches groups of heads of one layer and compares even with odd, against all splits of that layer into halves.

    Repair is measured on bug pairs; controls are pairs that the bug does not touch. Intervals (95 %) take pairs as
    units: Clopper–Pearson for success, BCa otherwise. The model's rows are those of `layer`; every layer has rows too.

    All splits serve as the null up to `exact_to_heads` heads, else `sampled_splits` of them; they are patched at
    `layer` only, unless `null_at_every_layer`. Curves over group size use at most `groups_per_size` groups of a size.

    Tables: `splits` and `control_splits` (Δ of every split and bug or control pair, so that a maximum over checkpoints
    can be formed), `group_sizes` and `fractions`.
    Raises ValueError for a layer out of range, or prompts without bug pairs.
    """

    layer: Layer = None
    null_at_every_layer: bool = False
    direction: Direction = "sufficiency"
    exact_to_heads: Annotated[int, Field(ge=2, le=20)] = 16  # 20 heads have 184,756 splits already
    sampled_splits: Annotated[int, Field(ge=100)] = 5_000
    groups_per_size: Annotated[int, Field(ge=1)] = 24
    fractions: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)] = (
        *(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    )

    needs: ClassVar[frozenset[str]] = frozenset({"prompts"})
    metrics: ClassVar[Mapping[str, Metric]] = _metrics()

    __call__ = measured_in("headdyn.analysis.interventions.specialization_measure")
