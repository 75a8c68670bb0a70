"""Predictions of Edelman et al. (2024) on training on fresh Markov chains, and how these runs decide them."""

import itertools
from collections.abc import Sequence

import numpy as np

from headdyn.core.figures import Figure
from headdyn.studies.landmarks import Landmark, Prediction, page
from headdyn.studies.landmarks.courses import Course, Judged, by_level, crossing, judge_each, sooner
from headdyn.studies.landmarks.statistical_induction.analysis import PREDICTORS

ROWS = "data.rows"


def dirichlet(trainings: Sequence[Course]) -> list[Course]:
    """The trainings on chains whose unigrams are informative."""
    return by_level(trainings, ROWS, "dirichlet").get("dirichlet", [])


def stages(course: Course) -> list[str]:
    """The predictors nearest to the snapshots, in the order of training; repetitions in a row count once."""
    distance_PK = np.stack([course.values(f"kl_{name}_nats") for name in PREDICTORS])
    return [name for name, _ in itertools.groupby(list(PREDICTORS)[i] for i in distance_PK.argmin(0))]


def gap_closed(course: Course) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the share of the way from the best loss without bigrams to the bigram predictor's held-out loss.

    Without bigrams the best is the unigram predictor's loss, or guessing's where counts of symbols only mislead.
    """
    steps, losses = course.losses()
    start, bigram = min(course.scalar("unigram_nats"), course.scalar("random_nats")), course.scalar("bigram_nats")
    return steps, (start - losses) / (start - bigram)


def _in_order(course: Course) -> Judged:
    path = stages(course)
    return path == ["uniform", "unigram", "bigram"], f"nearest to {', then '.join(path)}"


def _plateau_then_drop(course: Course) -> Judged:
    steps, closed = gap_closed(course)
    random, unigram = course.scalar("random_nats"), course.scalar("unigram_nats")
    to_unigram = (random - course.losses()[1]) / (random - unigram)
    crossings = (crossing(steps, *rise) for rise in ((to_unigram, 0.5), (closed, 0.1), (closed, 0.5)))
    (arrived_after, arrived), (left_after, left), (half_after, half) = crossings
    if not np.isfinite(half):
        return None, "the loss did not come half way to the bigram predictor's"
    evidence = (
        f"{max(0, left_after - arrived):g} to {left - arrived_after:g} steps near the unigram loss, "
        f"{max(0, half_after - left):g} to {half - left_after:g} from there to half way"
    )
    # The wait is longer if the moment of leaving is later than the middle between arriving and half way.
    longer, shorter = 2 * left_after >= arrived + half, 2 * left <= arrived_after + half_after
    return True if longer else False if shorter else None, evidence


def _half_way(course: Course) -> tuple[float, float]:
    return crossing(*gap_closed(course), 0.5)


def figures(trainings: Sequence[Course]) -> dict[str, Figure]:
    """Loss over training against the exact predictors' losses, and the distances from them, for each kind of chain."""
    drawings: dict[str, Figure] = {}
    for rows, group in by_level(trainings, ROWS, "dirichlet").items():
        kind = f"{rows.replace('_', ' ')} rows"
        drawings[f"landmark_loss_{rows}"] = page.losses(
            group,
            ("random", "unigram", "bigram"),
            f"Loss against exact predictors, {kind}",
            "Each line is a training. Predicted: a wait at the unigram line, then a quick fall to the bigram line; "
            "without unigram information the wait is at uniform guessing, and shorter.",
        )
        drawings[f"landmark_distance_{rows}"] = page.over_training(
            {name: (group, f"kl_{name}_nats") for name in PREDICTORS},
            ylabel="KL(predictor ‖ model), nats",
            title=f"Distance from exact predictors, {kind}",
            zero="the predictor itself",
            caption="Predicted: the lowest curve is uniform at first, then unigram, then bigram.",
        )
    return drawings


LANDMARK = Landmark(
    paper="Edelman, Edelman, Goel, Malach and Tsilivis 2024, The Evolution of Statistical Induction Heads, "
    "arXiv 2402.11004",
    differences="Here the model is a Mini-Qwen3 of two layers with RoPE, MLPs and Muon, where the paper's are "
    "attention-only with Adam; the first symbol is uniform, where the paper draws it from the chain's own law; chains "
    "without unigram information are Dirichlet rows balanced by Sinkhorn's iteration, which is our choice.",
    predictions=(
        Prediction(
            statement="predictions are uniform at first, then follow the unigrams in context, then the bigrams",
            criterion="the nearest of the three exact predictors (KL) is uniform, then unigram, then bigram, and no "
            "stage comes twice",
            judge=lambda trainings: judge_each(dirichlet(trainings), _in_order),
        ),
        Prediction(
            statement="the loss waits at the unigram solution, then drops quickly to the bigram solution",
            criterion="from half way between random and unigram loss to a tenth of the way on to the bigram loss takes "
            "more steps than from that tenth to half of the way, wherever between two evaluations each of the three "
            "moments lies (changed after a run: each counted at the later evaluation)",
            judge=lambda trainings: judge_each(dirichlet(trainings), _plateau_then_drop),
        ),
        Prediction(
            statement="without unigram information (doubly stochastic chains) the bigram solution comes sooner",
            criterion="half of the way from the unigram predictor's loss (or guessing's, where that is lower) to the "
            "bigram predictor's is reached at an earlier step than with Dirichlet rows and the same seed, in intervals "
            "that do not overlap",
            judge=lambda trainings: sooner(trainings, ROWS, "dirichlet", "doubly_stochastic", _half_way),
        ),
    ),
    figures=figures,
)
