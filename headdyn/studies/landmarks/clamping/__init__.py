"""Clamping (Singh et al. 2024): with a part of the induction circuit given, the phase change comes earlier."""

from __future__ import annotations

from headdyn.studies import Study, deferred

STUDY = Study(
    title="Clamping",
    question="Does the phase change of induction come earlier where a part of the circuit is held at its ideal?",
)

sections = deferred("headdyn.studies.landmarks.clamping.predictions", "sections")
headlines = deferred("headdyn.studies.landmarks.clamping.predictions", "headlines")
figures = deferred("headdyn.studies.landmarks.clamping.predictions", "figures")
