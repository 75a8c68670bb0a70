"""Even heads against odd ones at eleven checkpoints of Pythia-160m, by activation patching."""

from headdyn.studies import deferred

sections = deferred("headdyn.studies.even_odd_emergence.page", "sections")
headlines = deferred("headdyn.studies.even_odd_emergence.page", "headlines")
checks = deferred("headdyn.studies.even_odd_emergence.page", "checks")
