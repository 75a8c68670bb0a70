"""Statistical induction heads (Edelman et al. 2024): uniform guessing, in-context unigrams, then in-context bigrams."""

from __future__ import annotations

from headdyn.studies import Study, deferred

STUDY = Study(
    title="Statistical induction heads",
    question="Does a model that reads a new Markov chain in every sequence learn its unigrams first, then its bigrams?",
)

sections = deferred("headdyn.studies.landmarks.statistical_induction.predictions", "sections")
headlines = deferred("headdyn.studies.landmarks.statistical_induction.predictions", "headlines")
figures = deferred("headdyn.studies.landmarks.statistical_induction.predictions", "figures")
