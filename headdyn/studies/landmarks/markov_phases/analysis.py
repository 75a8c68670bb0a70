"""Does the model retrieve a chain of its training, or infer the chain that it reads, and from unigrams or bigrams?"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from headdyn.core.records import Metric
from headdyn.core.settings import settings
from headdyn.data.corpus import Corpus
from headdyn.studies.landmarks.distances import Distances, kl_metrics

_WORDS: Mapping[str, str] = {
    "unigram_retrieval": "stationary laws of the trained chains, weighed by the symbols in the context",
    "bigram_retrieval": "rows of the trained chains, weighed by the transitions in the context (Bayes)",
    "unigram_inference": "counts of symbols in the context, Dirichlet prior like the stationary laws of chains",
    "bigram_inference": "counts of what followed the present symbol in the context, Dirichlet prior",
}
FRESH = "_fresh"


@settings
class MixturePredictors(Distances):
    """KL of four exact predictors from the model, on validation sequences and on sequences of chains never trained on.

    Retrieval and inference differ most on fresh chains; on the mixture's chains a long context makes them agree.
    """

    metrics: ClassVar[Mapping[str, Metric]] = kl_metrics(_WORDS) | kl_metrics(
        {
            f"{name}{FRESH}": f"{words}; on sequences of chains that are not in the mixture"
            for name, words in _WORDS.items()
        }
    )

    def check(self, corpus: Corpus) -> None:
        """Raise ValueError for a corpus that is no mixture of chains."""
        if corpus.name != "markov_mixture":
            raise ValueError(
                f"analysis=mixture_predictors compares with the chains of a mixture, and data={corpus.name} has none; "
                "use data=markov_mixture"
            )

    def laws(self, corpus: Corpus) -> Mapping[str, tuple[np.ndarray, Mapping[str, np.ndarray]]]:
        """On validation sequences, and on sequences of fresh chains: the four predictors of the mixture."""
        mixture: Any = corpus.oracle
        sequences = {"": self.tokens(corpus), FRESH: mixture.fresh(self.sequences)}
        return {kind: (tokens_NT, mixture.laws(tokens_NT)) for kind, tokens_NT in sequences.items()}
