"""Phases of in-context learning (Park et al. 2024): retrieval of known chains or inference, by unigrams or bigrams."""

from __future__ import annotations

from headdyn.studies import Study, deferred

STUDY = Study(
    title="Phases of in-context learning",
    question="Does a model retrieve one of the chains it was trained on, or infer the chain it reads, and when?",
)

sections = deferred("headdyn.studies.landmarks.markov_phases.predictions", "sections")
headlines = deferred("headdyn.studies.landmarks.markov_phases.predictions", "headlines")
figures = deferred("headdyn.studies.landmarks.markov_phases.predictions", "figures")
