"""The original studies that headdyn repeats: one folder a study, and nothing outside this folder knows any of them.

A study is a package whose `__init__.py` states

    STUDY = Study(title=..., question=...)      what it is called and what it asked, wherever a reader meets it

and may define functions that a sweep's report calls (report/extension.py):

    sections(sweep) -> Sequence[Section]        parts of the page: the study's own figures beside ours, what misleads
    headlines(sweep) -> Sequence[Statement]     its questions, answered from these runs
    checks(sweep) -> Sequence[Check]            what is known of the result, against what was found

A run names it by `study: headdyn.studies.NAME` in its preset (conf/experiment), or by running one of its procedures.
Beside them a study's folder holds

    procedures of the original study    ordinary analyses, which conf/protocol/original.yaml adds to a run's own
                                        (`companions`); their metrics begin with `original_`
    study.json                          what the study reports, with its source, none of it measured here; what in its
                                        procedure misleads
    hypotheses.py                       how the study's hypotheses are judged (`analysis.emergence.judge`)

Importing a study's package is cheap: whatever it needs is imported when it is called.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study is called and what it asked, for pages, presets and the README."""

    title: str
    question: str


def deferred(module: str, function: str) -> Callable[..., Any]:
    """A function of a module that is imported only when the function is called."""
    return lambda *arguments: getattr(importlib.import_module(module), function)(*arguments)
