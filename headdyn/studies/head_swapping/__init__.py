"""Heads of Pythia-160m reordered: does a head's function depend on its index?"""

from headdyn.studies import Study, deferred

STUDY = Study(
    title="Head swapping",
    question="Does what a head does depend on the index at which it sits?",
)

sections = deferred("headdyn.studies.head_swapping.page", "sections")
