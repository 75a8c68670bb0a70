"""Distances of a model from retrieval and inference, on chains of the mixture and on fresh ones."""

import numpy as np

from headdyn.core.records import Findings, HeadTable
from headdyn.data.corpus import Corpus
from headdyn.models.decoder import Decoder
from headdyn.studies.landmarks.distances_measure import distances
from headdyn.studies.landmarks.markov_phases.analysis import FRESH, MixturePredictors
from headdyn.studies.landmarks.markov_phases.corpus import MixtureFilter


def measure(settings: MixturePredictors, decoder: Decoder, corpus: Corpus, generator: np.random.Generator) -> Findings:
    """Model rows as `MixturePredictors.metrics` names them, and a figure of each kind of sequences."""
    mixture = corpus.oracle
    assert isinstance(mixture, MixtureFilter)
    sequences = {
        "": np.asarray(corpus.val.tokens_NT[: settings.sequences], dtype=np.int64),
        FRESH: mixture.fresh(settings.sequences),
    }
    parts = {
        where: distances(settings, decoder, tokens_NT, mixture.laws(tokens_NT), generator, where)
        for where, tokens_NT in sequences.items()
    }
    return Findings(
        table=HeadTable.concat([table for table, _ in parts.values()]),
        figures={f"predictors{where}": figure for where, (_, figure) in parts.items()},
    )
