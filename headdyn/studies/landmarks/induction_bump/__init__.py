"""The induction bump (Olsson et al. 2022): induction heads and in-context learning arise together, with two layers."""

from headdyn.studies.landmarks import report_parts

sections, verdicts = report_parts("headdyn.studies.landmarks.induction_bump.predictions")
