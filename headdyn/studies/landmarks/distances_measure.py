"""Distances of a model from exact predictors, with intervals over sequences. Letters as in landmarks/predictors.py."""

import numpy as np
import torch

from headdyn.analysis.estimates import means
from headdyn.core.figures import Curve, curves
from headdyn.core.records import Findings, HeadTable
from headdyn.data.corpus import Corpus
from headdyn.models.decoder import Decoder
from headdyn.studies.landmarks.distances import Distances
from headdyn.studies.landmarks.predictors import divergence

_BATCH_TOKENS = 2**14


def measure(settings: Distances, decoder: Decoder, corpus: Corpus, generator: np.random.Generator) -> Findings:
    """Model rows `kl_NAME_nats` (intervals: 95 %, BCa over sequences), and figures of the distances by position.

    Where the settings have several kinds of sequences, the name of the kind is a suffix such as `_fresh`.
    """
    rows, figures = [], {}
    for kind, (tokens_NT, laws) in settings.laws(corpus).items():
        log_model_NTV = log_laws(decoder, tokens_NT)
        lines, position_T = [], np.arange(1, tokens_NT.shape[1])
        kl = {name: divergence(law_NTV, log_model_NTV) for name, law_NTV in laws.items()}
        for name, kl_NT in kl.items():
            estimate = means(kl_NT.mean(1), generator, draws=settings.bootstrap_draws)
            rows.append(estimate.rows(f"kl_{name}{kind}_nats", null=0.0))
            lines.append(Curve(label=name.replace("_", " "), x=position_T, y=kl_NT.mean(0)))
        figures[f"predictors{kind}"] = curves(
            lines,
            xlabel="position in the sequence (tokens)",
            ylabel="KL(predictor ‖ model), nats",
            title=f"Distance from exact predictors by position{kind.replace('_', ', ')}",
            references={"the predictor itself": 0.0},
            caption="How far the model's law of the next token is from each exact predictor's, mean over sequences. "
            "The predictor whose curve is lowest is the one that the model is most like.",
        )
    return Findings(table=HeadTable.concat(rows), figures=figures)


@torch.no_grad()
def log_laws(decoder: Decoder, tokens_NT: np.ndarray) -> np.ndarray:
    """The model's log-probabilities of the next token, float64 [N, T-1, V]."""
    device = decoder.embed.weight.device
    batches = torch.from_numpy(tokens_NT).split(max(1, _BATCH_TOKENS // tokens_NT.shape[1]))
    parts = [decoder(ids_BT.to(device), None)[:, :-1].double().log_softmax(-1).cpu().numpy() for ids_BT in batches]
    return np.concatenate(parts)
