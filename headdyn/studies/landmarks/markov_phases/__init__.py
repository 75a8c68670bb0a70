"""Phases of in-context learning (Park et al. 2024): retrieval of known chains or inference, by unigrams or bigrams."""

from headdyn.studies.landmarks import report_parts

sections, verdicts = report_parts("headdyn.studies.landmarks.markov_phases.predictions")
