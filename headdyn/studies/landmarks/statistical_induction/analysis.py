"""Is the model's next-token law uniform, that of the unigrams in context, or that of the bigrams in context?"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from headdyn.analysis.contract import measured_in
from headdyn.core.records import Metric
from headdyn.core.settings import Positive, settings
from headdyn.studies.landmarks.distances import Distances, kl_metrics

PREDICTORS: Mapping[str, str] = {
    "uniform": "every symbol alike",
    "unigram": "counts of symbols in the context, Dirichlet prior",
    "bigram": "counts of what followed the present symbol in the context, Dirichlet prior",
}


@settings
class InContextPredictors(Distances):
    """KL of three exact predictors from the model; `concentration` is that of their Dirichlet prior."""

    concentration: Positive = 1.0

    rows: ClassVar[Literal["model"]] = "model"
    needs: ClassVar[frozenset[str]] = frozenset({"corpus"})
    metrics: ClassVar[Mapping[str, Metric]] = kl_metrics(PREDICTORS)

    __call__ = measured_in("headdyn.studies.landmarks.statistical_induction.measure")
