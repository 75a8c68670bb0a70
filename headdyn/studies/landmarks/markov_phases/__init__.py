"""Phases of in-context learning (Park et al. 2024): retrieval of known chains or inference, by unigrams or bigrams."""

from headdyn.studies import Study
from headdyn.studies.landmarks import report_parts

STUDY = Study(
    title="Phases of in-context learning",
    question="Does a model retrieve one of the chains it was trained on, or infer the chain it reads, and when?",
)

sections, verdicts = report_parts("headdyn.studies.landmarks.markov_phases.predictions")
