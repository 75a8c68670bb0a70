"""Model organisms: small trained suites whose answer is known, and how often the detectors find it."""

from headdyn.studies import Study, deferred

STUDY = Study(
    title="Model organisms",
    question="Do the methods find structure that was planted, at the right time, and none where nothing was planted?",
)

checks = deferred("headdyn.studies.organisms.page", "checks")
