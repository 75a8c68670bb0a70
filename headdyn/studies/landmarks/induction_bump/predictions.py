"""Predictions of Olsson et al. (2022) on induction heads and in-context learning, and how these runs decide them."""

from collections.abc import Callable, Sequence

import numpy as np

from headdyn.core.figures import Figure
from headdyn.studies.landmarks import Case, Landmark, Prediction, page
from headdyn.studies.landmarks.courses import Course, Judged, by_level, crossing, judge_each, judge_pairs

LAYERS = "model.num_layers"
MOMENT = 0.1  # the share of training that counts as one moment
LEAST = 0.2  # the least prefix matching with which a head is called an induction head


def _on_the_way(course: Course, metric: str, level: float) -> tuple[float, float]:
    """The snapshots between which a metric first comes this share of the way from its first value to its last."""
    values = course.values(metric)
    return crossing(course.steps, (values - values[0]) / (values[-1] - values[0]), level)


def _with_two_layers(trainings: Sequence[Course], judge: Callable[[Course], Judged]) -> list[Case]:
    """A case for every training of two layers; where none of its heads matches prefixes the prediction fails."""

    def judge_if_matched(course: Course) -> Judged:
        matching = course.values("best_prefix_matching")[-1]
        return (False, f"no head matches prefixes ({matching:.0%})") if matching < LEAST else judge(course)

    return judge_each([course for course in trainings if course.factors.get(LAYERS) == 2], judge_if_matched)


def _with_one_layer(trainings: Sequence[Course], judge: Callable[[Course, Course], Judged]) -> list[Case]:
    return judge_pairs(trainings, LAYERS, 1, 2, judge)


def _together(course: Course) -> Judged:
    after, at = _on_the_way(course, "best_prefix_matching", 0.5)
    score_after, score_at = _on_the_way(course, "in_context_nats", 0.5)
    evidence = f"half way: prefix matching in ({after:g}, {at:g}], the score in ({score_after:g}, {score_at:g}]"
    moment = MOMENT * float(course.steps[-1])
    apart, nearest = max(at, score_at) - min(after, score_after), max(after, score_after) - min(at, score_at)
    return True if apart <= moment else False if nearest >= moment else None, evidence


def _fall(course: Course) -> Judged:
    steps, losses = course.losses()
    start = max(_on_the_way(course, "best_prefix_matching", 0.1)[0], 0.0)
    end = _on_the_way(course, "best_prefix_matching", 0.9)[1]
    part = (losses[steps <= start][-1] - losses[steps <= end][-1]) / (losses[0] - losses[-1])
    evidence = f"{part:.0%} of the loss's fall lies between steps {start:g} and {end:g}, where prefix matching rises"
    return bool(part > 0.5), evidence


def _no_heads_in_one_layer(one: Course, two: Course) -> Judged:
    low, high = (course.values("best_prefix_matching")[-1] for course in (one, two))
    return bool(high >= LEAST and low < high / 4), f"best head {low:.0%} with one layer, {high:.0%} with two"


def _less_learning_in_one_layer(one: Course, two: Course) -> Judged:
    low, high = (-course.values("in_context_nats")[-1] for course in (one, two))
    evidence = f"score {-low:.2f} nats with one layer, {-high:.2f} with two"
    return bool(low < high / 2) if high > 0 else None, evidence


def steepest(course: Course) -> float:
    """The largest share of the held-out loss's whole fall that lies within a tenth of training."""
    steps, losses = course.losses()
    ends = np.interp(steps + MOMENT * steps[-1], steps, losses)
    return float((losses - ends).max() / (losses[0] - losses[-1]))


def _a_bump_with_two_layers_only(one: Course, two: Course) -> Judged:
    low, high = steepest(one), steepest(two)
    evidence = (
        f"at most {low:.0%} of the loss's fall lies within a tenth of training with one layer, {high:.0%} with two"
    )
    return low < high, evidence


def figures(trainings: Sequence[Course]) -> dict[str, Figure]:
    """Prefix matching, in-context score and loss over training, by number of layers."""
    groups = {f"{n} layer{'s' * (n != 1)}": group for n, group in by_level(trainings, LAYERS, 2).items()}
    caption = "Predicted: with two layers both curves leave 0 at one moment; with one layer prefix matching stays low."
    drawings = {
        f"landmark_{metric}": page.over_training(
            {name: (group, metric) for name, group in groups.items()},
            ylabel=label,
            title=label.partition(" (")[0],
            zero=zero,
            scale=scale,
            caption=caption,
        )
        for metric, label, zero, scale in (
            ("best_prefix_matching", "Prefix matching of the best head (%)", "no prefix matching", 100),
            ("in_context_nats", "In-context score (nats)", "no use of the context", 1),
        )
    }
    caption = "Predicted: a sudden fall with two layers, where prefix matching rises. The floor is exact inference."
    return {**drawings, "landmark_loss": page.losses(trainings, ("random", "floor"), "Loss over training", caption)}


LANDMARK = Landmark(
    paper="Olsson, Elhage, Nanda et al. 2022, In-context Learning and Induction Heads, arXiv 2209.11895",
    differences="The paper trains on text and takes the loss of token 500 less that of token 50; here training itself "
    "is on repeated random blocks of 8 to 24 symbols, and the score is the loss of the last tenth of 64 positions less "
    "that of positions from 5 to 15 %. The models are Mini-Qwen3 of one and two layers with RoPE and MLPs. The "
    "thresholds below are ours: the paper's evidence is its curves.",
    predictions=(
        Prediction(
            statement="prefix matching and the in-context score change at the same moment of training",
            criterion=f"with two layers both come half way within {MOMENT:.0%} of training, wherever between two "
            f"snapshots each does, and a head reaches {LEAST:.0%} (before the runs overlapping snapshots were enough)",
            judge=lambda trainings: _with_two_layers(trainings, _together),
        ),
        Prediction(
            statement="the loss drops at that moment",
            criterion="more than half of the held-out loss's whole fall lies where the best head's prefix matching "
            f"rises from 10 to 90 % of its last value, and a head reaches {LEAST:.0%}",
            judge=lambda trainings: _with_two_layers(trainings, _fall),
        ),
        Prediction(
            statement="with one layer no induction heads form",
            criterion="at the end the best head's prefix matching with one layer is less than a quarter of that with "
            f"two, same seed, and that with two reaches {LEAST:.0%}",
            judge=lambda trainings: _with_one_layer(trainings, _no_heads_in_one_layer),
        ),
        Prediction(
            statement="with one layer there is less in-context learning",
            criterion="at the end the in-context score with one layer is less than half of that with two, same seed",
            judge=lambda trainings: _with_one_layer(trainings, _less_learning_in_one_layer),
        ),
        Prediction(
            statement="with one layer the loss falls without a bump",
            criterion="the largest share of the loss's whole fall that lies within a tenth of training is smaller with "
            "one layer than with two, same seed (added after the runs of seeds 0 to 2)",
            judge=lambda trainings: _with_one_layer(trainings, _a_bump_with_two_layers_only),
        ),
    ),
    figures=figures,
)
