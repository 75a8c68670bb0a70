"""The interface of analyses: a frozen dataclass of settings (`core.settings.settings`) that is called on a decoder.

Checking settings imports the class, so its module contains settings and metrics and imports nothing slow (torch, scipy,
scikit-learn). `__call__` imports a second module, which computes (`measured_in`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from headdyn.core.records import Findings, Metric

if TYPE_CHECKING:
    import numpy as np

    from headdyn.analysis.series.points import SeriesPoint
    from headdyn.models.decoder import Decoder


@runtime_checkable
class Analysis(Protocol):
    """An analysis of one model. A YAML file names its class by `_target_`; there is no registry.

    `rows` says what a row of its table describes. `needs` says what it is called with beside the decoder: "corpus" or
    "prompts". `metrics` describes every metric that its table may contain, with its range. An analysis must not change
    the decoder, and draws all random numbers from the generator that it is given.
    """

    rows: ClassVar[Literal["model", "layer", "head", "split", "order"]]
    needs: ClassVar[frozenset[str]]
    metrics: ClassVar[Mapping[str, Metric]]

    def __call__(self, decoder: Decoder, material: Any, generator: np.random.Generator, /) -> Findings:
        """`material` is a Corpus or Prompts, as `needs` says; if `needs` names neither, it may be either."""
        ...


def measured_in(module: str) -> Callable[..., Any]:
    """A `__call__` method that imports `module` at the first call and returns its `measure(analysis, *arguments)`."""

    def call(analysis: Any, *arguments: Any) -> Any:
        return importlib.import_module(module).measure(analysis, *arguments)

    return call


@dataclass(frozen=True, kw_only=True)
class SeriesFindings(Findings):
    """Findings on a whole series of checkpoints; `verdict` holds JSON values for verdict.json."""

    verdict: Mapping[str, Any]


class SeriesAnalysis(Protocol):
    """An analysis of a whole series of checkpoints, called once after the runs of the series have ended.

    `needs` contains "series". If it also contains "circuits", each run of the series saves the QK and OV circuits of
    one layer, the attribute `layer` (None: the middle one, see `patch.chosen_layer`), as `SeriesPoint.circuits`.
    """

    needs: ClassVar[frozenset[str]]
    metrics: ClassVar[Mapping[str, Metric]]

    def __call__(self, points: Sequence[SeriesPoint], generator: np.random.Generator, /) -> SeriesFindings:
        """`points` are the checkpoints of the series in any order, including failed ones."""
        ...
