"""The interface of analyses: a frozen dataclass of settings (`core.settings.settings`) that is called on a decoder.

Checking settings imports the class, so its module contains settings and metrics and imports nothing slow (torch, scipy,
scikit-learn). `__call__` imports a second module, which computes (`measured_in`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from headdyn.core.records import Findings, HeadTable, Metric

if TYPE_CHECKING:
    import numpy as np

    from headdyn.analysis.series.points import SeriesPoint
    from headdyn.models.decoder import Decoder


@runtime_checkable
class Analysis(Protocol):
    """An analysis of one model. A YAML file names its class by `_target_`; there is no registry.

    `needs` says what it is called with beside the decoder: "corpus" or "prompts". `metrics` describes every metric that
    its table may contain, with its range; a metric with `outcome` has a row for the whole model, whatever other rows it
    has. An analysis must not change the decoder, and draws all random numbers from the generator that it is given.
    """

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


def require_model_rows(name: str, metrics: Mapping[str, Metric], table: HeadTable) -> None:
    """Raise ValueError if an outcome has rows for heads or layers but none for the model, by which runs are compared.

    `name` is the analysis in the message. A table may lack an outcome altogether, for example without control pairs.
    """
    outcomes = {metric for metric, description in metrics.items() if description.outcome}
    lacking = (outcomes & set(table.table["metric"].to_pylist())) - table.summary().keys()
    if lacking:
        metric = min(lacking)
        raise ValueError(
            f"analysis {name}: its metric {metric} has outcome=True, and its table has "
            f"{len(table.where(metric=metric))} rows of {metric} for heads or layers but none for the whole model, by "
            "which runs are compared; add "
            f'HeadTable.whole("{metric}", value), with reason= where there is no value, or take outcome=True away'
        )


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
