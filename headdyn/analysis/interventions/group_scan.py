"""Does any group of a layer's heads, of whatever size, do more than groups of its size do (science.md §11)?

Letters as in patching.py and splits.py; Δ is the answers' log-odds in nats.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from headdyn.analysis.contract import measured_in
from headdyn.analysis.interventions.patch import Direction, Layer, PatchSettings
from headdyn.analysis.metrics import nats
from headdyn.core.records import Metric
from headdyn.core.settings import settings


@settings
class GroupScan(PatchSettings):
    """Patches every group of 1 to `largest` heads of one layer, and finds the one that stands out most.

    `largest` is half of the heads unless set, and never all of them: all heads have no other group of their size.

    A group's excess is Δ with it patched less the mean over groups of its size, averaged over bug pairs and control
    pairs with half of the weight each, so that preferring one form of answer gains nothing. Under the null, heads are
    relabelled at random in each pair on its own. Groups of all sizes are compared by their excess in standard
    deviations under the null, and p compares the largest with the largest of the same scan after relabelling. It is
    small if the same heads stand out in many pairs; it does not say that they work together. Heads of a trained model
    always differ a little, so p alone finds a group in most models: the report says that a group is found if p is at
    most 0.05 and the interval of what it adds (`best_group_nats`) lies above `least_nats`.

    Where one size has more than `groups_per_size` groups, that many are drawn, as families closed under rotation of the
    heads in a random order. Heads are then relabelled by rotations, so that the test stays exact.

    Table `group_scan`: every group with its heads, excess in nats and standardised excess.
    Raises ValueError for a layer out of range, or prompts without bug pairs.
    """

    layer: Layer = None
    direction: Direction = "sufficiency"
    largest: Annotated[int, Field(ge=1)] | None = None
    groups_per_size: Annotated[int, Field(ge=24)] = 1_000
    relabellings: Annotated[int, Field(ge=199)] = 999
    least_nats: Annotated[float, Field(ge=0)] = 0.5

    needs: ClassVar[frozenset[str]] = frozenset({"prompts"})
    metrics: ClassVar[Mapping[str, Metric]] = {
        "best_group_nats": nats(
            "what the best group adds",
            "mean Δ with the most exceptional group patched, less that of groups of its size; for each pair "
            "that group is chosen on the other pairs. p: of the whole scan, heads relabelled in each pair",
            outcome=True,
        ),
        "scan_maximum": Metric(
            label="how far the best group stands out",
            meaning="its excess in standard deviations under the null; null: 95th percentile of the largest of the "
            "same scan under relabelling",
            low=0,
            digits=2,
        ),
    }

    __call__ = measured_in("headdyn.analysis.interventions.group_scan_measure")
