"""Statistical induction heads (Edelman et al. 2024): uniform guessing, in-context unigrams, then in-context bigrams."""

from headdyn.studies.landmarks import report_parts

sections, verdicts = report_parts("headdyn.studies.landmarks.statistical_induction.predictions")
