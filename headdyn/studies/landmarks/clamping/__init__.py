"""Clamping (Singh et al. 2024): with a part of the induction circuit given, the phase change comes earlier."""

from headdyn.studies.landmarks import report_parts

sections, verdicts = report_parts("headdyn.studies.landmarks.clamping.predictions")
