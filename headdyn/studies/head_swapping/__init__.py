"""Heads of Pythia-160m reordered: does a head's function depend on its index?"""

from headdyn.studies import deferred

sections = deferred("headdyn.studies.head_swapping.page", "sections")
