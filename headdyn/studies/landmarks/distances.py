"""Settings and metrics of analyses that compare a model's next-token law with exact predictors."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from headdyn.analysis.contract import measured_in
from headdyn.analysis.metrics import BootstrapDraws, nats
from headdyn.core.records import Metric
from headdyn.core.settings import settings


def kl_metrics(predictors: Mapping[str, str]) -> dict[str, Metric]:
    """The metrics `kl_NAME_nats`; `predictors` gives by name the words that describe the predictor."""
    return {
        f"kl_{name}_nats": nats(
            label=f"KL from the {name.replace('_', ' ')} predictor",
            meaning=f"KL(predictor ‖ model) of the next token, mean over positions; predictor: {words}",
            low=0,
            outcome=True,
        )
        for name, words in predictors.items()
    }


@settings
class Distances:
    """Settings of an analysis that compares a model with predictors on the first `sequences` validation sequences."""

    sequences: Annotated[int, Field(ge=2)] = 256
    bootstrap_draws: BootstrapDraws = 2_000

    needs: ClassVar[frozenset[str]] = frozenset({"corpus"})

    def tokens(self, corpus: Any) -> np.ndarray:
        """The validation sequences that are read, [N, T]."""
        return np.asarray(corpus.val.tokens_NT[: self.sequences], dtype=np.int64)

    @abstractmethod
    def laws(self, corpus: Any) -> Mapping[str, tuple[np.ndarray, Mapping[str, np.ndarray]]]:
        """By suffix of the metrics' names, sequences [N, T] and each predictor's law of the next token [N, T-1, V]."""

    __call__ = measured_in("headdyn.studies.landmarks.distances_measure")
