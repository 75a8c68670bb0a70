"""When do heads specialise? A verdict over a series of checkpoints, by a thresholded and by a continuous measure.

Emergence over checkpoints, science.md §15.
"""

import importlib
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, ClassVar

from pydantic import Field

from headdyn.analysis.contract import measured_in
from headdyn.analysis.metrics import BootstrapDraws, nats, share, steps
from headdyn.analysis.series.judgement import Rules, Share
from headdyn.core.records import Metric
from headdyn.core.settings import settings


def _dates(name: str, label: str) -> dict[str, Metric]:
    return {
        f"{name}_emerges_at": steps(f"{label} emerges by", f"first step at which {name} has emerged"),
        f"{name}_emerges_after": steps(f"{label} emerges after", f"last step before {name} emerged"),
        f"{name}_largest_jump": share(
            f"largest jump of the {label}", f"share of {name}'s rise in its steepest interval"
        ),
        f"{name}_reversals": Metric(
            label=f"reversals of the {label}",
            meaning=f"changes of {name}'s direction, none of them noise",
            low=0,
            digits=0,
        ),
    }


@settings
class Emergence(Rules):
    """Dates the emergence of even/odd specialisation, and of any other metric, over a series of checkpoints.

    `strength` (the thresholded measure) emerges where it first exceeds `threshold`, `strength_nats` (the continuous
    measure) where it first exceeds half of its highest value. The latter must be beyond chance: where even exceeds odd,
    p ≤ `alpha` among all splits by the maximum over the trajectory. `strength` may jump where `strength_nats` does not.
    The emergence point is an interval of steps, (last below, first above]. Probabilities are shares of bootstrap draws
    of the pairs. Further model metrics can be followed: `thresholded` ones emerge above `threshold`, `continuous` ones
    above half of their highest excess over the null (over the first checkpoint where rows have no null). That excess
    must be beyond chance: by its p times the number of checkpoints or, without a p, by its interval, widened likewise.
    It must also reach the metric's entry in `least`, since with many sequences even a thousandth of attention is beyond
    chance. `strength_nats` may have an entry as well.
    `judge` names a module whose function `judge(judgement, rules)` adds `hypotheses` to each measure's judgement.

    Heads of `layer` are matched between checkpoints by their weights if the runs saved the layer's circuits, and by
    their behaviour if attention, ablation or HeadClusters saved profiles; clusters are compared if HeadClusters ran.
    `final` is the revision that is known to be the end of training, at step `total_steps`; the defaults are the last
    checkpoint and its step. Failed revisions and revisions with the weights of another (`check_integrity`) do
    not count, and the verdict gives the reason.
    Raises ValueError for checkpoints that did not measure the same splits and pairs.
    """

    threshold: Share = 0.5
    alpha: Share = 0.05
    final: str | None = None
    total_steps: Annotated[int, Field(ge=1)] | None = None
    thresholded: tuple[str, ...] = ()
    continuous: tuple[str, ...] = ()
    least: Mapping[str, Annotated[float, Field(gt=0)]] = field(default_factory=dict)
    judge: str | None = None
    layer: Annotated[int, Field(ge=0)] | None = None
    bootstrap_draws: BootstrapDraws = 2_000
    relabellings: Annotated[int, Field(ge=99)] = 999

    needs: ClassVar[frozenset[str]] = frozenset({"series", "circuits"})
    metrics: ClassVar[Mapping[str, Metric]] = {
        "trajectory_strength_nats": nats(
            "strength of Δ over the series",
            "strength_nats where even/odd stands out most; p over all splits and checkpoints",
        ),
        "heads_kept": share(
            "heads that keep their index",
            "share of heads most like the head of their own index one checkpoint before, by their weights",
        ),
        "heads_kept_by_behaviour": share(
            "heads that do what their index did",
            "share of heads whose behaviour is most like that of the head of their own index one checkpoint before",
        ),
        **_dates("strength", "strength"),
        **_dates("strength_nats", "strength of Δ"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.least if name not in ("strength_nats", *self.continuous)]:
            raise ValueError(
                f"analysis.emergence.least has {unknown[0]}, which is neither strength_nats nor in "
                "analysis.emergence.continuous"
            )
        if self.judge is not None:
            try:
                has_judge = hasattr(importlib.import_module(self.judge), "judge")
            except (ImportError, ValueError):
                has_judge = False
            if not has_judge:
                raise ValueError(f"analysis.emergence.judge={self.judge} names no module with a function judge")

    __call__ = measured_in("headdyn.analysis.series.emergence_measure")

    def hypotheses(self, judgement: Mapping[str, Any]) -> dict[str, Any]:
        """The `hypotheses` that the module `judge` adds to a measure's judgement; empty where it is not set."""
        return {} if self.judge is None else {"hypotheses": importlib.import_module(self.judge).judge(judgement, self)}
