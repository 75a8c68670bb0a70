"""Even heads against odd ones at eleven checkpoints of Pythia-160m, by activation patching."""

from headdyn.studies import Study, deferred

STUDY = Study(
    title="Even and odd heads",
    question=(
        "When in training do the even heads of a layer come to answer “which is bigger, 9.8 or 9.11?” rightly, and "
        "the odd ones not?"
    ),
)

sections = deferred("headdyn.studies.even_odd_emergence.page", "sections")
headlines = deferred("headdyn.studies.even_odd_emergence.page", "headlines")
checks = deferred("headdyn.studies.even_odd_emergence.page", "checks")
