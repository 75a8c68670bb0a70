"""The original studies that headdyn repeats, one folder for each; nothing outside this folder knows any of them.

A study is a package whose `__init__.py` may define functions that a sweep's report calls (report/extension.py):

    sections(sweep) -> Sequence[Section]        parts of the page: the study's figures beside ours, why it misleads
    headlines(sweep) -> Sequence[Statement]     the study's questions, answered from these runs
    verdicts(sweep) -> Sequence[Statement]      what was predicted, judged; it comes before all other answers
    checks(sweep) -> Sequence[Check]            these runs compared with the known result

A run names its study by `study: headdyn.studies.NAME` in its preset (conf/experiment), or by running one of the study's
procedures. The study's folder may also hold

    procedures of the original study    ordinary analyses, which conf/protocol/original.yaml adds to a run's own
                                        (`companions`); their metrics begin with `original_`
    study.json                          figures that the study reports, with their source (none is measured here), and
                                        the points in which its procedure misleads
    hypotheses.py                       the judge of the study's hypotheses (`analysis.emergence.judge`)

Importing a study's package is cheap: its functions import their modules when they are called.
"""

import importlib
from collections.abc import Callable
from typing import Any


def deferred(module: str, function: str) -> Callable[..., Any]:
    """A function of a module; the module is imported when the function is called."""
    return lambda *arguments: getattr(importlib.import_module(module), function)(*arguments)
