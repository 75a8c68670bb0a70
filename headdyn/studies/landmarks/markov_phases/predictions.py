"""Predictions of Park et al. (2024) on mixtures of few and of many chains, and how these runs decide them."""

import itertools
from collections.abc import Sequence

import numpy as np

from headdyn.core.figures import Figure
from headdyn.studies.landmarks import Case, Landmark, Prediction, page
from headdyn.studies.landmarks.courses import Course, Judged, by_level, judge_each
from headdyn.studies.landmarks.markov_phases.corpus import PREDICTORS

CHAINS = "data.num_chains"


def nearest(course: Course, where: str = "_fresh") -> list[str | None]:
    """The predictor nearest to each snapshot on fresh chains, or on the model's own (`where=""`), in training order.

    None where a snapshot's distance from its nearest predictor is more than half of the first snapshot's: an untrained
    model is nearest to a predictor too (unigram retrieval), but follows none.
    """
    distance_PK = np.stack([course.values(f"kl_{name}{where}_nats") for name in PREDICTORS])
    follows_K = distance_PK.min(0) <= distance_PK.min(0)[0] / 2
    return [PREDICTORS[i] if follows else None for i, follows in zip(distance_PK.argmin(0), follows_K, strict=True)]


def _ends(trainings: Sequence[Course], chains: int, predictor: str, where: str) -> list[Case]:
    """Whether the trainings on this many chains end by following a predictor, on fresh chains or on their own."""

    def judge(course: Course) -> Judged:
        distance = {name: course.values(f"kl_{name}{where}_nats")[-1] for name in PREDICTORS}
        text = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in distance.items())
        return nearest(course, where)[-1] == predictor, f"KL in nats: {text}"

    return judge_each([course for course in trainings if course.factors.get(CHAINS) == chains], judge)


def _many_chains(trainings: Sequence[Course]) -> list[Case]:
    levels = _levels(trainings)
    return _ends(trainings, max(levels), "bigram_inference", where="_fresh") if len(levels) > 1 else []


def _levels(trainings: Sequence[Course]) -> set[int]:
    return {course.factors[CHAINS] for course in trainings if CHAINS in course.factors}


def _unigrams_first(course: Course) -> Judged:
    path = [name for name, _ in itertools.groupby(name for name in nearest(course) if name is not None)]
    statistics = [name.partition("_")[0] for name in path]
    once = statistics == sorted(statistics, reverse=True)  # unigram, then bigram
    words = ", then ".join(name.replace("_", " ") for name in path)
    return once and len(set(statistics)) == 2, f"follows {words or 'none'}"


def figures(trainings: Sequence[Course]) -> dict[str, Figure]:
    """Distances from the four predictors over training, on fresh chains, a figure for each number of chains."""
    return {
        f"landmark_distance_{chains}_chains": page.over_training(
            {name.replace("_", " "): (group, f"kl_{name}_fresh_nats") for name in PREDICTORS},
            ylabel="KL(predictor ‖ model), nats",
            title=f"Distance from exact predictors on fresh chains, trained on {chains}",
            zero="the predictor itself",
            caption="Predicted: unigram curves are lowest first; at the end bigram retrieval is with few chains, "
            "bigram inference with many.",
        )
        for chains, group in by_level(trainings, CHAINS, 16).items()
    }


LANDMARK = Landmark(
    paper="Park, Lubana, Pres and Tanaka 2024, Competition Dynamics Shape Algorithmic Phases of In-Context Learning, "
    "arXiv 2412.01003",
    differences="Sequences of 128 symbols (the paper's are longer), a Mini-Qwen3 of two layers with RoPE and Muon, and "
    "a short training, so that the paper's return to retrieval after long training is not tested. Unigram retrieval "
    "predicts by the weighed stationary laws: our reading, since the paper's formula was not at hand.",
    predictions=(
        Prediction(
            statement="a model of few chains retrieves them by their bigrams",
            criterion="at the smallest number of chains the last snapshot is nearest to bigram retrieval (KL on "
            "sequences of the chains it was trained on), and at most half as far from it as the untrained model is "
            "from its nearest predictor (changed after runs: on fresh chains, on which it follows no predictor, and at "
            "any distance)",
            judge=lambda trainings: _ends(trainings, min(_levels(trainings), default=0), "bigram_retrieval", where=""),
        ),
        Prediction(
            statement="a model of many chains infers the chain from the bigrams it reads",
            criterion="at the largest number of chains the last snapshot is nearest to bigram inference (KL "
            "on sequences of fresh chains), and at most half as far from it as the untrained model is from its nearest "
            "predictor (changed after runs: at any distance)",
            judge=_many_chains,
        ),
        Prediction(
            statement="unigram solutions come before bigram solutions",
            criterion="of the snapshots half as far from their nearest predictor as the untrained model or nearer, the "
            "first are nearest to a unigram predictor and the last to a bigram predictor, without a return (changed "
            "after a run: every snapshot counted, and untrained models, too, are nearest to unigram retrieval)",
            judge=lambda trainings: judge_each(trainings, _unigrams_first),
        ),
    ),
    figures=figures,
)
