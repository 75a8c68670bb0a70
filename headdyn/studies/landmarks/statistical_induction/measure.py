"""Distances of a model from uniform guessing, in-context unigrams and in-context bigrams."""

import numpy as np

from headdyn.core.records import Findings
from headdyn.data.corpus import Corpus
from headdyn.models.decoder import Decoder
from headdyn.studies.landmarks.distances_measure import distances
from headdyn.studies.landmarks.predictors import bigram_law, unigram_law
from headdyn.studies.landmarks.statistical_induction.analysis import InContextPredictors


def measure(
    settings: InContextPredictors, decoder: Decoder, corpus: Corpus, generator: np.random.Generator
) -> Findings:
    """Model rows as `InContextPredictors.metrics` names them, and a figure."""
    tokens_NT = np.asarray(corpus.val.tokens_NT[: settings.sequences], dtype=np.int64)
    unigram_NTV = unigram_law(tokens_NT, corpus.vocab_size, settings.concentration)
    laws = {
        "uniform": np.full(unigram_NTV.shape, 1 / corpus.vocab_size),
        "unigram": unigram_NTV,
        "bigram": bigram_law(tokens_NT, corpus.vocab_size, settings.concentration),
    }
    table, figure = distances(settings, decoder, tokens_NT, laws, generator)
    return Findings(table=table, figures={"predictors": figure})
