"""Model organisms: small trained suites with a known answer, and how often the detectors find that answer."""

from headdyn.studies import Study, deferred

STUDY = Study(
    title="Model organisms",
    question="Do the methods find structure that was planted, at the right time, and none where nothing was planted?",
)

checks = deferred("headdyn.studies.organisms.page", "checks")
