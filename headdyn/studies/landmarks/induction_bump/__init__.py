"""The induction bump (Olsson et al. 2022): induction heads and in-context learning arise together, with two layers."""

from headdyn.studies import Study
from headdyn.studies.landmarks import report_parts

STUDY = Study(
    title="The induction bump",
    question="Do induction heads and in-context learning arise at one moment of training, and only with two layers?",
)

sections, verdicts = report_parts("headdyn.studies.landmarks.induction_bump.predictions")
