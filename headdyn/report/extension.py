"""Sections, answers and checks that other packages add to a sweep's page.

A run names a package by `study:`, or by a class of the package, the `_target_` of an analysis, a model or data. The
package may define any of these functions, which are called with the sweep's record:

    sections(sweep) -> Sequence[Section]        parts of the page
    headlines(sweep) -> Sequence[Statement]     questions with their answers
    verdicts(sweep) -> Sequence[Statement]      the same, before all other answers, and in the terminal too
    checks(sweep) -> Sequence[Check]            checks of the runs
"""

import importlib
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Literal

from headdyn.sweep.record import SweepRecord


def added(kind: Literal["sections", "headlines", "verdicts", "checks"], sweep: SweepRecord) -> list[Any]:
    """All that the packages' functions of this name return."""
    functions = [getattr(package, kind) for package in packages(sweep) if hasattr(package, kind)]
    return [part for function in functions for part in function(sweep)]


def packages(sweep: SweepRecord) -> list[ModuleType]:
    """The packages that the sweep's runs name and that can be imported, each once."""
    named = dict.fromkeys(name for job in sweep.jobs for name in _named(job.run.manifest.get("config", {})))
    return [module for name in named if (module := _imported(name)) is not None]


def _named(node: Mapping[str, Any]) -> Iterator[str]:
    """The names of a configuration's study and of the packages that hold the modules of its classes."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _named(value)
        elif key in ("study", "_target_") and isinstance(value, str):
            yield value if key == "study" else value.rpartition(".")[0].rpartition(".")[0]


def _imported(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name) if name else None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the package is installed, but a module that it imports is not
        return None  # not installed on this machine: the page shows the runs' numbers without the package's words
