"""What packages outside headdyn's report add to it: sections, answers in words and checks.

A run names a package by `study:`, or by the class that it chose as `_target_` for an analysis, a model or its data. Of
such a package these functions are called where it defines them, each with the sweep's record:

    sections(sweep) -> Sequence[Section]        parts of the page
    headlines(sweep) -> Sequence[Statement]     questions with their answers
    checks(sweep) -> Sequence[Check]            what is checked about the runs
"""

import importlib
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from headdyn.report.blocks import Section
from headdyn.report.quality import Check
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.words import Statement


def sections(sweep: SweepRecord) -> list[Section]:
    """The parts of the page that the packages add."""
    return list(_called("sections", sweep))


def headlines(sweep: SweepRecord) -> list[Statement]:
    """The questions that the packages answer."""
    return list(_called("headlines", sweep))


def checks(sweep: SweepRecord) -> list[Check]:
    """The checks that the packages make."""
    return list(_called("checks", sweep))


def packages(sweep: SweepRecord) -> list[ModuleType]:
    """The packages that the sweep's runs name and that can be imported, in the order met."""
    named = dict.fromkeys(name for job in sweep.jobs for name in _named(job.run.manifest.get("config", {})))
    return [module for name in named if (module := _imported(name)) is not None]


def _named(node: Mapping[str, Any]) -> Iterator[str]:
    """The study of a configuration, and the package around the module of every class that it names."""
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
            raise  # the package is here, and what it imports is not
        return None  # a package of another machine: the numbers of its runs are shown without its words


def _called(function: str, sweep: SweepRecord) -> Iterator[Any]:
    for module in packages(sweep):
        if hasattr(module, function):
            yield from getattr(module, function)(sweep)
