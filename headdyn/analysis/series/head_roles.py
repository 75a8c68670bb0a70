"""Which heads take which role over training: previous token, induction, sink, topic (science.md §19)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from headdyn.analysis.contract import measured_in
from headdyn.analysis.metrics import steps
from headdyn.analysis.series.judgement import Share
from headdyn.core.records import Metric
from headdyn.core.settings import settings

ROLES: Mapping[str, str] = {
    "previous_token": "previous-token",
    "induction": "induction",
    "sink_rate": "sink",
    "selectivity": "topic",
    "selectivity_documents": "topic beyond document",
}


@settings
class HeadRoles:
    """Follows the heads that have a role: a metric of theirs exceeds its null by `least`, at q ≤ `alpha` if tested.

    The strongest head of a role is the one whose metric exceeds its null most. Model rows, by role: how many heads have
    it at the last checkpoint, and the first step since which the head that is strongest at the end is the strongest at
    every checkpoint. Table `head_roles`: per checkpoint and role the strongest head, its value and null, how many heads
    have the role, and the value of the head that is strongest at the end. The verdict's `became` counts, of the heads
    with a role at the end, which other role each had last before it had this one ("induction and sink": both at once).
    Table `head_prediction`: whether the ranks that heads have in their layers at an early checkpoint tell those at the
    last one, by any measure of roles, against heads relabelled within layers. Revisions with the weights of another are
    left out, as are failed ones, both with their reason.

    In text, topic heads are those by `selectivity_documents` alone: a head that prefers its own document has
    `selectivity` too.
    """

    least: Mapping[str, Annotated[float, Field(gt=0, le=1)]]
    alpha: Share = 0.05
    relabellings: Annotated[int, Field(ge=999)] = 9_999
    final: str | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"series"})
    metrics: ClassVar[Mapping[str, Metric]] = {
        **{
            f"{metric}_heads": Metric(
                label=f"{role} heads at the end",
                meaning=f"heads whose {metric} exceeds its null by what is set, at the last checkpoint",
                low=0,
                digits=0,
            )
            for metric, role in ROLES.items()
        },
        **{
            f"{metric}_strongest_since": steps(
                f"strongest {role} head since",
                f"first step since which the head whose {metric} exceeds its null most at the end is that head",
            )
            for metric, role in ROLES.items()
        },
        **{
            f"{metric}_predicted_from": steps(
                f"step from which {role} heads can be predicted",
                f"first step from which on heads' ranks in their layers predict those in {metric} at the end "
                "(q over steps and measures; null: heads relabelled within layers)",
            )
            for metric, role in ROLES.items()
        },
    }

    def __post_init__(self) -> None:
        if unknown := [metric for metric in self.least if metric not in ROLES]:
            raise ValueError(f"analysis.head_roles.least has {unknown[0]}; roles are of {', '.join(ROLES)}")

    __call__ = measured_in("headdyn.analysis.series.head_roles_measure")
