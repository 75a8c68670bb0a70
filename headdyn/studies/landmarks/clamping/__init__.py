"""Clamping (Singh et al. 2024): with a part of the induction circuit given, the phase change comes earlier."""

from headdyn.studies import Study
from headdyn.studies.landmarks import report_parts

STUDY = Study(
    title="Clamping",
    question="Does the phase change of induction come earlier where a part of the circuit is held at its ideal?",
)

sections, verdicts = report_parts("headdyn.studies.landmarks.clamping.predictions")
