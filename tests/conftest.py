"""Shapes are checked under pytest only: jaxtyping and beartype wrap every function that names shapes in these modules.

Workers of sweeps are forked off one process, so that torch is imported once for all of them.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from beartype import beartype
from jaxtyping import jaxtyped
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

import headdyn.analysis.answer_lens_measure
import headdyn.analysis.circuit_factors
import headdyn.analysis.circuit_readouts
import headdyn.analysis.pattern_sums
import headdyn.analysis.selectivity
import headdyn.analysis.token_flow
import headdyn.models.decoder
import headdyn.models.frozen
import headdyn.models.frozen_pairs
import headdyn.models.layers
import headdyn.workers
from tests import forked


def _check_shapes(module: ModuleType) -> None:
    """Wrap the module's functions and methods whose annotations give shapes.

    jaxtyping's own import hook wraps everything, and what it wraps cannot be compiled: inside torch.compile its
    isinstance checks reject dynamo's stand-in tensors. So a check steps aside while compiling.
    """
    classes = [
        owner for owner in vars(module).values() if inspect.isclass(owner) and owner.__module__ == module.__name__
    ]
    for owner in (module, *classes):
        for name, member in list(vars(owner).items()):
            function = member.__func__ if isinstance(member, classmethod) else member
            if inspect.isfunction(function) and function.__module__ == module.__name__ and _gives_shapes(function):
                assert function is member, f"{name}: a classmethod with shapes would lose its binding"
                setattr(owner, name, _checked_unless_compiling(function))


def _gives_shapes(function: Callable[..., Any]) -> bool:
    return any("Tensor, '" in str(a) or "Rotary" in str(a) for a in function.__annotations__.values())


def _checked_unless_compiling(function: Callable[..., Any]) -> Callable[..., Any]:
    checked = jaxtyped(function, typechecker=beartype)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (function if torch.compiler.is_compiling() else checked)(*args, **kwargs)

    return call


_check_shapes(headdyn.models.layers)
_check_shapes(headdyn.models.decoder)
_check_shapes(headdyn.models.frozen)
_check_shapes(headdyn.models.frozen_pairs)
_check_shapes(headdyn.analysis.selectivity)
_check_shapes(headdyn.analysis.pattern_sums)
_check_shapes(headdyn.analysis.token_flow)
_check_shapes(headdyn.analysis.circuit_factors)
_check_shapes(headdyn.analysis.circuit_readouts)
_check_shapes(headdyn.analysis.answer_lens_measure)
torch.set_num_threads(1)  # so that sums are split alike on every machine
threadpool_limits(1, "blas")  # where another worker computes too, numpy's threads mostly wait for one another
headdyn.workers.subprocess = forked.FORKING  # type: ignore[attr-defined]


HERE = Path(__file__).parent
LONGEST = [  # by the seconds that they took on two cores
    *("test_readme.py", "faults/test_runs.py", "test_pipeline.py", "test_any_model.py", "analysis/test_contract.py"),
    *("test_series_pipeline.py", "test_api.py", "training/test_objective.py", "test_launchers.py", "test_notebook.py"),
    *("test_docs.py", "training/test_replicas.py", "test_workers.py", "analysis/test_resuming.py"),
    *("studies/landmarks/test_presets.py", "test_dashboard.py", "studies/organisms/test_training.py"),
    *("studies/organisms/test_detection.py", "test_config.py", "analysis/test_tensorlens.py", "training/test_drope.py"),
    *("test_main.py", "core/test_tracking.py", "data/test_conversations.py", "training/test_loop.py"),
    *("faults/test_fuzz.py", "report/test_main.py", "test_extending.py"),
]
PLACE = {HERE / name: place for place, name in enumerate(LONGEST)}
assert all(path.is_file() for path in PLACE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, then those with many tests: with `--dist loadfile` a long file that is
    begun last leaves the other workers idle. Within a file the order stays. Needs `--no-loadscope-reorder`."""
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (PLACE.get(item.path, len(PLACE)), -tests[item.path]))


@pytest.fixture(autouse=True)
def _without_hydras_log() -> Iterator[None]:
    """A run in this process leaves Hydra's handler, whose stream ends with its test: the next line would be an error."""
    _remove_stream_handlers()
    yield
    _remove_stream_handlers()


def _remove_stream_handlers() -> None:
    root = logging.getLogger()
    for handler in [each for each in root.handlers if type(each) is logging.StreamHandler]:
        root.removeHandler(handler)
