"""Statistical induction heads (Edelman et al. 2024): uniform guessing, in-context unigrams, then in-context bigrams."""

from headdyn.studies import Study
from headdyn.studies.landmarks import report_parts

STUDY = Study(
    title="Statistical induction heads",
    question="Does a model that reads a new Markov chain in every sequence learn its unigrams first, then its bigrams?",
)

sections, verdicts = report_parts("headdyn.studies.landmarks.statistical_induction.predictions")
