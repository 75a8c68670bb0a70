"""Is the model's next-token law nearest to a uniform one, to the unigrams in context, or to the bigrams in context?"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from headdyn.core.records import Metric
from headdyn.core.settings import Positive, settings
from headdyn.data.corpus import Corpus
from headdyn.studies.landmarks.distances import Distances, kl_metrics

PREDICTORS: Mapping[str, str] = {
    "uniform": "every symbol alike",
    "unigram": "counts of symbols in the context, Dirichlet prior like the stationary laws of chains",
    "bigram": "counts of what followed the present symbol in the context, Dirichlet prior",
}


@settings
class InContextPredictors(Distances):
    """KL of three exact predictors from the model.

    `concentration` is that of the Dirichlet prior of bigrams. The prior of unigrams has the concentration in the
    corpus's facts, which is fitted to the stationary laws of its chains, or the same `concentration` if there is none.
    """

    concentration: Positive = 1.0

    metrics: ClassVar[Mapping[str, Metric]] = kl_metrics(PREDICTORS)

    def laws(self, corpus: Corpus) -> Mapping[str, tuple[np.ndarray, Mapping[str, np.ndarray]]]:
        """On validation sequences: uniform guessing, unigrams in context, bigrams in context."""
        from headdyn.studies.landmarks.predictors import bigram_law, unigram_law

        tokens_NT = self.tokens(corpus)
        prior = corpus.facts.get("unigram_concentration", self.concentration)
        unigram_NTV = unigram_law(tokens_NT, corpus.vocab_size, prior)
        laws = {
            "uniform": np.full(unigram_NTV.shape, 1 / corpus.vocab_size),
            "unigram": unigram_NTV,
            "bigram": bigram_law(tokens_NT, corpus.vocab_size, self.concentration),
        }
        return {"": (tokens_NT, laws)}
