"""Model organisms: small trained suites with a known answer, and how often the detectors find that answer."""

from headdyn.studies import deferred

checks = deferred("headdyn.studies.organisms.page", "checks")
