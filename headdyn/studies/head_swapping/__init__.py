"""Heads of Pythia-160m reordered: does a head's function depend on its index?"""

from __future__ import annotations

from headdyn.studies import Study

STUDY = Study(
    title="Head swapping",
    question="Does what a head does depend on the index at which it sits?",
)
