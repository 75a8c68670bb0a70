"""The induction bump (Olsson et al. 2022): induction heads and in-context learning arise together, with two layers."""

from __future__ import annotations

from headdyn.studies import Study, deferred

STUDY = Study(
    title="The induction bump",
    question="Do induction heads and in-context learning arise at one moment of training, and only with two layers?",
)

sections = deferred("headdyn.studies.landmarks.induction_bump.predictions", "sections")
headlines = deferred("headdyn.studies.landmarks.induction_bump.predictions", "headlines")
figures = deferred("headdyn.studies.landmarks.induction_bump.predictions", "figures")
