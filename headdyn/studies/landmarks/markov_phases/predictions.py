"""What Park et al. (2024) predict of mixtures of few and of many chains, and how these runs decide it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headdyn.core.figures import Figure, curves
from headdyn.report.blocks import Section
from headdyn.studies.landmarks import Case, Landmark, Prediction, page
from headdyn.studies.landmarks.courses import Course, courses
from headdyn.studies.landmarks.markov_phases.corpus import PREDICTORS
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.words import Statement

CHAINS = "data.num_chains"


def nearest(course: Course) -> list[str]:
    """The predictor that each snapshot is nearest to on fresh chains."""
    distance_PK = np.stack([course.values(f"kl_{name}_fresh_nats") for name in PREDICTORS])
    return [PREDICTORS[i] for i in distance_PK.argmin(0)]


def _ends(followed: Sequence[Course], chains: int, predictor: str) -> list[Case]:
    """Whether the trainings on this many chains end nearest to a predictor."""
    cases = []
    for course in (course for course in followed if course.factors.get(CHAINS) == chains):
        distance = {name: course.values(f"kl_{name}_fresh_nats")[-1] for name in PREDICTORS}
        text = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in distance.items())
        holds = min(distance, key=distance.__getitem__) == predictor
        cases.append(Case(name=course.label, holds=holds, evidence=f"KL in nats: {text}"))
    return cases


def _few_chains(followed: Sequence[Course]) -> list[Case]:
    return _ends(followed, min(_levels(followed), default=0), "bigram_retrieval")


def _many_chains(followed: Sequence[Course]) -> list[Case]:
    levels = _levels(followed)
    return _ends(followed, max(levels), "bigram_inference") if len(levels) > 1 else []


def _levels(followed: Sequence[Course]) -> set[int]:
    return {course.factors[CHAINS] for course in followed if CHAINS in course.factors}


def _unigrams_first(followed: Sequence[Course]) -> list[Case]:
    cases = []
    for course in followed:
        names = nearest(course)
        path = [name for i, name in enumerate(names) if not i or names[i - 1] != name]
        statistics = [name.partition("_")[0] for name in path]
        once = statistics == sorted(statistics, reverse=True)  # unigram, then bigram
        words = ", then ".join(name.replace("_", " ") for name in path)
        cases.append(Case(name=course.label, holds=once and len(set(statistics)) == 2, evidence=f"nearest to {words}"))
    return cases


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
            "sequences of fresh chains)",
            judge=_few_chains,
        ),
        Prediction(
            statement="a model of many chains infers the chain from the bigrams it reads",
            criterion="at the largest number of chains the last snapshot is nearest to bigram inference",
            judge=_many_chains,
        ),
        Prediction(
            statement="unigram solutions come before bigram solutions",
            criterion="snapshots are nearest to a unigram predictor first and to a bigram predictor at last, without a "
            "return",
            judge=_unigrams_first,
        ),
    ),
)


def figures(sweep: SweepRecord) -> dict[str, Figure]:
    """Distances from the four predictors over training, on fresh chains, a figure for each number of chains."""
    by_chains: dict[int, list[Course]] = {}
    for course in courses(sweep):
        by_chains.setdefault(course.factors.get(CHAINS, 0), []).append(course)
    return {
        f"landmark_distance_{chains}_chains": curves(
            [page.over_seeds(group, f"kl_{name}_fresh_nats", name.replace("_", " ")) for name in PREDICTORS],
            xlabel="training step",
            ylabel="KL(predictor ‖ model), nats",
            title=f"Distance from exact predictors on fresh chains, trained on {chains}",
            references={"the predictor itself": 0.0},
            log_x=True,
            caption="Mean over trainings, their range as a band. Predicted: unigram curves are lowest first; at the "
            "end bigram retrieval is with few chains, bigram inference with many.",
        )
        for chains, group in sorted(by_chains.items())
    }


def sections(sweep: SweepRecord) -> list[Section]:
    """The predictions beside the results."""
    return [page.section(LANDMARK, sweep, figures(sweep))] if courses(sweep) else []


def headlines(sweep: SweepRecord) -> list[Statement]:
    """Each prediction with its verdict."""
    return page.headlines(LANDMARK, sweep) if courses(sweep) else []
