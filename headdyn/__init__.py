"""When do attention heads organise, what drives it, and is it real? Importing this package imports nothing heavy.

The functions `compose`, `run`, `sweep`, `load` and `chart` are defined in headdyn/api.py and imported at first use.
Because headdyn.run and headdyn.sweep are modules too, these two modules can be called like the functions.
"""

import sys
from importlib import import_module, metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headdyn.api import Run as Run
    from headdyn.api import Sweep as Sweep
    from headdyn.api import chart as chart
    from headdyn.api import compose as compose
    from headdyn.api import load as load

_CALLABLE_MODULES = ("run", "sweep")
__all__ = ["Run", "Sweep", "chart", "compose", "load", "run", "sweep"]


class _CallableModule(ModuleType):
    """A module that can be called: it calls the function of the same name in headdyn/api.py."""

    def __call__(self, *overrides: str, **options: Any) -> Any:
        return getattr(import_module("headdyn.api"), self.__name__.rpartition(".")[2])(*overrides, **options)


class _Package(ModuleType):
    """This package. Python sets an imported submodule as its attribute; run and sweep are made callable then."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _CALLABLE_MODULES and isinstance(value, ModuleType):
            value.__class__ = _CallableModule
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name in _CALLABLE_MODULES:
        return import_module(f"headdyn.{name}")
    if name in __all__:
        return getattr(import_module("headdyn.api"), name)
    if name == "__version__":
        return metadata.version("headdyn")
    raise AttributeError(f"module 'headdyn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


sys.modules[__name__].__class__ = _Package
